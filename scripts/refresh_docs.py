"""Bring what pages print up to date: run their Python blocks and rewrite the blocks marked ``<!-- output -->``.

    .venv/bin/python scripts/refresh_docs.py            every page
    .venv/bin/python scripts/refresh_docs.py docs/space.md

Also writes the table of methods into README.md. Tests compare the same blocks (tests/docs); this only spares the
copying. Look at the difference before you commit it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- (not executed|output)(?:: .*?)? -->\s*$")


def refreshed(text: str, page: str) -> str:
    """The page with what its blocks print now."""
    names: dict[str, Any] = {"__name__": "__page__"}
    out, at, printed = [], 0, ""
    for found in BLOCK.finditer(text):
        mark = MARK.search(text[: found.start()].rstrip())
        kind = mark[1] if mark else ""
        if kind == "output":
            out += [text[at : found.start()], f"```{found[1]}\n{printed.strip()}\n```"]
            at = found.end()
        elif found[1] == "python" and kind != "not executed":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                line = text[: found.start()].count("\n") + 1
                exec(compile("\n" * line + found[2], page, "exec"), names)
            printed = said.getvalue()
    return "".join([*out, text[at:]])


def with_table(text: str) -> str:
    """README.md with the table of the registry."""
    sys.path.insert(0, str(ROOT / "docs"))
    import gen_pages

    return re.sub(
        r"^\| method \|.*?(?=\n\n)", lambda _: gen_pages.methods_table(), text, flags=re.DOTALL | re.MULTILINE
    )


def main(words: list[str]) -> None:
    """Refresh the named pages, or all."""
    from limbeck.space.registry import REGISTRY

    pages = [Path(w).resolve() for w in words] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # blocks may write files
        for page in pages:
            known = dict(REGISTRY)
            before = page.read_text(encoding="utf-8")
            now = refreshed(with_table(before) if page.name == "README.md" else before, str(page))
            REGISTRY.clear()
            REGISTRY.update(known)  # a page may register methods of its own
            if now != before:
                page.write_text(now, encoding="utf-8")
                print(f"changed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
