"""Policies: a model with its tokenizer, loaded and checked against the other models of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ... import embedded
from ...errors import LimbeckError
from ...tasks.base import found
from ...types import Dense, Head, Hidden, Prompt
from . import hub
from .chat import Chat, template_text
from .checks import check_behaviour, check_weights
from .unloaded import Unloaded, structure
from .weights import FULL, base_of, check_config, is_adapter, load_error, load_weights

disable_progress_bar()  # the run has a progress bar of its own


class Scorer(nn.Module):
    """A causal language model as one module that passes (hidden states, head) of chosen rows to a callback.

    All uses of the parameters happen inside ``forward``: wrappers that gather or synchronise parameters around a
    module's forward (DDP, FSDP2) see one forward and one backward.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.writes = ""
        self.dense = not self._knows_head()

    @torch.no_grad()
    def _knows_head(self) -> bool:
        """Whether hidden states and ``Head`` give this model's logits; some families transform them further."""
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
        """``consume(scores)``, where row n of the scores is the state at sequence rows[0][n], position rows[1][n]."""
        causal = causal_model(self.model)
        backbone = causal.get_decoder() if hasattr(causal, "get_decoder") else None
        head = causal.get_output_embeddings()
        if self.dense or backbone is None or backbone is causal or not isinstance(head, nn.Linear):
            logits = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            return consume(Dense(logits[rows][:, : self.vocabulary]))
        hidden = backbone(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        return consume(Hidden(hidden[rows], self._head(causal.config, head)))

    def _head(self, config: Any, head: nn.Linear) -> Head:
        """The output head on the shared vocabulary; rows beyond it are padding and have no probability."""
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
        format: the chat format in which it reads, where it is not that of its own template.
        vocabulary: size that student and teacher share.
        adapter: whether it was read from an adapter, which is merged.
        was: the half precision of the given weights, where they were converted to float32.
    """

    scorer: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str | None = None
    format: Chat | None = None
    adapter: bool = False
    was: torch.dtype | None = None

    @property
    def model(self) -> Any:
        """The Hugging Face model (or its PEFT wrapper), unwrapped."""
        module = self.scorer
        while hasattr(module, "module"):
            module = module.module
        return module.model

    @property
    def vocabulary(self) -> int:
        """Number of tokens that all models of the run share."""
        module = self.scorer
        while hasattr(module, "module"):
            module = module.module
        return int(module.vocabulary)

    @property
    def inner(self) -> Any:
        """The scorer, unwrapped."""
        module = self.scorer
        while hasattr(module, "module"):
            module = module.module
        return module

    @property
    def writes(self) -> str:
        """The batches in which it generates: ``padded``, ``alike`` (one length), ``alone``; empty before its check."""
        return str(self.inner.writes)

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.model.parameters()).device

    @property
    def chat(self) -> Chat:
        """The chat format in which it reads."""
        if self.format is None:
            self.format = Chat(self.tokenizer, self.template, self.name, self.stops)
        return self.format

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a response by the model's own settings."""
        own = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = own if own is not None else self.tokenizer.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return tuple(int(i) for i in ids if i is not None)

    @property
    def eos(self) -> tuple[int, ...]:
        """Ids that end a response: the token that its chat format puts after a reply, and the model's own."""
        end = self.chat.end
        return tuple(dict.fromkeys((*(() if end is None else (end,)), *self.stops)))

    @property
    def end(self) -> int:
        """The token with which a written response ends in training.

        Where the format has none, as ``plain``, the first of the model's own that is not the end of a chat turn.
        """
        if self.chat.end is not None:
            return self.chat.end
        own = [i for i in self.stops if i < self.vocabulary]
        return next((i for i in own if i != own_end(self)), own[0])

    @property
    def pad(self) -> int:
        """Id of padding; its positions are masked everywhere."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos[0]

    @property
    def context(self) -> int:
        """Longest text that the model reads, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without the tokens that end a response."""
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
    keywords: Mapping[str, Any] | None = None,
    weights: bool = True,
) -> Policy:
    """A model from a folder, a hub name, ``"embedded"``, or an object.

    Weights are read from safetensors only (no pickle), and code from a repository runs only where asked. Without
    ``weights``, the model has its structure and its tokenizer, and cannot be run.

    Raises:
        LimbeckError: naming the role, the value and the remedy.
    """
    if not isinstance(spec, str):
        name = getattr(spec, "name_or_path", "") or type(spec).__name__
        spec.eval()  # a constructor leaves dropout on
        tokenizer = tokenizer or _tokenizer_of(spec, role, remote_code)
        chat = template_text(tokenizer, template, name, keywords=keywords) if role == "student" else None
        return Policy(_scorer(spec, len(tokenizer), f"{role}={name!r}"), tokenizer, name, chat)
    path = str(embedded.path(role if role in ("student", "teacher") else "student")) if spec == "embedded" else spec
    here = found(path, "folder")
    hub.refuse_absent_model(role, spec)
    path = str(here or path)
    setting = f"{role}={spec!r}"
    if not is_adapter(path):
        check_config(path, setting, remote_code)
    tokenizer = tokenizer or _tokenizer(_tokenizer_path(path, setting), role, remote_code)
    # Prompts are rendered by the student's template alone.
    chat = template_text(tokenizer, template, spec, keywords=keywords) if role == "student" else None
    if not weights:
        empty = Unloaded(structure(path, setting, remote_code), len(tokenizer))
        return Policy(empty, tokenizer, spec, chat, adapter=is_adapter(path))
    model = load_weights(path, setting, remote_code, dtype).eval()
    return Policy(_scorer(model, len(tokenizer), setting), tokenizer, spec, chat, adapter=is_adapter(path))


def _scorer(model: PreTrainedModel, vocabulary: int, setting: str) -> Scorer:
    """The model as a module that scores, after its checks on a short text."""
    check_weights(model, setting)
    try:
        scorer = Scorer(model, vocabulary)
        check_behaviour(model, setting)
    except (*FULL, LimbeckError):
        raise
    except Exception as e:  # a configuration that contradicts itself fails in the first pass, in any way
        message = next(iter(str(e).strip().splitlines()), type(e).__name__).rstrip(" .:")
        raise LimbeckError(
            f"{setting}: the model cannot read a short text ({type(e).__name__}: {message}); correct its config.json, "
            "or give another model."
        ) from None
    return scorer


def _tokenizer_path(path: str, setting: str) -> str:
    """The path of the tokenizer: that of the base model where an adapter's folder has none."""
    here = found(path, "folder")
    if not is_adapter(path) or (here is not None and (here / "tokenizer_config.json").is_file()):
        return path
    return base_of(path, setting)


def speaking(policy: Policy, template: str) -> Policy:
    """A copy of the teacher with a chat format of its own: ``own`` (its tokenizer's), a Jinja file, or ``plain``."""
    setting = "teacher_template"
    text = template_text(policy.tokenizer, None if template == "own" else template, policy.name, setting)
    return replace(policy, template=text, format=Chat(policy.tokenizer, text, policy.name, policy.stops, setting))


def own_end(policy: Policy) -> int | None:
    """The token that ends a turn in the format of the model's own tokenizer; None where it has none."""
    if not getattr(policy.tokenizer, "chat_template", None):
        return None
    return Chat(policy.tokenizer, None, policy.name, policy.stops).end


def _tokenizer_of(model: PreTrainedModel, role: str, remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer at the place from which a model object was loaded."""
    name = getattr(model, "name_or_path", "")
    if not name:
        raise LimbeckError(
            f"{role}: the {type(model).__name__} was not loaded from anywhere, so its tokenizer is not known; give "
            "tokenizer=..., or set its name_or_path to a folder or hub name that has one."
        )
    hub.refuse_unreachable(role, name)
    return _tokenizer(name, role, remote_code)


def _tokenizer(path: str, role: str, remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=remote_code, local_files_only=hub.only_here(path)
        )
    except Exception as e:
        raise LimbeckError(f"{role}={path!r}: its tokenizer could not be loaded: {load_error(e)}") from None
    return tokenizer


def conversation_ids(policy: Policy, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's reply."""
    return policy.chat.ids(Prompt("", tuple(messages)))


def share_vocabulary(student: Policy, *others: Policy) -> None:
    """Restrict all models to the entries they share, or refuse.

    Embedding matrices may be padded to different sizes: only the tokens of the tokenizers count.

    Raises:
        LimbeckError: naming tokens that differ, and the remedy.
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
    if not student.stops:
        raise LimbeckError(
            f"{student.name!r} has no token that ends a response; set eos_token_id in its generation_config.json."
        )
    end = student.chat.end
    lacking = [i for i in (min(student.stops), end) if i is not None and i >= student.vocabulary]
    if lacking:
        token = student.tokenizer.convert_ids_to_tokens(lacking[0])
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


def keep_format(policy: Policy, model: Any) -> None:
    """Give tokenizer and model, before they are saved, the chat template in force and the token that ends its turns."""
    if policy.template is not None:
        policy.tokenizer.chat_template = policy.template
    end, config = policy.chat.end, model.generation_config
    if end is not None and end not in policy.stops and config is not None:
        config.eos_token_id = [*policy.stops, end]


def freeze(policy: Policy) -> Policy:
    """Turn off the gradients of a model."""
    policy.model.requires_grad_(False)
    policy.model.eval()
    return policy
