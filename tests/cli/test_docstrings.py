"""Docstrings as a terminal shows them."""

from __future__ import annotations

import pytest

from limbeck.cli.docstrings import parse_docstring
from limbeck.cli.latex import inline, readable
from limbeck.methods import REGISTRY
from limbeck.space.registry import Recipe

EXAMPLES = {
    r"-\frac1N\sum_n\log\pi_\theta(y_n)": "-1/N Σ_n log π_θ(y_n)",
    r"\frac{1}{T-t}\sum_{s\ge t}\gamma^{s-t} r_s": "1/(T-t) Σ_(s≥t) γ^(s-t) r_s",
    r"\log\frac{\pi_\theta}{\pi_{ref}}": "log (π_θ/π_ref)",
    r"\frac{\pi_\theta}{\mu}(y_t)": "(π_θ/μ)(y_t)",
    r"\mathrm{KL}(p_\tau\Vert q_\tau)": "KL(p_τ ‖ q_τ)",
    r"\tfrac12 R^2 + x^3": "1/2 R² + x³",
    r"(r_i - \bar r)/(\mathrm{std}\,r + 10^{-6})": "(r_i - r̄)/(std r + 10^-6)",
    r"\exp\Big(\sqrt{a + b}\Big)": "exp(√(a + b))",
    r"\{a \mid b\}": "{a | b}",
    r"\left[ x \right. y": "[x y",
    r"a = 1 \\ b = 2": "a = 1\nb = 2",
    r"\unheardof{x}": "unheardof x",
    r"\begin{aligned} x &= 1 \end{aligned}": "x = 1",
    "x_": "x_()",
    "x\\": "x",
}


@pytest.mark.parametrize("tex", EXAMPLES, ids=range(len(EXAMPLES)))
def test_formulae_become_text(tex: str) -> None:
    assert readable(tex) == EXAMPLES[tex]


def test_markup_inside_a_sentence_is_removed() -> None:
    text = r"with :math:`\rho = \pi`, see :func:`~limbeck.axes.sampled` and ``group``"
    assert inline(text) == "with ρ = π, see `sampled` and `group`"


def test_a_docstring_is_split_into_its_sections() -> None:
    doc = parse_docstring(
        "One line\nand more.\n\n.. math:: a\n   = b\n\nText that\ngoes on.\n\n1. first\n   thing;\n2. second.\n\n"
        "Args:\n    one, two: shared\n        text.\n    three: own.\n\nReturns:\n    four: no argument.\n"
    )
    assert doc.summary == "One line and more."
    blocks = [("formula", "a = b"), ("text", "Text that goes on."), ("item", "1. first thing;"), ("item", "2. second.")]
    assert [(b.kind, b.text) for b in doc.blocks] == blocks
    assert doc.arguments == {"one": "shared text.", "two": "shared text.", "three": "own."}


@pytest.mark.parametrize("recipe", REGISTRY.values(), ids=lambda r: r.name)
def test_every_method_can_be_read(recipe: Recipe) -> None:
    doc = parse_docstring(recipe.doc)
    shown = "\n".join([doc.summary, *(b.text for b in doc.blocks), *doc.arguments.values()])
    for mark in ("\\", ":math:", ".. math", "``"):
        assert mark not in shown
    assert doc.summary.endswith(".")
    assert set(doc.arguments) == set(recipe.arguments)
    assert all(doc.arguments.values())
