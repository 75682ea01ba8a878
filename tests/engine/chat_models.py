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
    return run, write({"main": data()}, run.session, 1, 0)[0]


def taught(shelf: Shelf, folder: Path, line: dict[str, Any], **own: Any) -> str:
    """What a demonstration teaches, special tokens shown."""
    run, made = record(shelf, folder, line, **own)
    tok = run.session.student.tokenizer
    return "".join(tok.decode([i]) for i in made.token_N.tolist())


def asked(shelf: Shelf, folder: Path, line: dict[str, Any], **own: Any) -> str:
    """What stands in front of it."""
    run, made = record(shelf, folder, line, **own)
    return str(run.session.student.tokenizer.decode(made.ids_L[: int(made.root_B[0])].tolist()))


def call(arguments: Any = None, **more: Any) -> dict[str, Any]:
    """A call of the tool ``add``."""
    arguments = {"a": 2, "b": 3} if arguments is None else arguments
    return {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": arguments}, **more}


TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}

QWEN = (
    "{%- set asked = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set asked.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "<tools>{%- for t in tools %}\n{{ t | tojson }}{%- endfor %}\n</tools><|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{- messages[0].content }}<|im_end|>\n{%- endif %}"
    "{%- for m in messages %}{%- if m.content is string %}{%- set content = m.content %}{%- else %}"
    "{%- set content = '' %}{%- endif %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}"
    "{%- set thought = m.reasoning_content or '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\n' }}{% generation %}"
    "{%- if loop.index0 > asked.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- content }}"
    "{%- for c in m.tool_calls or [] %}{%- if content or not loop.first %}{{- '\n' }}{%- endif %}"
    '{{- \'<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{%- if c.function.arguments is string %}{{- c.function.arguments }}{%- else %}"
    "{{- c.function.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
"""In the style of Qwen 3: tools, calls and results, reasoning of the last turn, a switch, and a generation block."""

LLAMA = (
    "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0].role == 'system' %}{%- set about = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set about = '' %}{%- endif %}"
    "{{- '<|im_start|>system\nToday Date: ' + date_string + '\n\n' + about + '<|im_end|>' }}"
    "{%- if tools %}{{- '<|im_start|>user\n' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    "{{- '\n' + messages[0].content | trim + '<|im_end|>' }}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{- '<|im_start|>ipython\n' + m.content | tojson + '<|im_end|>' }}"
    "{%- elif 'tool_calls' in m %}"
    "{%- if m.tool_calls | length != 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}"
    "{%- endif %}{%- set c = m.tool_calls[0].function %}"
    '{{- \'<|im_start|>assistant\n{"name": "\' + c.name + \'", "parameters": \' }}{{- c.arguments | tojson }}'
    "{{- '}<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""In the style of Llama 3.1: one call a turn, nothing beside it, results as JSON."""

MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set about = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}{%- if m.role == 'user' %}"
    "{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST]' }}{%- if loop.last and about is defined %}{{- about + '\n\n' }}{%- endif %}"
    "{{- m.content + '[/INST]' }}"
    "{%- elif m.tool_calls is defined and m.tool_calls is not none %}{{- '[TOOL_CALLS][' }}"
    "{%- for c in m.tool_calls %}{%- if c.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS]{\"content\": ' + m.content | string + ', \"call_id\": \"' + m.tool_call_id + '\"}' }}"
    "{{- '[/TOOL_RESULTS]' }}"
    "{%- else %}{{- raise_exception('Only user, assistant and tool roles are supported here.') }}{%- endif %}"
    "{%- endfor %}"
)
"""In the style of Mistral: the system's text stands in the last message of the user, calls have identifiers."""
