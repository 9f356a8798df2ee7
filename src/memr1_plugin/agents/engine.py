"""What an agent asks of a language model: prompts in, completions out.

The protocol, and the one way to ask (`ask`). `local` runs transformers in this process, `remote` talks to an
OpenAI-compatible server, `memr1_plugin.testing.ScriptedModel` computes replies for tests. What a prompt *says* is the
agents' business (`manager`, `answerer`), what a completion *means* is `operations`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from memr1_plugin.errors import MemoryR1Error, ModelError


class Role(str, Enum):
    """Who is speaking; each role has a LoRA of its own on the one base model."""

    MANAGER = "manager"
    ANSWER = "answer"
    BASE = "base"
    """The base model with no LoRA: LLM extraction, and any role whose LoRA is absent."""


@dataclass(frozen=True)
class Prompt:
    """One prompt in two parts, so that an engine can compute the first part once.

    The tokens of ``fixed`` and ``body`` are computed apart and joined: the boundary is part of the
    prompt's definition, the same in training and serving.
    """

    fixed: str
    """The same for every call of a role: instructions, chat template head."""
    body: str
    """What changes: memories, facts, the question, and the tail that the completion continues."""
    grammar: str | None = None
    """GBNF that the completion must match (`operations`), or None for free text."""
    max_tokens: int = 64
    chat: bool = False
    """True: fixed + body is one user message, put through the model's own chat template (zero-shot
    prompts); what the template writes before the message joins the fixed part, what it writes after it
    (the head of the assistant's reply) joins the body. False: plain text to continue (trained prompts)."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote, and what it cost."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    """How many of ``prompt_tokens`` came from the prefix cache."""
    output_tokens: int
    finished: bool = True
    """False when ``max_tokens`` cut it."""


@dataclass(frozen=True)
class LoraInfo:
    """What a role runs on: the LoRA's name and the hash of the prompt it was trained on."""

    name: str
    prompt_hash: str


@runtime_checkable
class Engine(Protocol):
    """A language model that serves roles. Implementations are thread-safe and batch concurrent calls."""

    @property
    def id(self) -> str:
        """Model, quantisation and device, as `doctor` prints them."""

    def lora(self, role: Role) -> LoraInfo | None:
        """The LoRA loaded for `role`; None: the role runs zero-shot, with the instruction prompt."""

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete each prompt greedily; order is kept. Raises `ModelError`, never returns a stand-in."""

    def close(self) -> None:
        """Release the model; a closed engine raises `ModelError` when asked."""


def ask(engine: Engine, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
    """Complete, and attribute: whatever an engine raises (time-outs, exhausted memory, bugs) comes out as `ModelError`.

    Raises:
        ModelError: the engine failed, or did not return one completion a prompt.
    """
    try:
        completions = engine.complete(prompts, role)
    except MemoryR1Error:
        raise
    except Exception as error:
        raise ModelError(
            f"the engine {type(engine).__name__} failed as {role.value} ({type(error).__name__}: {error}). "
            "Nothing was written; turns stay pending and are managed when it works again."
        ) from error
    if len(completions) != len(prompts):
        raise ModelError(
            f"the engine returned {len(completions)} completions for {len(prompts)} prompts; expected one each."
        )
    return completions
