"""The command ``limbeck``: one file for each command, and ``app`` puts them together.

Each command's file (``train``, ``demo``, ``evaluate``, ``sample``, ``compare``, ``explain``, ``methods``, ``pipeline``,
``report``) holds its arguments, its help and its output. The other files serve several commands: ``settings`` turns
what was typed into a checked configuration, ``exits`` turns every error into one sentence and an exit status, and
``output`` prints JSON and tables.

Help, ``methods``, ``explain``, ``diff`` and a mistyped command answer in a fraction of a second, because the modules of
this folder import neither PyTorch nor Transformers at the top. Modules that do (the engine, tasks, reports) are
imported inside the function that needs them, after everything that can be checked without them has been checked.
"""

from .app import main

__all__ = ["main"]
