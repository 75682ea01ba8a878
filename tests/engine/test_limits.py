"""Work that has no end is stopped or refused: templates, batches of a thousand million, huge expressions."""

from __future__ import annotations

import time

import pytest
from tiny_runs import Shelf

from limbeck import LimbeckError
from limbeck.engine import configure
from limbeck.engine.build import build_method, prepare_tasks
from limbeck.engine.models.policy import conversation_ids, load_policy
from limbeck.engine.scoring.templates import fill
from limbeck.limits import rendered
from limbeck.tasks.answers import is_expensive, same_answer
from limbeck.tasks.arithmetic import Mistake, calculate

NINES = "range(99999)"
ENDLESS = {
    "loops": "{% for i in R %}{% for j in R %}{% for k in R %}{% endfor %}{% endfor %}{% endfor %}".replace("R", NINES),
    "prints": "{% for i in R %}{% for j in R %}0123456789{% endfor %}{% endfor %}".replace("R", NINES),
    "multiplies": "{{ 'x' * 10**11 }}",
    "centres": "{{ 'x' | center(10**11) }}",
    "long": "{{ 'x' * 20000000 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "__defaults__", (0.5, 512))


@pytest.mark.parametrize("template", [t for k, t in ENDLESS.items() if k != "power"])
def test_a_template_without_end_is_refused_soon(shelf: Shelf, template: str) -> None:
    start = time.monotonic()
    with pytest.raises(LimbeckError, match="template of context 'hint' cannot be rendered"):
        fill(template, {}, "hint")
    policy = load_policy(str(shelf.student), "student")
    policy.template = template
    with pytest.raises(LimbeckError, match=r"chat template of .* (cannot render|does not end)"):
        conversation_ids(policy, [{"role": "user", "content": "a"}])
    assert time.monotonic() - start < 20


def test_limits_are_gone_after_rendering() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert rendered(lambda: "a", 10) == "a"
    with pytest.raises(ValueError, match="11 characters"):
        rendered(lambda: "a" * 11, 10)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("field", ["prompts", "steps", "max_tokens", "eval_size", "generate_batch", "episode_turns"])
def test_sizes_that_no_machine_holds_are_refused(field: str) -> None:
    with pytest.raises(LimbeckError, match=f"{field}=1000000000000: input should be less than or equal to"):
        configure("grpo", {field: 10**12})


def test_a_group_that_no_machine_holds_is_refused(shelf: Shelf) -> None:
    config = configure("grpo", shelf.settings("grpo", group=2**20, prompts=8))
    with pytest.raises(LimbeckError, match="prompts=8 with 1048576 responses to each are 8,388,608"):
        prepare_tasks(config, build_method(config))


@pytest.mark.parametrize(
    "expression", ["round(5, -10**9)", "round(5, -10**900)", "round(2.5, 10**9)", "9**9**9**9", "10**999 * 10**999"]
)
def test_the_calculator_refuses_endless_computations(expression: str) -> None:
    start = time.monotonic()
    with pytest.raises(Mistake):
        calculate(expression)
    assert time.monotonic() - start < 1


def test_the_calculator_still_rounds() -> None:
    assert (calculate("round(2.567, 2)"), calculate("round(1234, -2)"), calculate("round(2.5)")) == (
        "2.57",
        "1200",
        "2",
    )


@pytest.mark.parametrize(
    "text",
    [
        "(9^{9999})^{9999}",
        "9^9^9",
        "9^{9^{9}}",
        "((9^{999})^{999})^{999}",
        "9**9**9",
        "10^{99999999}",
        "(99999)!",
        "\\binom{99999999}{5000000}",
        "\\sum_{i=1}^{9} i",
        "1e999999999",
    ],
)
def test_an_answer_that_takes_too_long_to_compare_is_wrong(text: str) -> None:
    start = time.monotonic()
    assert is_expensive(text)
    assert not same_answer("7", text)
    assert not same_answer(text, "7")
    assert time.monotonic() - start < 1


def test_ordinary_powers_are_compared() -> None:
    assert same_answer("x^2 + y^2", "y^{2} + x^{2}")
    assert same_answer("2^{10}", "1024")
    assert not is_expensive("x^{10} + 3x^{4} - (x+1)^{3}")
