"""The installer's decisions, and that its inputs hang together."""

from __future__ import annotations

import re
import subprocess
import tomllib


def test_pip_settings_reads_files_and_environment(installer):
    listing = ":env:.find-links='/b'\nglobal.cert='/etc/c.crt'\nglobal.find-links='/a'\nnonsense\n"
    settings = installer.pip_settings(listing)
    assert settings["cert"] == "/etc/c.crt"
    assert settings["find-links"] == "/b", "the environment wins, as in pip"


class Offers:
    """The versions that uv would install with some options; records the calls."""

    def __init__(self, **versions):
        self.versions, self.asked = versions, []

    def __call__(self, options):
        self.asked.append(options)
        return self.versions.get("local" if "--no-index" in options else "cpu", "")


def decide(installer, links, offers, *, gpu=False, linux=True):
    return installer.torch_options(links, gpu, linux, offers)[0]


def test_a_wheel_on_disk_is_taken_first(installer):
    offers = Offers(local="2.13.0+cpu", cpu="2.13.0+cpu")
    assert decide(installer, ["/a", "/b"], offers) == ("--find-links", "/a", "--find-links", "/b")
    assert offers.asked == [("--no-index", "--find-links", "/a", "--find-links", "/b")]


def test_without_a_gpu_the_cpu_build_then_the_registry(installer):
    assert decide(installer, ["/a"], Offers(cpu="2.13.0+cpu")) == ("--torch-backend", "cpu")
    assert decide(installer, [], Offers(cpu="2.13.0+cpu")) == ("--torch-backend", "cpu")
    assert decide(installer, ["/a"], Offers()) == ()


def test_with_a_gpu_the_registry_even_if_a_cpu_wheel_is_there(installer):
    assert decide(installer, ["/a"], Offers(local="2.13.0+cpu", cpu="2.13.0+cpu"), gpu=True) == ()
    assert decide(installer, ["/a"], Offers(local="2.13.0"), gpu=True) == ("--find-links", "/a")


def test_elsewhere_than_linux_the_registry(installer):
    offers = Offers(cpu="2.13.0+cpu")
    assert decide(installer, [], offers, linux=False) == ()
    assert offers.asked == []


def test_every_version_comes_from_the_constraints(installer):
    assert installer.uv_install("x")[1:] == ["pip", "install", "--constraint", str(installer.CONSTRAINTS), "x"]
    assert re.search(r"^torch==", installer.CONSTRAINTS.read_text(), re.MULTILINE)


def test_fingerprint_keeps_its_inputs_apart(installer):
    assert installer.fingerprint("a", "b") != installer.fingerprint("ab", "")


def test_everything_that_pyproject_names_is_pinned(root, installer):
    project = tomllib.loads((root / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    wanted += [each for extra in extras.values() for each in extra]
    pinned = {re.split(r"[=;\s]", line)[0] for line in (root / "constraints.txt").read_text().splitlines()}
    names = {re.split(r"[\[<>=~!; ]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names <= pinned, "run `make pins`"
    assert set(installer.EXTRAS.split(",")) <= set(extras)


def test_make_help_lists_every_target(root):
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for target in ("install", "demo", "test", "check", "docs", "smollm2", "clean", "help"):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.MULTILINE), target


def test_an_old_python_gets_one_sentence(root, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "install", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("error: Limbeck needs Python 3.11 or newer")
    assert "Traceback" not in done.stderr
