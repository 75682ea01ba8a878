"""Tiny students with chat formats of their own: byte-level and SentencePiece-like tokenizers, and templates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiny_runs import Shelf, jsonl, llama, open_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from limbeck.axes import data
from limbeck.engine.rollout.sources import write
from limbeck.types import Rollout

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + OPENING
THINKING = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
"""The prompt opens the reasoning."""
STRIPPING = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
MOVING = CHATML.replace(
    "{{ m['content'] }}",
    "{% set r = m.reasoning_content or m.content.split('</think>')[0].split('<think>')[-1].strip() "
    "if '</think>' in m.content or m.reasoning_content else '' %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip() }}",
)
"""Qwen 3's: the last reply has its reasoning, from a key or from the text, and earlier ones have none."""
TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML.replace(
    "{{ m['content'] }}",
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}",
)
PHI = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
"""A text ends with another token than a turn."""
GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The next message's first token ends a turn."""
ALPACA = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


def tokenizer(
    template: str | None = CHATML,
    *,
    specials: Sequence[str] = SPECIALS,
    eos: str = "<|endoftext|>",
    merges: Iterable[tuple[str, str]] = (),
    post: str | None = None,
    bos: str | None = None,
) -> PreTrainedTokenizerFast:
    """Bytes, what merges make of them, and the specials; ``post`` is what the tokenizer puts around a text."""
    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in merges:
        words[a + b] = len(words)
    made = Tokenizer(models.BPE(vocab=words, merges=list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return _fast(made, template, specials, eos, post, bos)


def sentencepiece(template: str | None = CHATML, *, scheme: str = "first", post: str | None = None) -> Any:
    """Characters, with a mark for the space that is also put in front of a text."""
    alphabet = [chr(i) for i in range(33, 127)] + ["\u2581", "\n"]
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    return _fast(made, template, SPECIALS, "<|endoftext|>", post, None)


def _fast(
    made: Tokenizer, template: str | None, specials: Sequence[str], eos: str, post: str | None, bos: str | None
) -> PreTrainedTokenizerFast:
    made.add_special_tokens(list(specials))
    made.add_tokens(["<think>", "</think>"])
    if post is not None:
        used = [(w, made.token_to_id(w)) for w in post.split() if w != "$A"]
        made.post_processor = processors.TemplateProcessing(single=post, special_tokens=used)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, pad_token="<|pad|>", bos_token=bos)
    fast.chat_template = template
    return fast


def saved(folder: Path, tok: Any, eos: Sequence[str] = ("<|endoftext|>", "<|im_end|>"), seed: int = 1) -> Path:
    """A student's folder whose generation settings stop at ``eos``."""
    model = llama(seed, vocabulary=len(tok))
    model.generation_config = GenerationConfig(
        eos_token_id=tok.convert_tokens_to_ids(list(eos)), pad_token_id=tok.pad_token_id
    )
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def talk(*texts: str, **last: Any) -> dict[str, Any]:
    """A record of alternating messages, the user's first; ``last`` are further keys of the last one."""
    messages: list[dict[str, Any]] = [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]
    messages[-1] |= last
    return {"messages": messages}


def record(shelf: Shelf, folder: Path, line: dict[str, Any], **own: Any) -> tuple[Any, Rollout]:
    """A run of ``sft`` on copies of one line, and what it is taught from."""
    task = jsonl(folder.with_name("lines.jsonl"), [line] * 2)
    settings = {"max_tokens": 64, "eval_size": 0, "task_options": {"test_fraction": 0.0}, "teacher": None, **own}
    run = open_run(shelf, "sft", folder.with_name("run"), student=str(folder), task=str(task), **settings)
    return run, write({"main": data()}, run.session.desk, 1, 0)[0]


def taught(shelf: Shelf, folder: Path, line: dict[str, Any], **own: Any) -> str:
    """What a demonstration teaches, special tokens shown."""
    run, made = record(shelf, folder, line, **own)
    tok = run.session.student.tokenizer
    return "".join(tok.decode([i]) for i in made.token_N.tolist())


def asked(shelf: Shelf, folder: Path, line: dict[str, Any], **own: Any) -> str:
    """What stands in front of it."""
    run, made = record(shelf, folder, line, **own)
    return str(run.session.student.tokenizer.decode(made.ids_L[: int(made.root_B[0])].tolist()))
