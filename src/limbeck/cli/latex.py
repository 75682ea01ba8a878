"""Formulae in docstrings as text for a terminal: ``\\frac1N\\sum_n`` becomes ``1/N Σ_n``.

It covers the LaTeX that the docstrings of methods use; any other command is printed by its name. Two libraries were
tried on these formulae and print wrong mathematics. pylatexenc 2.11 drops the braces of fractions and indices
(``\\frac{a+b}{c+d}`` becomes ``a+b/c+d``, and ``\\tfrac12`` becomes ``12``); flatlatex 0.15 leaves ``\\mathrm``,
``\\Vert`` and ``\\Big`` as they are.
"""

from __future__ import annotations

import re

GREEK = (
    "alphaα betaβ gammaγ deltaδ epsilonε zetaζ etaη thetaθ kappaκ lambdaλ muμ nuν xiξ piπ rhoρ sigmaσ tauτ phiφ chiχ "
    "psiψ omegaω varepsilonε varphiφ GammaΓ DeltaΔ ThetaΘ LambdaΛ PiΠ SigmaΣ PhiΦ PsiΨ OmegaΩ"
)
SYMBOLS = {
    **{word[:-1]: word[-1] for word in GREEK.split()},
    **{"ge": "≥", "geq": "≥", "le": "≤", "leq": "≤", "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "propto": "∝"},
    **{"in": "∈", "notin": "∉", "sim": "~", "pm": "±", "mp": "∓", "cdot": "·", "times": "×", "odot": "⊙", "neg": "¬"},
    **{"to": "→", "rightarrow": "→", "leftarrow": "←", "infty": "∞", "partial": "∂", "nabla": "∇", "ell": "ℓ"},
    **{
        "Vert": " ‖ ",
        "vert": "|",
        "mid": "|",
        "lVert": "‖",
        "rVert": "‖",
        "lvert": "|",
        "rvert": "|",
        "parallel": " ‖ ",
    },
    **{"lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "langle": "⟨", "rangle": "⟩", "circ": "∘"},
    **{"dots": "…", "ldots": "…", "cdots": "…", "cup": "∪", "cap": "∩", "land": "∧", "lor": "∨", "mathbb1": "1"},
    **{",": " ", ";": " ", ":": " ", " ": " ", "!": "", "quad": "  ", "qquad": "   ", "\\": "\n"},
    **{"{": "{", "}": "}", "|": " ‖ ", "_": "_", "%": "%", "&": "&", "#": "#", "$": "$", "top": "T", "star": "*"},
}
SPACED = {"sum": "Σ", "prod": "Π", "int": "∫"}
FRACTIONS = {"frac", "tfrac", "dfrac"}
FACES = {"mathrm", "text", "textrm", "mathcal", "mathbb", "mathbf", "mathit", "mathsf", "operatorname", "boldsymbol"}
ACCENTS = {"tilde": "\u0303", "widetilde": "\u0303", "bar": "\u0304", "overline": "\u0304", "hat": "\u0302"}
SIZES = re.compile(r"(left|right|middle|[bB]igg?[lr]?)$")
POWERS = {"2": "²", "3": "³"}


def readable(tex: str) -> str:
    """The formula as plain text; line breaks stay."""
    text, _ = _until(tex, 0, "")
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"([(\[]) | ([)\],])", r"\1\2", "\n".join(line for line in lines if line))


def _until(tex: str, i: int, end: str) -> tuple[str, int]:
    """The text from position i to the closing ``end`` (or the end of the formula), and the position after it."""
    out = ""
    while i < len(tex) and tex[i] != end:
        segment, i = _next(tex, i, out)
        out += segment
    return out, i + 1


def _next(tex: str, i: int, out: str) -> tuple[str, int]:
    c = tex[i]
    if c == "\\":
        return _command(tex, i + 1, out)
    if c == "{":
        return _until(tex, i + 1, "}")
    if c in "_^":
        return _script(c, *_argument(tex, i + 1), tex)
    return {"&": "", "~": " ", "\n": " "}.get(c, c), i + 1


def _script(mark: str, inner: str, i: int, tex: str) -> tuple[str, int]:
    """An index or an exponent, with a space after it if a letter or digit follows."""
    inner = re.sub(r" *([≥≤=<>∈~+-]) *", r"\1", inner)
    text = mark + (inner if re.fullmatch(r"-?\w+|\*", inner) else f"({inner})")
    if mark == "^" and inner in POWERS:
        text = POWERS[inner]
    return text + (" " if re.match(r"[A-Za-z0-9]|\\[A-Za-z]", tex[i:]) else ""), i


def _argument(tex: str, i: int) -> tuple[str, int]:
    """The argument at position i (a group, a command or one character), and the position after it."""
    while i < len(tex) and tex[i] == " ":
        i += 1
    segment, i = _next(tex, i, "") if i < len(tex) else ("", i)
    return segment.strip(), i


def _command(tex: str, i: int, out: str) -> tuple[str, int]:
    match = re.compile(r"[A-Za-z]+|.", re.DOTALL).match(tex, i)
    name, i = (match.group(), match.end()) if match else ("", i)
    if name in FRACTIONS:
        above, i = _argument(tex, i)
        below, i = _argument(tex, i)
        fraction = f"{_whole(above)}/{_whole(below)}"
        # Parentheses keep apart log (a/b) and (log a)/b, and (a/b)(x) and a/b(x).
        whole = tex[i : i + 1] == "(" or re.search(r"(?<!\w)[a-z]{2,} $", out)
        return _apart(out, f"({fraction})" if whole else fraction, tex[i : i + 1] != "("), i
    if name in FACES:
        return _argument(tex, i)
    if name in ACCENTS:
        inner, i = _argument(tex, i)
        return inner + ACCENTS[name], i
    if name == "sqrt":
        inner, i = _argument(tex, i)
        return f"√{_whole(inner)}", i
    if name in ("begin", "end"):
        return "", _argument(tex, i)[1]
    if SIZES.match(name):
        return "", i + (tex[i : i + 1] == ".")
    if name in SYMBOLS:
        return SYMBOLS[name], i
    opens = re.match(r"[_^(\[]|\\(left|[bB]igg?l?)\b|$", tex[i:])
    return _apart(out, SPACED.get(name, name), not opens), i


def _apart(out: str, word: str, after: bool) -> str:
    """A word with the spaces that it needs before and after it."""
    before = " " if out and (out[-1].isalnum() or out[-1] in ")]|") else ""
    return f"{before}{word}{' ' if after else ''}"


def _whole(text: str) -> str:
    """The text in parentheses, unless it is a single name, number or bracketed expression."""
    return text if re.fullmatch(r"[\w.]+(\([^()]*\))?|\|[^|]*\||\([^()]*\)", text) else f"({text})"


def inline(text: str) -> str:
    """A sentence of a docstring without markup: ``:math:`x```, roles and double back-quotes become plain text."""
    text = re.sub(r":math:`([^`]*)`", lambda m: readable(m.group(1)), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`")
