"""``limbeck pipeline``, with an engine that only takes notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stub_engine import Run

import limbeck as lb
import limbeck.engine
from limbeck.space.pipeline import PIPELINES


class Noted:
    """The calls that ``run_pipeline`` received, and what the stub does in addition."""

    def __init__(self) -> None:
        self.calls: list[tuple[lb.Pipeline, Path, dict[str, Any]]] = []
        self.trouble: BaseException | None = None

    def __call__(self, pipeline: lb.Pipeline, out: Path, **kwargs: Any) -> list[limbeck.engine.Result]:
        self.calls.append((pipeline, out, kwargs))
        kwargs["console"].print("progress")
        if self.trouble:
            out.mkdir()
            (out / "pipeline.json").write_text("{}")
            raise self.trouble
        paths = [out / f"stage-{i}-{s.method}" for i, s in enumerate(pipeline.unrolled)]
        return [limbeck.engine.Result(p, None, None, 2, None, p / "student") for p in paths]


@pytest.fixture
def noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Noted:
    made = Noted()
    monkeypatch.setattr(limbeck.engine, "run_pipeline", made)
    return made


def test_settings_reach_the_stages_they_name(limbeck_: Run, noted: Noted, folder: Path) -> None:
    (folder / "p.toml").write_text('lr = 1e-4\nsteps = 9\nteacher = "embedded"\n\n[grpo]\nlr = 1e-6\nsteps = 3\n')
    words = ["--config", "p.toml", "--steps", "7", "--set", "divergence=fkl", "--set", "grpo.group=4", "--out", "p"]
    result = limbeck_("pipeline", "opd_then_rl", *words, "--set", "arguments.reference=0.1", "--json")
    assert result.exit_code == 0, result.stderr
    ((value, out, given),) = noted.calls
    assert value == lb.pipelines.opd_then_rl(divergence="fkl", reference=0.1).adjusted(
        grpo={"lr": 1e-6, "steps": 3, "group": 4}
    )
    assert value.name == "opd_then_rl"
    assert out == Path("p")
    assert {k: given[k] for k in ("lr", "steps", "teacher")} == {"lr": 1e-4, "steps": 7, "teacher": "embedded"}
    assert given["command"].startswith("limbeck pipeline opd_then_rl --config p.toml")
    printed = json.loads(result.stdout)
    assert (printed["pipeline"], printed["out"]) == ("opd_then_rl", "p")
    assert [s["out"] for s in printed["stages"]] == ["p/stage-0-opd_full", "p/stage-1-grpo"]


def test_a_stopped_pipeline_says_that_the_same_command_continues_it(limbeck_: Run, noted: Noted) -> None:
    noted.trouble = KeyboardInterrupt()
    result = limbeck_("pipeline", "sd_zero", "--out", "a b")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "limbeck: stopped; continue with `limbeck pipeline sd_zero --out 'a b'`."


def test_without_a_name_all_pipelines_are_listed(limbeck_: Run) -> None:
    shown = limbeck_("pipeline").stdout
    for plan in PIPELINES.values():
        assert plan.name in shown
        assert str(plan()) in shown
        assert all(f"{name}=" in shown for name in plan.arguments)
    facts = json.loads(limbeck_("pipeline", "--json").stdout)
    assert [f["name"] for f in facts] == list(PIPELINES)
    assert facts[0]["stages"] == [{"method": "sd_zero_srt", "settings": {}}, {"method": "sd_zero", "settings": {}}]
    assert facts[0]["arguments"]["iterations"]["default"] == 1
    assert all(a["help"] for f in facts for a in f["arguments"].values())
    assert f"{len(PIPELINES)} pipelines: {', '.join(PIPELINES)}." in limbeck_("methods").stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sdzero",), "unknown pipeline 'sdzero' (did you mean 'sd_zero'?)"),
        (("sd_zero",), "a pipeline needs a folder; add --out runs/sd_zero"),
        (("sd_zero", "--out", "p", "--student", "./nowhere"), "student='./nowhere': there is no such folder"),
        (("sd_zero", "--out", "p", "--task", "no.jsonl"), "--task no.jsonl: there is no such file"),
        (("sd_zero", "--out", "p", "--set", "iterations=0"), "iterations of sd_zero is 0"),
        (("sd_zero", "--out", "p", "--set", "arguments=3"), "arguments=3: it is a table"),
        (("opd_then_rl", "--out", "p", "--set", "grpo=3"), "the settings of grpo is 3"),
    ],
)
def test_mistakes_give_one_sentence(limbeck_: Run, noted: Noted, words: tuple[str, ...], sentence: str) -> None:
    result = limbeck_("pipeline", *words, "--json")
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert json.loads(result.stdout) == {"error": result.stderr.removeprefix("limbeck: ").strip()}
    assert not noted.calls
