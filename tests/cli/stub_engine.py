"""A stub of the engine that records its calls, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from typer.testing import Result

Run = Callable[..., Result]

MEASURED = {"n": 200, "accuracy": 0.25, "low": 0.2, "high": 0.31, "kl_reverse": 0.9, "reward": float("nan")}


@dataclass
class Notes:
    """The calls that the engine received, and what the stub does in addition."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    trouble: BaseException | None = None
    says: str = "progress"

    @property
    def config(self) -> Any:
        """The configuration of the one run that was asked for."""
        ((name, args, _),) = self.calls
        assert name == "train"
        return args[0]

    def take(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Write a call down, make noise as an engine does, and fail if that is wanted."""
        self.calls.append((name, args, dict(kwargs)))
        print("a library prints")
        kwargs["console"].print(self.says)
        if self.trouble:
            raise self.trouble
