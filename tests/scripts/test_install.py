"""The installer's decisions, and that its inputs hang together."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest


def test_pip_settings_reads_files_and_environment(installer):
    listing = ":env:.find-links='/b'\nglobal.cert='/etc/c.crt'\nglobal.find-links='/a'\nnonsense\n"
    settings = installer.pip_settings(listing)
    assert settings["cert"] == "/etc/c.crt"
    assert settings["find-links"] == "/b", "the environment wins, as in pip"


def test_local_folders_leave_web_pages_out(installer):
    assert installer.local_folders("/a https://x.example/simple file:///b") == ["/a", "/b"]
    assert installer.local_folders("") == []


NAMES = [
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    "torch-2.9.1-cp311-cp311-manylinux_2_28_x86_64.whl",
    "torch-2.14.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl",
    "torch-2.15.0-cp311-none-macosx_11_0_arm64.whl",
    "torchvision-0.30.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    "torch-2.16.0.tar.gz",
]


def test_torch_wheels_fit_this_python_and_machine_newest_first(installer):
    wheels = installer.torch_wheels(NAMES, "/wheels", "cp311", "x86_64")
    assert [wheel.version for wheel in wheels] == ["2.13.0+cpu", "2.9.1"]
    assert installer.torch_wheels(NAMES, "/wheels", "cp310", "x86_64") == []


def decide(installer, names=(), **facts):
    """The arguments of each choice, in order."""
    wheels = installer.torch_wheels(list(names), "/wheels", "cp311", "x86_64")
    choices = installer.torch_choices("2.13.0", wheels, **facts)
    return [(choice.requirement, *choice.options) for choice in choices]


def test_a_wheel_on_disk_is_taken_first(installer):
    wanted = [("torch==2.13.0+cpu", "--find-links", "/wheels")]
    assert decide(installer, NAMES[:1], gpu=False, linux=True) == wanted


def test_without_a_gpu_the_cpu_build_then_the_registry(installer):
    wanted = [("torch==2.13.0", "--torch-backend", "cpu"), ("torch==2.13.0",)]
    assert decide(installer, gpu=False, linux=True) == wanted


def test_with_a_gpu_the_registry_even_if_a_cpu_wheel_is_there(installer):
    assert decide(installer, NAMES[:1], gpu=True, linux=True) == [("torch==2.13.0",)]


def test_elsewhere_than_linux_the_registry(installer):
    assert decide(installer, gpu=False, linux=False) == [("torch==2.13.0",)]


def test_the_last_choice_is_always_taken(installer):
    for gpu in (False, True):
        for linux in (False, True):
            assert not installer.torch_choices("2.13.0", [], gpu, linux)[-1].may_fail


def test_split_constraints(installer):
    pinned, others = installer.split_constraints("six==1.0\ntorch==2.13.0\ntorchdata==0.11\n")
    assert pinned == "2.13.0"
    assert others == "six==1.0\ntorchdata==0.11\n"
    with pytest.raises(installer.InstallError, match="torch=="):
        installer.split_constraints("six==1.0\n")


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
