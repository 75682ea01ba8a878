"""The variables that a chat template reads from outside: messages and tools, and keywords of its own."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """The ``generation`` block of chat templates, which marks the assistant's text; it is only parsed here."""

    tags = {"generation"}  # noqa: RUF012 as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_CHAT = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])


@lru_cache(maxsize=64)
def variables_of(chat_template: str) -> frozenset[str]:
    """Names that a chat template reads from outside; empty for an invalid template, which rendering refuses.

    A name to which the template itself assigns a value counts where the template also tests whether it was given.
    """
    try:
        tree = _CHAT.parse(chat_template)
    except (TemplateError, RecursionError):
        return frozenset()
    own = {n.name for n in tree.find_all(nodes.Name) if n.ctx in ("store", "param")}
    return frozenset(meta.find_undeclared_variables(tree) - (own - asked_for(tree)))


def asked_for(tree: nodes.Template) -> set[str]:
    """Names that a template tests for being defined, or gives a default."""
    tests = [t.node for t in tree.find_all(nodes.Test) if t.name in ("defined", "undefined")]
    tests += [f.node for f in tree.find_all(nodes.Filter) if f.name in ("default", "d") and f.node is not None]
    return {n.name for n in tests if isinstance(n, nodes.Name)}
