"""Make a student by dropping layers of a model; the first, the last and evenly spaced layers between them are kept.

``.venv/bin/python scripts/cut_student.py models/SmolLM2-135M-Instruct models/smollm2-student --layers 15``

The student has the teacher's tokenizer and width, so every method that reads the teacher's full vocabulary can train
it. Fresh from the knife it writes nonsense; distillation is what repairs it.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK = "cut by `scripts/cut_student.py`"
CARD = """# {name}

A student {mark} from `{source}`: {kept} of its {total} layers ({layers}), {size:.1f} million parameters.
It has not been trained since: distil it before use. The licence is that of the model it was cut from.
"""


def spread(total: int, kept: int) -> list[int]:
    """``kept`` of ``total`` layers: the first, the last, and evenly spaced ones between them."""
    if not 1 <= kept <= total:
        raise LimbeckError(f"--layers {kept}: the model has {total} layers; give 1 to {total}.")
    if kept == 1:
        return [0]
    return [(index * (total - 1) + (kept - 1) // 2) // (kept - 1) for index in range(kept)]


def chosen(text: str, total: int) -> list[int]:
    """The layers of ``--keep 0,2,4``, checked."""
    try:
        keep = [int(part) for part in text.split(",")]
    except ValueError:
        raise LimbeckError(f"--keep {text!r} is not a list of layer numbers; write them as 0,2,4.") from None
    if keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= total:
        raise LimbeckError(
            f"--keep {text} is not a list of increasing layer numbers; give numbers from 0 to {total - 1}, each once."
        )
    return keep


def cut(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new model with the layers ``keep`` of ``model``, in that order; ``model`` is not changed.

    A fresh model is built from the cut configuration, rather than layers removed from the old one, so that everything
    that depends on a layer's number (the cache's slots, sliding windows) is set up by the model's own code.
    """
    total = model.config.num_hidden_layers
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    for name, value in model.config.to_dict().items():
        # Per-layer settings, such as `layer_types`, are lists with one entry for each layer.
        if "layer" in name and isinstance(value, list) and len(value) == total:
            setattr(config, name, [value[index] for index in keep])
    new_index = {str(old): str(new) for new, old in enumerate(keep)}
    weights = {}
    for name, tensor in model.state_dict().items():
        head, mark, rest = name.partition(".layers.")
        number, _, tail = rest.partition(".")
        if not mark:
            weights[name] = tensor
        elif number in new_index:
            weights[f"{head}.layers.{new_index[number]}.{tail}"] = tensor
    student = type(model)(config).to(model.dtype)
    try:
        student.load_state_dict(weights)
    except RuntimeError:
        raise LimbeckError(
            f"{type(model).__name__} cannot be cut, because its layers are not in one list; choose another model."
        ) from None
    student.tie_weights()
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def read(source: str) -> PreTrainedModel:
    """Load the model to cut, in the precision in which it was saved."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not (Path(source) / "config.json").is_file():
        raise LimbeckError(f"{source} is not a model folder (it has no config.json); run `make smollm2` to get one.")
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    except (OSError, ValueError) as error:
        raise LimbeckError(
            f"{source} cannot be loaded as a language model ({str(error).splitlines()[0].rstrip('.')}); choose another."
        ) from error


def save(student: PreTrainedModel, source: str, out: Path, card: str, force: bool = False) -> None:
    """Write the student and the tokenizer to a temporary folder, then rename it, so that it is always complete."""
    from transformers import AutoTokenizer

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cut-") as scratch:
        made = Path(scratch) / out.name
        student.save_pretrained(made)
        # A model without a tokenizer (for instance in a test) is allowed.
        if any((Path(source) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            AutoTokenizer.from_pretrained(source).save_pretrained(made)
        (made / "README.md").write_text(card, encoding="utf-8")
        if force and out.exists():
            shutil.rmtree(out)
        made.rename(out)


def check_out(out: Path, source: str, force: bool) -> None:
    """Refuse to overwrite anything except a student that this script wrote."""
    if not out.exists():
        return
    if out.resolve() == Path(source).resolve():
        raise LimbeckError(f"{out} is the model to cut; choose another folder for the student.")
    if not force:
        raise LimbeckError(f"{out} already exists; choose another folder, or add --force to replace it.")
    card = out / "README.md"
    if not card.is_file() or MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise LimbeckError(
            f"{out} was not written by this script, so --force does not replace it; choose another folder."
        )


def make(source: str, out: Path, layers: int | None, keep: str | None, force: bool = False) -> str:
    """Cut ``source``, write the student to ``out``, and return one line that describes it."""
    check_out(out, source, force)
    model = read(source)
    total = model.config.num_hidden_layers
    kept = chosen(keep, total) if keep else spread(total, (total + 1) // 2 if layers is None else layers)
    student = cut(model, kept)
    size = student.num_parameters() / 1e6
    numbers = ", ".join(map(str, kept))
    name = Path(source).resolve().name
    card = CARD.format(name=out.name, mark=MARK, source=name, kept=len(kept), total=total, layers=numbers, size=size)
    save(student, source, out, card, force)
    return f"{out}: {len(kept)} of {total} layers ({numbers}), {size:.1f} million parameters."


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of the model to cut (Hugging Face format)")
    parser.add_argument("out", type=Path, help="folder to write the student to")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layers", type=int, help="how many layers to keep (default: half of them)")
    which.add_argument("--keep", help="which layers to keep, such as 0,2,4")
    parser.add_argument("--force", action="store_true", help="replace a student that this script wrote before")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and print a mistake as one sentence."""
    options = parse(arguments)
    try:
        print(make(options.model, options.out, options.layers, options.keep, options.force))
    except (LimbeckError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
