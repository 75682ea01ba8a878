"""Make ``.venv`` with everything in it. Called by ``make install``; the standard library is all it needs.

Nearly all of it is one ``uv pip install`` against ``constraints.txt``. The rest of this file chooses the build of
PyTorch: the registry's own build for Linux brings several GB of CUDA, which a machine without a GPU has no use for.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / ".limbeck-installed"
CONSTRAINTS = ROOT / "constraints.txt"
UV = "uv==0.9.30"
EXTRAS = "peers,smollm2,textworld,trackers"


class InstallError(RuntimeError):
    """What went wrong, in one sentence."""


@dataclass(frozen=True)
class Wheel:
    """A PyTorch wheel in a local folder."""

    version: str
    folder: str

    @property
    def is_cpu(self) -> bool:
        """Whether its name says that it is the build for machines without a GPU."""
        return "+cpu" in self.version


@dataclass(frozen=True)
class Choice:
    """One way to get PyTorch."""

    requirement: str
    options: tuple[str, ...]
    why: str
    may_fail: bool = False


# ---------------------------------------------------------------- deciding: pure functions


def pip_settings(listing: str) -> dict[str, str]:
    """The settings in what ``pip config list`` prints (``global.find-links='...'``); the environment wins."""
    settings: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        key, mark, value = line.partition("=")
        if not mark:
            continue
        try:
            text = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            text = value.strip()
        # `global.`, `install.`, `:env:.`: which section a setting stands in does not matter here.
        settings[key.rsplit(".", 1)[-1].strip()] = text
    return settings


def local_folders(links: str) -> list[str]:
    """The folders among pip's find-links, which may also be web pages (uv could read those, we cannot list them)."""
    return [link.removeprefix("file://") for link in links.split() if "://" not in link or link.startswith("file://")]


def torch_wheels(names: Sequence[str], folder: str, tag: str, machine: str) -> list[Wheel]:
    """The PyTorch wheels among file names that fit this Python (``cp311``) and machine (``x86_64``), newest first."""
    pattern = re.compile(rf"torch-([^-]+)-{re.escape(tag)}-[^-]+-[^-]*{re.escape(machine)}\.whl", re.IGNORECASE)
    found = [Wheel(match.group(1).replace("%2B", "+"), folder) for match in map(pattern.fullmatch, names) if match]
    return sorted(found, key=lambda wheel: [int(part) for part in re.findall(r"\d+", wheel.version)], reverse=True)


def torch_choices(pinned: str, wheels: Sequence[Wheel], gpu: bool, linux: bool) -> list[Choice]:
    """The ways to get PyTorch on this machine, best first. Where the first cannot be had, the next is tried."""
    fitting = [wheel for wheel in wheels if not (gpu and wheel.is_cpu)]
    if fitting:
        wheel = fitting[0]
        why = f"PyTorch {wheel.version} from {wheel.folder}, which pip is set up to look in"
        return [Choice(f"torch=={wheel.version}", ("--find-links", wheel.folder), why)]
    registry = f"torch=={pinned}"
    if gpu:
        return [Choice(registry, (), f"PyTorch {pinned} with CUDA, because this machine has an NVIDIA GPU")]
    if not linux:
        return [Choice(registry, (), f"PyTorch {pinned}")]
    why = f"PyTorch {pinned} for the CPU, because this machine has no NVIDIA GPU"
    large = f"PyTorch {pinned} with CUDA (several GB), because PyTorch's own index of CPU builds cannot be reached"
    return [Choice(registry, ("--torch-backend", "cpu"), why, may_fail=True), Choice(registry, (), large)]


def split_constraints(text: str) -> tuple[str, str]:
    """The pinned version of PyTorch, and all other pins."""
    pinned = re.search(r"^torch==([^\s;]+)", text, re.MULTILINE)
    if not pinned:
        raise InstallError("constraints.txt has no line `torch==VERSION`.")
    return pinned.group(1), re.sub(r"^torch==.*\n?", "", text, flags=re.MULTILINE)


def fingerprint(*texts: str) -> str:
    """Changes whenever an input of the installation does."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# ---------------------------------------------------------------- looking and doing


def run(command: Sequence[str], env: dict[str, str] | None = None, tries: int = 2) -> bool:
    """Run a command that uses the network, once more if it fails: downloads do fail."""
    for attempt in range(1, tries + 1):
        if subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            return True
        if attempt < tries:
            print("  That failed; trying once more in 5 seconds.", flush=True)
            time.sleep(5)
    return False


def pip_configuration() -> dict[str, str]:
    """pip's own settings, from its files and from the environment."""
    settings: dict[str, str] = {}
    for python in (sys.executable, str(BIN / "python")):
        listing = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
        settings = {**pip_settings(listing.stdout), **settings}
    variables = {"find-links": "PIP_FIND_LINKS", "index-url": "PIP_INDEX_URL", "cert": "PIP_CERT"}
    return {**settings, **{key: os.environ[name] for key, name in variables.items() if os.environ.get(name)}}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """Tell uv, which does not read pip's configuration, of the user's own registry and certificates."""
    env = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    if "index-url" in settings:
        env.setdefault("UV_DEFAULT_INDEX", settings["index-url"])
    if "cert" in settings:
        env.setdefault("SSL_CERT_FILE", settings["cert"])
    return env


def find_torch_wheels(links: str) -> list[Wheel]:
    """The PyTorch wheels in pip's local folders that this Python can install."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folders = [folder for folder in local_folders(links) if Path(folder).is_dir()]
    return [wheel for at in folders for wheel in torch_wheels(os.listdir(at), at, tag, platform.machine())]


def has_gpu() -> bool:
    """Whether an NVIDIA driver is there."""
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


def available(choice: Choice, env: dict[str, str]) -> bool:
    """Ask uv, without installing anything, whether it can get PyTorch this way."""
    command = [str(BIN / "uv"), "pip", "install", "--quiet", "--dry-run", "--no-deps", choice.requirement]
    impatient = {**env, "UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "1"}
    done = subprocess.run([*command, *choice.options], env=impatient, capture_output=True, check=False)
    return done.returncode == 0


def install(settings: dict[str, str]) -> str:
    """Install everything; returns the requirement by which PyTorch came."""
    env = uv_environment(settings)
    pinned, others = split_constraints(CONSTRAINTS.read_text(encoding="utf-8"))
    wheels = find_torch_wheels(settings.get("find-links", ""))
    choices = torch_choices(pinned, wheels, has_gpu(), sys.platform.startswith("linux"))
    choice = next(choice for choice in choices if not choice.may_fail or available(choice, env))
    print(f"  {choice.why}", flush=True)
    # PyTorch's own pin is left to the requirement: a wheel's version may carry a suffix such as +cpu.
    pins = VENV / "constraints.txt"
    pins.write_text(others, encoding="utf-8")
    command = [str(BIN / "uv"), "pip", "install", "--constraint", str(pins), choice.requirement, *choice.options]
    command += ["--group", "dev", "--editable", f".[{EXTRAS}]"]
    if not run(command, env):
        raise InstallError(f"uv could not install the packages: its own words are above.{compiler_hint()}")
    return choice.requirement


def compiler_hint() -> str:
    """What may be the matter on a bare machine: one package, pycosat (reasoning-gym wants it), is built from C."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if headers.exists() and any(map(shutil.which, ("cc", "gcc", "clang"))):
        return ""
    return " This machine has no C compiler or no Python headers (on Debian: install gcc and python3-dev)."


def try_out() -> None:
    """Import the heavy packages once: proof that they work, and their bytecode is there when the demo starts.

    Warnings are off, because one package's source provokes SyntaxWarnings, which Python shows when it compiles it.
    Limbeck itself is not imported: a mistake in its code is for the tests to tell, not for the installer.
    """
    print("  Trying it out", flush=True)
    code = "import torch, reasoning_gym; from transformers import AutoTokenizer, LlamaForCausalLM"
    command = [str(BIN / "python"), "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InstallError(f"The packages are installed, but they do not import: {reason}")


def main() -> int:
    """Install unless nothing changed since the last time."""
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
        torch = install(pip_configuration())
        try_out()
        STAMP.write_text(wanted)
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Installed in {time.monotonic() - start:.0f} s, with {torch}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
