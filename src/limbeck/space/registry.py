"""The registry: every named method as a recipe, which is its factory with its paper."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import LimbeckError, expect, nearest, refuse_wrong_types, shown
from .method import Method

CONFIDENCES = ("high", "medium", "low")

T = TypeVar("T")


class _Required:
    """Stands in place of a default that an argument lacks."""

    def __repr__(self) -> str:
        return "(required)"


REQUIRED = _Required()


def parameters_of(factory: Callable[..., object]) -> dict[str, object]:
    """The arguments of a factory and their defaults; ``REQUIRED`` for one that has none."""
    parameters = inspect.signature(factory).parameters
    return {name: REQUIRED if p.default is p.empty else p.default for name, p in parameters.items()}


def call(name: str, factory: Callable[..., T], arguments: Mapping[str, object]) -> T:
    """What a factory makes of arguments; a refusal names the argument that was typed.

    A factory passes its arguments on under other names (``group`` becomes n of ``sample``), and what is refused there
    is refused under those. So the argument whose default would have changed the refusal is looked for, and named.

    Raises:
        LimbeckError: naming the argument, its value and the remedy.
    """
    known = parameters_of(factory)
    takes = ", ".join(f"{k}={v}" for k, v in known.items()) or "none"
    for key in arguments:
        if key not in known:
            raise LimbeckError(f"{name}: unknown argument {key!r}{nearest(key, known)}; it takes {takes}.")
    missing = [key for key, default in known.items() if default is REQUIRED and key not in arguments]
    if missing:
        raise LimbeckError(f"{name}: {missing[0]} is missing and has no default; give it: {name}({missing[0]}=...).")
    refuse_wrong_types(name, factory, arguments)
    made = _refused(factory, arguments)
    if not isinstance(made, LimbeckError | OverflowError):
        return made
    if isinstance(made, OverflowError):
        told = ", ".join(f"{k}={shown(v)}" for k, v in arguments.items())
        raise LimbeckError(f"{name}: {told}: a number of that size cannot be computed with.") from None
    raise LimbeckError(_named(name, factory, arguments, str(made))) from made


def _refused(factory: Callable[..., T], arguments: Mapping[str, object]) -> T | LimbeckError | OverflowError:
    try:
        return factory(**arguments)
    except (LimbeckError, OverflowError) as e:
        return e


def _named(name: str, factory: Callable[..., object], arguments: Mapping[str, object], sentence: str) -> str:
    """The sentence about the argument that led to it, where it speaks of another."""
    known = parameters_of(factory)

    def without(key: str) -> str:
        return str(_refused(factory, {k: v for k, v in arguments.items() if k != key}))

    blamed = [k for k in arguments if known[k] is not REQUIRED and without(k) != sentence]
    blamed = blamed or [k for k in arguments if known[k] is REQUIRED]
    subject = sentence.partition(";")[0]
    if not blamed or any(re.search(rf"\b{re.escape(key)}\b", subject) for key in blamed):
        return sentence
    if len(blamed) == 1:  # "n of sample is 0; ..." and "per='some': ..." are told of the argument itself
        key, value = blamed[0], arguments[blamed[0]]
        renamed = re.sub(rf"^[^;:=]+? is {re.escape(shown(value))}(?=;|,)", f"{key} is {shown(value)}", sentence)
        renamed = re.sub(rf"^\w+={re.escape(repr(value))}(?=:|;|,)", f"{key}={value!r}", renamed)
        if renamed != sentence:
            return f"{name}: {renamed}"
    told = ", ".join(f"{key}={shown(arguments[key])}" for key in blamed)
    return f"{name}({told}): {sentence}"


def claim(kind: str, name: str, factory: Callable[..., object], taken: Callable[..., object] | None) -> None:
    """Raise where a name is another factory's; the same definition may be executed again.

    The same definition is one of the same module and qualified name: a cell of a notebook that is run again, a module
    that is reloaded. What comes with Limbeck, and what another module registered, cannot be replaced.

    Raises:
        LimbeckError: naming who has the name.
    """
    if taken is None:
        return
    if (factory.__module__, factory.__qualname__) != (taken.__module__, taken.__qualname__):
        code = getattr(taken, "__code__", None)
        home = taken.__module__ if taken.__module__.startswith("limbeck.") or not code else code.co_filename
        raise LimbeckError(
            f"{name}: a {kind} of that name is registered already, by {home}; give your function another name."
        )


def check_factory(kind: str, factory: Any, paper: object, title: object) -> None:
    """Raise where something cannot be registered: no function with a name, or arguments that cannot be named."""
    if not callable(factory) or not getattr(factory, "__name__", "").isidentifier() or inspect.isclass(factory):
        raise LimbeckError(f"@{kind} was given {shown(factory)}; put it over a function that has a name.")
    expect(f"the paper of {factory.__name__}", paper, str, "give a text such as 'arXiv:2506.02208', or ''")
    expect(f"the title of {factory.__name__}", title, str, "give a text")
    for p in inspect.signature(factory).parameters.values():
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise LimbeckError(
                f"{factory.__name__}: the argument {p.name!r} cannot be given by name; write every argument out, "
                "without * and /."
            )


@dataclass(frozen=True)
class Registered:
    """A factory that is registered under its own name, with its paper."""

    name: str
    factory: Callable[..., Any]
    title: str
    paper: str

    @property
    def doc(self) -> str:
        """The docstring: what is computed, symbols, the source of each default."""
        return inspect.getdoc(self.factory) or ""

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments and their defaults."""
        return parameters_of(self.factory)


@dataclass(frozen=True)
class Recipe(Registered):
    """A registered method."""

    confidence: str

    def __call__(self, *positional: object, **arguments: object) -> Method:
        names = list(self.arguments)
        if len(positional) > len(names):
            raise LimbeckError(
                f"{self.name}: {len(positional)} arguments were given, but it takes {', '.join(names) or 'none'}."
            )
        value = call(self.name, self.factory, {**dict(zip(names, positional, strict=False)), **arguments})
        expect(f"what {self.name} returns", value, Method, "return an lb.Method")
        return replace(value, name=self.name, title=self.title, paper=self.paper, confidence=self.confidence)


REGISTRY: dict[str, Recipe] = {}
"""Every named method. Importing ``limbeck`` fills it, because that imports ``limbeck.methods``."""


def method(paper: str, title: str = "", confidence: str = "high") -> Callable[[Callable[..., Method]], Recipe]:
    """Register a factory of methods under its own name.

    The same definition may be executed again (a notebook's cell, a reloaded module); a name that comes with Limbeck, or
    that another module registered, is refused.

    Args:
        paper: where it is published, for instance ``arXiv:2506.02208``.
        title: what the field calls it; default: its name.
        confidence: how sure we are of it: ``high``, ``medium`` or ``low``.

    Raises:
        LimbeckError: for a name that is taken, or a function that cannot be registered.
    """
    if callable(paper):
        raise LimbeckError("@method was written without its arguments; write @method(paper='', title='...').")
    if confidence not in CONFIDENCES:
        raise LimbeckError(f"confidence={shown(confidence)}: use one of {', '.join(CONFIDENCES)}.")

    def register(factory: Callable[..., Method]) -> Recipe:
        check_factory("method", factory, paper, title)
        recipe = Recipe(factory.__name__, factory, title or factory.__name__, paper, confidence)
        taken = REGISTRY.get(recipe.name)
        claim("method", recipe.name, factory, taken and taken.factory)
        REGISTRY[recipe.name] = recipe
        return recipe

    return register


def get(name: str) -> Recipe:
    """The registered method of that name.

    Raises:
        LimbeckError: with the nearest name.
    """
    known = REGISTRY
    if not isinstance(name, str) or name not in known:
        near = nearest(name, known)
        raise LimbeckError(
            f"unknown method {shown(name)}{near}; `limbeck methods` lists all {len(known)}, and --import FILE.py "
            "brings your own."
        )
    return known[name]


def as_method(x: Method | Recipe | str) -> Method:
    """A method from its name or recipe, which stand for its defaults.

    Raises:
        LimbeckError: with the nearest name, or for anything else.
    """
    value = get(x) if isinstance(x, str) else x
    value = value() if isinstance(value, Recipe) else value
    expect("the method", value, Method, "give a name such as 'kdrl', or a value such as lb.methods.kdrl(coef=0.1)")
    return value
