"""One base model in memory for both agents: an `Engine` over the very model that is being trained.

The adapter "default" is the policy, "frozen" the other agent's LoRA; a lock covers every switch, and after it the
trainer finds its adapter active and trainable as before. It is no server (`agents.local` is), and it trains nothing.
Two adapters on one quantised base are what makes the Manager's reward affordable on one consumer GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memr1_plugin.agents import tokens
from memr1_plugin.agents.decoding import Decoder
from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.agents.models import trained_prompt_hash
from memr1_plugin.errors import InputError, MissingExtraError, ModelError

try:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as error:
    raise MissingExtraError.of("peft", "train") from error

POLICY = "default"
"""The adapter that is trained; TRL looks for it by this name."""
FROZEN = "frozen"


def share(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    role: Role,
    *,
    start: LoraConfig | str | Path,
    frozen: str | Path | None = None,
) -> tuple[PeftModel, SharedBase]:
    """Put a LoRA to train for `role` and the other agent's frozen one on one base.

    Args:
        base: the loaded (4-bit) model; it is changed in place, as PEFT does.
        role: whose LoRA is trained.
        start: a `LoraConfig` for a fresh LoRA, or the folder of one to go on from (the SFT warm start).
        frozen: the folder of the other agent's LoRA; None: the base answers zero-shot.
    """
    if role is Role.BASE:
        raise InputError("the base has no LoRA to train; expected Role.MANAGER or Role.ANSWER.")
    model: PeftModel
    if isinstance(start, LoraConfig):
        model = get_peft_model(base, start, adapter_name=POLICY)
    else:
        model = PeftModel.from_pretrained(base, str(start), adapter_name=POLICY, is_trainable=True)
    other = Role.ANSWER if role is Role.MANAGER else Role.MANAGER
    adapters: dict[Role, str] = {role: POLICY}
    if frozen is not None:
        model.load_adapter(str(frozen), FROZEN, is_trainable=False)
        model.set_adapter(POLICY)
        adapters[other] = FROZEN
    return model, SharedBase(model, tokenizer, adapters)


class SharedBase:
    """Serves each role with its adapter of a model in training, decoding as `agents.local` does. Thread-safe."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Mapping[Role, str],
        *,
        batch_size: int = 16,
    ) -> None:
        keep_trainable(model)
        self.model, self.batch_size = model, batch_size
        self._adapters = dict(adapters)
        self._lock = threading.RLock()
        # What the policy computed for a prompt's beginning is stale after the next step: only the others keep it.
        self._moving = _LiveDecoder(model, tokenizer, self._adapters, reuse_prefix=False)
        self._still = _LiveDecoder(model, tokenizer, self._adapters, reuse_prefix=True)

    @property
    def id(self) -> str:
        """Says that the weights move."""
        return f"{self.model.config.name_or_path} (in training)"

    def lora(self, role: Role) -> LoraInfo | None:
        """The adapter of `role`, always on the current prompt; None: the base model, zero-shot."""
        if role not in self._adapters:
            return None
        return LoraInfo(self._adapters[role], trained_prompt_hash(role))

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete each prompt greedily, prompts that begin alike and are similarly long together; order is kept."""
        order = sorted(range(len(prompts)), key=lambda n: (prompts[n].chat, prompts[n].fixed, len(prompts[n].body)))
        decoder = self._moving if self._adapters.get(role) == POLICY else self._still
        done: dict[int, Completion] = {}
        with self._lock, _evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                done.update(zip(batch, decoder.complete([prompts[n] for n in batch], role), strict=True))
        return [done[n] for n in range(len(prompts))]

    def close(self) -> None:
        """Nothing to release: the trainer owns the model."""


class _LiveDecoder(Decoder):
    """Serving's decoder, with the trainer's names for adapters."""

    def __init__(self, model: Any, tokenizer: Any, adapters: Mapping[Role, str], *, reuse_prefix: bool) -> None:
        super().__init__(model, tokenizer, reuse_prefix=reuse_prefix)
        self._adapters = adapters

    @contextmanager
    def _speaking_as(self, role: Role) -> Iterator[str]:
        name = self._adapters.get(role)
        with using_adapter(self.model, name):
            yield name or ""


@contextmanager
def _evaluating(model: PeftModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def using_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Make adapter `name` (None: none) the active one; afterwards what was trainable is so again, and only that."""
    if name is None:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    if name not in model.peft_config:
        raise ModelError(f"the model has no adapter {name!r}; it has {sorted(model.peft_config)}.")
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)


def keep_trainable(model: Any) -> None:
    """Keep bitsandbytes from repacking a 4-bit base that is to be trained when it is evaluated in between.

    On CPUs with AVX512-BF16 the first forward in eval mode packs the weights for inference, for good, and the kernel
    that reads them has no gradient: later steps would train on nothing, with a warning at most.

    Raises:
        ModelError: that has happened to this model already.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ModelError(
                    f"the weights of {name} are packed for inference and have no gradient. Load the model anew."
                )
            module.support_avx512bf16_for_cpu = False


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt as serving computes them: its two parts apart, then joined."""
    fixed, body = tokens.encode(tokenizer, prompt)
    return [*fixed, *body]
