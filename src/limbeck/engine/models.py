"""Models: loading students, teachers and references, and checking that they belong together before a step is wasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from .. import embedded
from ..errors import LimbeckError
from ..limits import rendered
from ..tasks.base import found
from ..types import Dense, Head, Hidden
from . import hub

_FULL = (MemoryError, torch.OutOfMemoryError)
"""No fault of a folder."""

disable_progress_bar()  # the run has a bar of its own

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Scorer(nn.Module):
    """A causal language model as one module that hands (hidden states, head) of wanted rows to a callback.

    What needs the parameters happens inside ``forward``: wrappers that gather or synchronise parameters around a
    module's forward (DDP, FSDP2) see one forward and one backward.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.dense = not self._knows_head()

    @torch.no_grad()
    def _knows_head(self) -> bool:
        """Whether hidden states and our head are this model's logits: some families do more to them than we know."""
        ids = torch.tensor([[1, 2, 3]], device=next(self.model.parameters()).device)
        mask, rows = torch.ones_like(ids), (torch.zeros_like(ids[0]), torch.arange(3, device=ids.device))
        training = self.model.training
        self.model.eval()
        self.dense = False
        carrier = self(ids, mask, rows, lambda c: c)
        expected = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, :, : self.vocabulary]
        self.model.train(training)
        if isinstance(carrier, Dense):
            return False
        head = carrier.head
        z = carrier.hidden_NH.float() @ head.weight_VH.float().t()
        z = head.scale * (z if head.bias_V is None else z + head.bias_V.float())
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        slack = 1e-3 if expected.dtype == torch.float32 else 5e-2
        return bool((z - expected.float()).abs().max() <= slack * expected.float().abs().max())

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor, rows: tuple[Tensor, Tensor], consume: Callable[[Dense | Hidden], Any]
    ) -> Any:
        """``consume(carrier)``, where row n of the carrier is the state at (rows[0][n], rows[1][n])."""
        causal = causal_model(self.model)
        backbone = causal.get_decoder() if hasattr(causal, "get_decoder") else None
        head = causal.get_output_embeddings()
        if self.dense or backbone is None or backbone is causal or not isinstance(head, nn.Linear):
            logits = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            return consume(Dense(logits[rows][:, : self.vocabulary]))
        hidden = backbone(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        return consume(Hidden(hidden[rows], self._head(causal.config, head)))

    def _head(self, config: Any, head: nn.Linear) -> Head:
        """The output head on the shared vocabulary: rows beyond it are padding and have no mass."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
        softcap = getattr(text, "final_logit_softcapping", None)
        bias = None if head.bias is None else head.bias[: self.vocabulary]
        return Head(head.weight[: self.vocabulary], bias, scale, softcap)


def causal_model(model: Any) -> Any:
    """The causal model below a PEFT wrapper (whose adapters sit inside its layers)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass
class Policy:
    """A model with its tokenizer.

    Attributes:
        scorer: the module (possibly wrapped by Accelerate).
        tokenizer: of the model.
        name: as the user wrote it.
        template: chat template text, or None for the tokenizer's own.
        vocabulary: size that student and teacher share.
    """

    scorer: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str | None = None

    @property
    def model(self) -> Any:
        """The Hugging Face model (or its PEFT wrapper), unwrapped."""
        module = self.scorer
        while hasattr(module, "module"):
            module = module.module
        return module.model

    @property
    def vocabulary(self) -> int:
        """Entries that text may use."""
        module = self.scorer
        while hasattr(module, "module"):
            module = module.module
        return int(module.vocabulary)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.model.parameters()).device

    @property
    def eos(self) -> tuple[int, ...]:
        """Ids that end a response."""
        own = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = own if own is not None else self.tokenizer.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return tuple(int(i) for i in ids if i is not None)

    @property
    def end(self) -> int:
        """The first of them that the shared vocabulary has."""
        return next(i for i in self.eos if i < self.vocabulary)

    @property
    def pad(self) -> int:
        """Id that fills; its positions are masked everywhere."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos[0]

    @property
    def context(self) -> int:
        """Longest text the model reads, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say, without the end of a response."""
        return str(self.tokenizer.decode([i for i in ids if i not in self.eos], skip_special_tokens=True))

    def parameters(self) -> int:
        """Number of parameters, adapters included."""
        return sum(p.numel() for p in self.model.parameters())


def load_policy(
    spec: str | PreTrainedModel,
    role: str,
    *,
    template: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    remote_code: bool = False,
    dtype: torch.dtype | str = torch.float32,
) -> Policy:
    """A model from a folder, a hub name, ``"embedded"``, or an object.

    Weights are read from safetensors only (no pickle), and code from a repository runs only where asked.

    Raises:
        LimbeckError: naming the role, the value and the remedy.
    """
    if not isinstance(spec, str):
        name = getattr(spec, "name_or_path", "") or type(spec).__name__
        spec.eval()  # a constructor leaves dropout on
        tokenizer = tokenizer or _tokenizer_of(spec, role, remote_code)
        chat = _template(tokenizer, template, name) if role == "student" else None
        return Policy(Scorer(spec, len(tokenizer)), tokenizer, name, chat)
    path = str(embedded.path(role if role in ("student", "teacher") else "student")) if spec == "embedded" else spec
    here = found(path, "folder")
    if ("/" in spec or spec.startswith((".", "~"))) and _looks_local(path) and here is None:
        raise LimbeckError(f"{role}={spec!r}: there is no such folder; give a model folder, a hub name, or 'embedded'.")
    path = str(here or path)
    hub.refuse_unreachable(role, spec)
    tokenizer = tokenizer or _tokenizer(path, role, remote_code)
    chat = _template(tokenizer, template, spec) if role == "student" else None  # only its prompts are rendered
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote_code,
            local_files_only=hub.only_here(path),
        )
    except _FULL:
        raise
    except Exception as e:  # a damaged folder fails in ways that nobody has listed
        raise LimbeckError(f"{role}={spec!r}: the model could not be loaded: {_reason(e)}") from None
    model.eval()
    return Policy(Scorer(model, len(tokenizer)), tokenizer, spec, chat)


def speaking(policy: Policy, template: str) -> Policy:
    """The policy with a chat format: ``own`` is its tokenizer's, else a Jinja file or ``plain``."""
    return replace(policy, template=_template(policy.tokenizer, None if template == "own" else template, policy.name))


def _tokenizer_of(model: PreTrainedModel, role: str, remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that lies where a model object came from."""
    name = getattr(model, "name_or_path", "")
    if not name:
        raise LimbeckError(
            f"{role}: the {type(model).__name__} was not loaded from anywhere, so its tokenizer is not known; set its "
            "name_or_path to a folder or hub name that has one."
        )
    hub.refuse_unreachable(role, name)
    return _tokenizer(name, role, remote_code)


def _looks_local(path: str) -> bool:
    """Whether a spec can only be a path: hub names are ``name`` or ``owner/name``."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1


def _tokenizer(path: str, role: str, remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=remote_code, local_files_only=hub.only_here(path)
        )
    except Exception as e:
        raise LimbeckError(f"{role}={path!r}: its tokenizer could not be loaded: {_reason(e)}") from None
    return tokenizer


def _reason(e: Exception) -> str:
    """The first line of what Transformers says, and what can be done."""
    lines = str(e).strip().splitlines()
    line = (lines[0] if lines else type(e).__name__).rstrip(" .:")
    if "trust_remote_code" in str(e):
        return f"{line}; to run the code of its repository, if you trust it, --set remote_code=true."
    return f"{line}; give a model folder or hub name with a tokenizer and safetensors weights (pickles are not read)."


def _template(tokenizer: PreTrainedTokenizerBase, template: str | None, name: str) -> str | None:
    """The chat template text to use; None for the tokenizer's own."""
    if template == "plain":
        return PLAIN_TEMPLATE
    if template is not None:
        file = found(template, "file")
        if file is None:
            raise LimbeckError(f"template={template!r}: there is no such file; give a Jinja file or 'plain'.")
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise LimbeckError(
                f"template={template!r}: it cannot be read ({e}); give a Jinja file in UTF-8, or 'plain'."
            ) from None
    if not getattr(tokenizer, "chat_template", None):
        raise LimbeckError(
            f"the tokenizer of {name!r} has no chat template; give one with --set template=FILE.jinja, or "
            "--set template=plain to use the message text as it is."
        )
    return None


LONGEST = 10_000_000
"""Characters of a rendered conversation; no model reads as many."""


def render_text(policy: Policy, messages: list[dict[str, str]]) -> str:
    """A conversation as its chat template writes it, ready for the assistant's reply."""
    try:
        return rendered(
            lambda: str(
                policy.tokenizer.apply_chat_template(
                    messages, chat_template=policy.template, add_generation_prompt=True, tokenize=False
                )
            ),
            LONGEST,
        )
    except Exception as e:  # a template is a program, and may fail as any does
        said = next(iter(str(e).splitlines()), type(e).__name__).rstrip(".")
        raise LimbeckError(
            f"the chat template of {policy.name!r} cannot render {str(messages)[:80]} ({said}); give "
            "another with --set template=FILE.jinja or template=plain."
        ) from None


def render(policy: Policy, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's reply."""
    text = render_text(policy, messages)
    ids: list[int] = policy.tokenizer(text, add_special_tokens=policy.template == PLAIN_TEMPLATE)["input_ids"]
    return ids


def share_vocabulary(student: Policy, *others: Policy) -> None:
    """Restrict all models to the entries they share, or refuse.

    Embedding matrices padded to different sizes are no difference: only what the tokenizers know counts.

    Raises:
        LimbeckError: naming tokens that differ and what can be done.
    """
    own = student.tokenizer.get_vocab()
    for other in others:
        theirs = other.tokenizer.get_vocab()
        shared = min(_size(own), _size(theirs))
        clash = {t for t, i in own.items() if i < shared and theirs.get(t) != i}
        clash |= {t for t, i in theirs.items() if i < shared and own.get(t) != i}
        if clash:
            some = ", ".join(
                f"{t!r} is {own.get(t, 'absent')} / {theirs.get(t, 'absent')}"
                for t in sorted(clash, key=lambda t: (own.get(t, shared), t))[:3]
            )
            raise LimbeckError(
                f"{student.name!r} and {other.name!r} have different vocabularies: {len(clash)} of {shared} ids differ "
                f"({some}); use models of one family, or distil from the other model's text with sft."
            )
    size = min([_size(own), *(_size(o.tokenizer.get_vocab()) for o in others)])
    for policy in (student, *others):
        rows = policy.model.get_input_embeddings().num_embeddings
        if rows < size:
            raise LimbeckError(
                f"{policy.name!r} has embeddings for {rows} tokens, but its tokenizer has "
                f"{_size(policy.tokenizer.get_vocab())}; give it its own tokenizer, or resize its embeddings."
            )
        policy.scorer.vocabulary = size
    _refuse_endless(student)


def _size(vocabulary: Mapping[str, int]) -> int:
    """Rows that a vocabulary needs: more than its entries where ids have gaps."""
    return max(vocabulary.values(), default=-1) + 1


def _refuse_endless(student: Policy) -> None:
    """Refuse a student that cannot end a response."""
    if not student.eos:
        raise LimbeckError(
            f"{student.name!r} has no token that ends a response; set eos_token_id in its generation_config.json."
        )
    if min(student.eos) >= student.vocabulary:
        token = student.tokenizer.convert_ids_to_tokens(min(student.eos))
        raise LimbeckError(
            f"{student.name!r} ends a response with {token!r}, which the other model's vocabulary lacks; use models of "
            "one family."
        )


def add_lora(policy: Policy, rank: int, alpha: int) -> None:
    """Wrap the model in LoRA adapters on every linear layer but the head (PEFT's ``all-linear``)."""
    from peft import LoraConfig, get_peft_model

    largest = max(
        (min(m.in_features, m.out_features) for m in policy.model.modules() if isinstance(m, nn.Linear)), default=0
    )
    if rank > largest:
        raise LimbeckError(
            f"lora_rank={rank} is more than any layer of {policy.name!r} has (at most {largest}); give less, or 0 to "
            "train all weights."
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    policy.scorer.model = get_peft_model(policy.scorer.model, config)


def freeze(policy: Policy) -> Policy:
    """No gradient ever enters it."""
    policy.model.requires_grad_(False)
    policy.model.eval()
    return policy
