"""The everyday prompts of the documented example: sound, and the held-out ones really held out."""

from __future__ import annotations

import json
import re


def read(root, name):
    return [json.loads(line) for line in (root / "examples" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def test_everyday_prompts(root):
    train, held_out = read(root, "everyday_prompts"), read(root, "everyday_prompts_heldout")
    assert (len(train), len(held_out)) == (256, 64)
    assert all(set(line) == {"prompt"} for line in train + held_out)
    texts = [line["prompt"] for line in train + held_out]
    assert len(set(map(str.lower, texts))) == len(texts)
    for asked in held_out:
        for seen in train:
            ours, theirs = words(asked["prompt"]), words(seen["prompt"])
            assert len(ours & theirs) / len(ours | theirs) < 0.6, (asked, seen)
