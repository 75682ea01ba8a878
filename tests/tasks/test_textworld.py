"""TextWorld: what is read from a turn, what is shown of a game, and games that are made, kept, split and played."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks import EpisodeDied, TextWorldTask, available_tasks, load_task
from limbeck.tasks.textworld import _cache
from limbeck.tasks.textworld_game import Maker, clean, command, side
from limbeck.types import Prompt

here = importlib.util.find_spec("textworld") is not None
needs_textworld = pytest.mark.skipif(not here, reason="needs limbeck[textworld]")
GAMES = {"world_size": 2, "quest_length": 2, "nb_objects": 3, "train_size": 3, "test_size": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Go North", "go north"),
        ("I think so.\n\n> take  the key \n \n", "take the key"),
        ("<action>look</action> or <action>open\nBox</action>\nbye", "open box"),
        ("", ""),
        (" \n ", ""),
        ("take café", "take caf?"),
        ("x" * 999, "x" * 200),
    ],
)
def test_the_command_in_a_turn(text: str, words: str) -> None:
    assert command(text) == words


def test_banner_status_line_and_offers_are_taken_out() -> None:
    banner = "\n\n   ____\n  | $$  $$ |\n   \\$$  \\$$\n"
    status = "\n> \t         -= Living Room =-0/12"
    said = "You win.   \n\n\n\n   *** The End ***\n\nWould you like to RESTART, QUIT?"
    assert clean(banner + "Find it!\n\n\nA room." + status) == "Find it!\n\nA room."
    assert clean(said + status) == "You win.\n\n*** The End ***"
    assert clean("A > B\nand -= C =-") == "A > B\nand -= C =-"


def test_a_game_is_on_one_side() -> None:
    sides = [side(f"Find {i}") for i in range(100)]
    assert sides == [side(f"Find {i}") for i in range(100)]
    assert 30 < sides.count("test") < 70
    assert set(sides) == {"train", "test"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"world_size": 0}, "world_size of task 'textworld' is 0; give a whole number of at least 1."),
        ({"quest_length": 2.5}, "quest_length of task 'textworld' is 2.5"),
        ({"nb_objects": True}, "nb_objects of task 'textworld' is True"),
        ({"train_size": 0}, "train_size of task 'textworld' is 0"),
        ({"test_size": 0}, "test_size of task 'textworld' is 0"),
        ({"max_turns": 0}, "max_turns of task 'textworld' is 0"),
        ({"hints": "no"}, "hints of task 'textworld' is 'no'; give true or false."),
        ({"folder": 3}, "folder of task 'textworld' is 3; give a path."),
        ({"seed": -1}, "seed of task 'textworld' is -1"),
        ({"nb_object": 3}, "option 'nb_object' is not one of task 'textworld' (did you mean 'nb_objects'?)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError) as refusal:
        load_task("textworld", **options)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "textworld" in available_tasks()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LimbeckError, match=r"pip install limbeck\[textworld\]"):
        load_task("textworld")


def test_games_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache() == tmp_path / "limbeck"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache() == tmp_path / ".cache" / "limbeck"


# ---------------------------------------------------------------- with TextWorld installed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("games")


@pytest.fixture
def task(folder: Path) -> Iterator[TextWorldTask]:
    task = TextWorldTask(**GAMES, folder=str(folder))
    yield task
    task.close()


def play(task: Any, prompt: Prompt, actions: Any) -> list[Any]:
    episode = task.open(prompt)
    seen = [episode.step(action) for action in actions]
    episode.close()
    return seen


@needs_textworld
def test_the_walkthrough_wins(task: TextWorldTask) -> None:
    assert task.serves == {"reward", "feedback", "episodes"}
    for prompt in (*task.train, *task.test):
        steps = prompt.privileged["solution"].split("\n")
        assert len(steps) == 2
        assert prompt.columns == {"quest_length": 2.0, "max_score": 1.0}
        seen = play(task, prompt, steps)
        assert [(o.done, o.correct, o.reward) for o in seen] == [(False, False, 0.0), (True, True, 1.0)]
        assert all(o.feedback is None for o in seen)
        assert "The End" in seen[-1].text
        assert "RESTART" not in seen[-1].text
        assert "$$" not in prompt.messages[0]["content"]
        assert prompt.messages[0]["content"].startswith("You play a text adventure.")


@needs_textworld
def test_an_episode_is_a_function_of_its_actions(task: TextWorldTask) -> None:
    prompt = task.train[0]
    actions = ["look", "inventory", "dance", "go north", "go south", "go east", "go west", "quit", "", "look"]
    first = play(task, prompt, actions)
    task.close()
    assert play(task, prompt, actions) == first
    assert first[2].feedback == first[2].text == "That's not a verb I recognise."
    assert first[7].feedback == "'quit' is not a command of this game."
    assert first[8].feedback == "Write a command."
    assert first[0].feedback is None
    assert not any("=-" in o.text.rpartition("\n")[2] and ">" in o.text for o in first)


@needs_textworld
def test_an_episode_ends_after_its_turns_and_hints_are_listed(folder: Path) -> None:
    task = TextWorldTask(**GAMES, folder=str(folder), hints=True, max_turns=2)
    prompt = task.test[0]
    listed = prompt.messages[0]["content"].rpartition("Possible commands: ")[2].split("; ")
    assert prompt.privileged["solution"].split("\n")[0] in listed
    seen = play(task, prompt, ["dance", "look"])
    assert seen[0].text.endswith("Possible commands: " + "; ".join(listed))
    assert [(o.done, o.correct) for o in seen] == [(False, False), (True, False)]
    assert "Possible commands" not in seen[1].text
    task.close()


@needs_textworld
def test_splits_are_disjoint_by_the_games_own_text(task: TextWorldTask, folder: Path) -> None:
    texts = {split: {p.messages[0]["content"] for p in getattr(task, split)} for split in ("train", "test")}
    assert [len(t) for t in texts.values()] == [3, 2]
    assert not texts["train"] & texts["test"]
    for file in folder.glob("*/game.json"):
        about = json.loads((file.parent / "about.json").read_text())
        objective = json.loads(file.read_text())["objective"]
        ours = about["opening"][:60] in "".join(texts[side(objective)])
        assert ours
    other = TextWorldTask(**GAMES, folder=str(folder), seed=1)
    assert other.train[0].messages != task.train[0].messages
    other.close()


@needs_textworld
def test_a_game_that_is_kept_is_not_made_again(task: TextWorldTask, folder: Path) -> None:
    list(task.train)
    task.close()
    again = TextWorldTask(**GAMES, folder=str(folder))
    assert list(again.train) == list(task.train)
    assert again._makers._workers == []
    assert not list(folder.glob(".making-*"))
    with pytest.raises(LimbeckError, match="'train/3' is not one of task 'textworld'"):
        again.open(Prompt("train/3", ()))


@needs_textworld
def test_a_game_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import textworld.generator

    def full(game: Any, options: Any) -> None:
        Path(options.path).write_text("half")
        raise OSError(28, "No space left on device")

    wanted = json.dumps({"folder": str(tmp_path / "a" / "b"), "split": "test", "seed": 0})
    maker = Maker(world_size=1, quest_length=1, nb_objects=2)
    with monkeypatch.context() as patch:
        patch.setattr(textworld.generator, "compile_game", full)
        with pytest.raises(OSError, match="No space"):
            maker.step(wanted)
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "game.z8").write_text("left by something else")
    about = json.loads(maker.step(wanted)["text"])
    assert len(about["walkthrough"]) == 1
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]
    maker.close()


@needs_textworld
def test_a_game_that_cannot_be_made_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    task = TextWorldTask(**GAMES, folder=str(tmp_path / "file"))
    with pytest.raises(LimbeckError) as refusal:
        task.train[0]
    assert "world_size=2, quest_length=2, nb_objects=3 made no game in" in str(refusal.value)
    assert "raised FileExistsError" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@needs_textworld
def test_a_broken_game_file_ends_the_episode(tmp_path: Path) -> None:
    task = TextWorldTask(**GAMES, folder=str(tmp_path))
    prompt = task.test[0]
    (file,) = tmp_path.glob("*/game.z8")
    file.write_bytes(b"no game")
    with pytest.raises(EpisodeDied):
        task.open(prompt)
    task.close()
