"""The registry: every named method as a recipe, which is its factory with its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import LimbeckError, expect, nearest, refuse_wrong_types, shown
from .method import Method


@dataclass(frozen=True)
class Recipe:
    """A registered method: a factory with its paper."""

    name: str
    factory: Callable[..., Method]
    title: str
    paper: str
    confidence: str

    @property
    def doc(self) -> str:
        """The docstring: objective, symbols, the source of each default."""
        import inspect

        return inspect.getdoc(self.factory) or ""

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments and their defaults."""
        import inspect

        return {name: p.default for name, p in inspect.signature(self.factory).parameters.items()}

    def __call__(self, *positional: object, **arguments: object) -> Method:
        names = list(self.arguments)
        if len(positional) > len(names):
            raise LimbeckError(
                f"{self.name}: {len(positional)} arguments were given, but it takes {', '.join(names) or 'none'}."
            )
        arguments = {**dict(zip(names, positional, strict=False)), **arguments}
        for key in arguments:
            if key not in self.arguments:
                known = ", ".join(f"{k}={v}" for k, v in self.arguments.items()) or "none"
                raise LimbeckError(
                    f"{self.name}: unknown argument {key!r}{nearest(key, self.arguments)}; it takes {known}."
                )
        refuse_wrong_types(self.name, self.factory, arguments)
        try:
            value = self.factory(**arguments)
        except OverflowError:
            told = ", ".join(f"{k}={shown(v)}" for k, v in arguments.items())
            raise LimbeckError(f"{self.name}: {told}: a number of that size cannot be computed with.") from None
        return replace(value, name=self.name, title=self.title, paper=self.paper, confidence=self.confidence)


REGISTRY: dict[str, Recipe] = {}


def method(paper: str, title: str, confidence: str = "high") -> Callable[[Callable[..., Method]], Recipe]:
    """Register a factory of methods under its own name.

    Args:
        paper: where it is published, for instance ``arXiv:2506.02208``.
        title: what the field calls it.
        confidence: how sure we are of it: ``high``, ``medium`` or ``low``.
    """

    def register(factory: Callable[..., Method]) -> Recipe:
        recipe = Recipe(factory.__name__, factory, title, paper, confidence)
        REGISTRY[recipe.name] = recipe
        return recipe

    return register


def get(name: str) -> Recipe:
    """The registered method of that name.

    Raises:
        LimbeckError: with the nearest name.
    """
    from . import methods

    del methods  # importing it fills the registry
    if not isinstance(name, str) or name not in REGISTRY:
        near = nearest(name, REGISTRY)
        raise LimbeckError(f"unknown method {shown(name)}{near}; `limbeck methods` lists all {len(REGISTRY)}.")
    return REGISTRY[name]


def as_method(x: Method | Recipe | str) -> Method:
    """A method from its name or recipe, which stand for its defaults.

    Raises:
        LimbeckError: with the nearest name, or for anything else.
    """
    value = get(x) if isinstance(x, str) else x
    value = value() if isinstance(value, Recipe) else value
    expect("the method", value, Method, "give a name such as 'kdrl', or a value such as lb.methods.kdrl(coef=0.1)")
    return value
