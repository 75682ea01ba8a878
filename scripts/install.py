"""Make ``.venv`` with everything in it. Called by ``make install``; it needs only the standard library.

Nearly all of it is one ``uv pip install -c constraints.txt``. uv alone would not do, for three reasons. A bare clone
has no uv, so it is installed into ``.venv`` first. uv does not read pip's settings for a registry, certificates and
local wheels, so they are passed on. And PyPI's build of PyTorch for Linux brings several GB of CUDA, while
``uv pip install --torch-backend=auto`` fails if PyTorch's own index cannot be reached, so the build is chosen here:
from pip's local wheels, else from PyTorch's index of CPU builds, else from the registry.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / ".limbeck-installed"
CONSTRAINTS = ROOT / "constraints.txt"
UV = "uv==0.9.30"
EXTRAS = "peers,smollm2,textworld,trackers"


class InstallError(RuntimeError):
    """The installation failed; the message is one sentence."""


# ---------------------------------------------------------------- deciding: pure functions


def pip_settings(listing: str) -> dict[str, str]:
    """The settings in the output of ``pip config list`` (``global.find-links='...'``); the environment wins."""
    settings: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        key, mark, value = line.partition("=")
        if not mark:
            continue
        try:
            text = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            text = value.strip()
        settings[key.rsplit(".", 1)[-1].strip()] = text  # without the section (`global.`, `install.`, `:env:.`)
    return settings


def torch_options(
    links: Sequence[str], gpu: bool, linux: bool, offered: Callable[[tuple[str, ...]], str]
) -> tuple[tuple[str, ...], str]:
    """The options of uv that select a build of PyTorch, and a sentence that says why.

    Args:
        links: pip's find-links.
        gpu: whether the machine has an NVIDIA GPU.
        linux: whether it runs Linux, where PyPI's build brings CUDA.
        offered: the version that uv would install with some options; empty if there is none.
    """
    local = tuple(word for link in links for word in ("--find-links", link))
    version = offered(("--no-index", *local)) if local else ""
    if version and not (gpu and version.endswith("+cpu")):
        return local, f"PyTorch {version} from {' '.join(links)}, where pip looks for wheels"
    if gpu or not linux:
        return (), "PyTorch from the package registry" + (", with CUDA for the NVIDIA GPU" if gpu else "")
    if version := offered(("--torch-backend", "cpu")):
        return ("--torch-backend", "cpu"), f"PyTorch {version}, because this machine has no NVIDIA GPU"
    return (), "PyTorch with CUDA (several GB), because PyTorch's own index of CPU builds cannot be reached"


def fingerprint(*texts: str) -> str:
    """A digest that changes whenever an input of the installation does."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# ---------------------------------------------------------------- looking and doing


def run(command: Sequence[str], env: dict[str, str] | None = None, tries: int = 2) -> bool:
    """Run a command that uses the network, and repeat it once if it fails, because downloads sometimes fail."""
    for attempt in range(1, tries + 1):
        if subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            return True
        if attempt < tries:
            print("  That failed; trying once more in 5 seconds.", flush=True)
            time.sleep(5)
    return False


def pip_configuration() -> dict[str, str]:
    """pip's settings, from its files and from the environment."""
    settings: dict[str, str] = {}
    for python in (sys.executable, str(BIN / "python")):
        listing = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
        settings = {**pip_settings(listing.stdout), **settings}
    variables = {"find-links": "PIP_FIND_LINKS", "index-url": "PIP_INDEX_URL", "cert": "PIP_CERT"}
    return {**settings, **{key: os.environ[name] for key, name in variables.items() if os.environ.get(name)}}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """Environment variables that tell uv the user's registry and certificates, because it does not read pip's files."""
    env = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    if "index-url" in settings:
        env.setdefault("UV_DEFAULT_INDEX", settings["index-url"])
    if "cert" in settings:
        env.setdefault("SSL_CERT_FILE", settings["cert"])
    return env


def has_gpu() -> bool:
    """Whether an NVIDIA driver is installed."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def make_venv() -> None:
    """Create ``.venv`` with uv in it, unless it works already, has this Python's version and was made in this place."""
    python = BIN / "python"
    version = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    # The programs in a copied or moved environment still start the Python of the old place.
    here = (VENV / "pyvenv.cfg").is_file() and str(VENV) in (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
    works = here and python.exists() and subprocess.run([str(python), "-c", version], check=False).returncode == 0
    if not works:
        print(f"  Making .venv with Python {platform.python_version()}", flush=True)
        done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, check=False)
        if done.returncode:
            raise InstallError(f"{sys.executable} cannot make a virtual environment (on Debian: install python3-venv).")
    if not run([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", UV]):
        raise InstallError(f"pip could not install {UV}: is the package registry reachable?")


def uv_install(*words: str) -> list[str]:
    """The command ``uv pip install`` with the pinned versions."""
    return [str(BIN / "uv"), "pip", "install", "--constraint", str(CONSTRAINTS), *words]


def offered_torch(options: tuple[str, ...], env: dict[str, str]) -> str:
    """The version of PyTorch that uv would install with these options; empty if there is none."""
    impatient = {**env, "UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "1"}
    command = uv_install("--dry-run", "--reinstall", "--no-deps", "torch", *options)
    done = subprocess.run(command, env=impatient, capture_output=True, text=True, check=False)
    found = re.search(r"^ \+ torch==(\S+)", done.stderr, re.MULTILINE)
    return found[1] if found and done.returncode == 0 else ""


def install(settings: dict[str, str]) -> None:
    """Install everything."""
    env = uv_environment(settings)
    links = settings.get("find-links", "").split()
    options, why = torch_options(links, has_gpu(), sys.platform.startswith("linux"), lambda o: offered_torch(o, env))
    print(f"  {why}", flush=True)
    if not run(uv_install(*options, "--group", "dev", "--editable", f".[{EXTRAS}]"), env):
        raise InstallError(f"uv could not install the packages; its messages are above.{compiler_hint()}")


def compiler_hint() -> str:
    """A likely cause on a bare machine: pycosat, which reasoning-gym needs, is compiled from C."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if headers.exists() and any(map(shutil.which, ("cc", "gcc", "clang"))):
        return ""
    return " This machine has no C compiler or no Python headers (on Debian: install gcc and python3-dev)."


def try_out() -> None:
    """Import the large packages once, to check that they work and to compile their bytecode before the demo.

    Warnings are off, because the source of one package provokes SyntaxWarnings when Python compiles it. Limbeck is not
    imported, because the tests check its code.
    """
    print("  Trying it out", flush=True)
    code = "import torch, reasoning_gym; from transformers import AutoTokenizer, LlamaForCausalLM"
    command = [str(BIN / "python"), "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InstallError(f"the packages are installed, but they cannot be imported: {reason}")


def main() -> int:
    """Install, unless nothing has changed since the last time."""
    start = time.monotonic()
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"error: Limbeck needs Python 3.11 or newer, and this is {platform.python_version()}.", file=sys.stderr)
        return 2
    inputs = [path.read_text(encoding="utf-8") for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__))]
    wanted = fingerprint(str(ROOT), platform.python_version(), *inputs)
    try:
        if STAMP.is_file() and STAMP.read_text() == wanted and (BIN / "limbeck").exists():
            return 0
        print("Installing Limbeck into .venv (a minute or two, once):", flush=True)
        make_venv()
        install(pip_configuration())
        try_out()
        STAMP.write_text(wanted)
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Installed in {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
