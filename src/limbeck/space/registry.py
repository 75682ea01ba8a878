"""The registry of named methods. A recipe is the factory of a method with its title, paper and confidence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import LimbeckError, expect, nearest, refuse_wrong_types, shown
from .method import Method

CONFIDENCES = ("high", "medium", "low")

THEIR_ARGUMENTS = {"num_generations": "group", "num_iterations": "updates"}
"""Names of TRL for arguments of methods. The settings of a run accept them; a call of a method names ours."""

T = TypeVar("T")


class _Required:
    """The default of an argument that has none."""

    def __repr__(self) -> str:
        return "(required)"


REQUIRED = _Required()


def parameters_of(factory: Callable[..., object]) -> dict[str, object]:
    """The arguments of a factory with their defaults; ``REQUIRED`` for an argument without one."""
    parameters = inspect.signature(factory).parameters
    return {name: REQUIRED if p.default is p.empty else p.default for name, p in parameters.items()}


def call(name: str, factory: Callable[..., T], arguments: Mapping[str, object]) -> T:
    """Call a factory with arguments, and name the argument that the user gave in an error.

    A factory passes its arguments on under other names (``group`` becomes n of ``sample``), so an error inside it
    names those. The argument at fault is the one without which the error would be another or none.

    Raises:
        LimbeckError: naming the argument, its value and the remedy.
    """
    known = parameters_of(factory)
    takes = ", ".join(f"{k}={v}" for k, v in known.items()) or "none"
    for key in arguments:
        if key not in known:
            ours = THEIR_ARGUMENTS.get(key)
            near = f" (it is {ours!r} here)" if ours in known else nearest(key, known)
            raise LimbeckError(f"{name}: unknown argument {key!r}{near}; it takes {takes}.")
    missing = [key for key, default in known.items() if default is REQUIRED and key not in arguments]
    if missing:
        raise LimbeckError(f"{name}: {missing[0]} is missing and has no default; give it: {name}({missing[0]}=...).")
    refuse_wrong_types(name, factory, arguments)
    made = _refused(factory, arguments)
    if not isinstance(made, LimbeckError | OverflowError):
        return made
    if isinstance(made, OverflowError):
        given = ", ".join(f"{k}={shown(v)}" for k, v in arguments.items())
        raise LimbeckError(f"{name}: {given}: a number is too large to compute with; give a smaller one.") from None
    raise LimbeckError(_named(name, factory, arguments, str(made))) from made


def _refused(factory: Callable[..., T], arguments: Mapping[str, object]) -> T | LimbeckError | OverflowError:
    try:
        return factory(**arguments)
    except (LimbeckError, OverflowError) as e:
        return e


def _named(name: str, factory: Callable[..., object], arguments: Mapping[str, object], sentence: str) -> str:
    """The error's sentence, with the argument that led to it where it names another one."""
    known = parameters_of(factory)

    def without(key: str) -> str:
        return str(_refused(factory, {k: v for k, v in arguments.items() if k != key}))

    blamed = [k for k in arguments if known[k] is not REQUIRED and without(k) != sentence]
    blamed = blamed or [k for k in arguments if known[k] is REQUIRED]
    subject = sentence.partition(";")[0]
    if not blamed or any(re.search(rf"\b{re.escape(key)}\b", subject) for key in blamed):
        return sentence
    if len(blamed) == 1:  # rewrite "n of sample is 0; ..." and "per='some': ..." with the argument's name
        key, value = blamed[0], arguments[blamed[0]]
        renamed = re.sub(rf"^[^;:=]+? is {re.escape(shown(value))}(?=;|,)", f"{key} is {shown(value)}", sentence)
        renamed = re.sub(rf"^\w+={re.escape(repr(value))}(?=:|;|,)", f"{key}={value!r}", renamed)
        if renamed != sentence:
            return f"{name}: {renamed}"
    given = ", ".join(f"{key}={shown(arguments[key])}" for key in blamed)
    return f"{name}({given}): {sentence}"


def claim(kind: str, name: str, factory: Callable[..., object], taken: Callable[..., object] | None) -> None:
    """Raise LimbeckError where another factory has the name; the same definition may be registered again.

    Two definitions are the same if module and qualified name are: a notebook cell that runs again, or a module that is
    reloaded. Methods of Limbeck, and those of another module, cannot be replaced.

    Raises:
        LimbeckError: with the module or file that has the name.
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
    """Raise LimbeckError for anything but a named function whose arguments can all be given by name."""
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
        """The docstring: the computation, its symbols and the source of each default."""
        return inspect.getdoc(self.factory) or ""

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments with their defaults."""
        return parameters_of(self.factory)


@dataclass(frozen=True)
class Recipe(Registered):
    """A registered method."""

    confidence: str

    def __call__(self, *positional: object, **arguments: object) -> Method:
        names = list(self.arguments)
        if len(positional) > len(names):
            raise LimbeckError(
                f"{self.name}: {len(positional)} arguments were given, which are too many; it takes "
                f"{', '.join(names) or 'none'}."
            )
        value = call(self.name, self.factory, {**dict(zip(names, positional, strict=False)), **arguments})
        expect(f"what {self.name} returns", value, Method, "return an lb.Method")
        return replace(value, name=self.name, title=self.title, paper=self.paper, confidence=self.confidence)


REGISTRY: dict[str, Recipe] = {}
"""Every named method. Importing ``limbeck`` fills it, because that imports ``limbeck.methods``."""


def method(paper: str, title: str = "", confidence: str = "high") -> Callable[[Callable[..., Method]], Recipe]:
    """Register a factory of methods under its own name.

    The same definition may be registered again (a notebook cell, a reloaded module). A name of Limbeck or of another
    module is refused.

    Args:
        paper: the publication, for instance ``arXiv:2506.02208``.
        title: the name that the paper gives it; by default the name of the function.
        confidence: the confidence that this is the published method, ``high``, ``medium`` or ``low``.

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
    """The registered method of a name.

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
    """A method from its name or recipe, with its defaults; a ``Method`` is returned as it is.

    Raises:
        LimbeckError: for an unknown name, with the nearest one, and for anything else.
    """
    value = get(x) if isinstance(x, str) else x
    value = value() if isinstance(value, Recipe) else value
    expect("the method", value, Method, "give a name such as 'kdrl', or a value such as lb.methods.kdrl(coef=0.1)")
    return value
