"""A prompt's tokens: the one function that serving and training both use.

Fixed part and body are computed apart and joined, so that the first can be computed once. What the
user's memories and questions say can never become a control token: "<|im_end|>" in a memory is eight
characters of text. No model here, and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memr1_plugin.agents.engine import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\ue000memr1\ue001"
"""Stands for the message while the chat template is rendered; private-use characters that no prompt holds."""


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Return the token ids of (fixed, body); the prompt is their concatenation.

    Plain prompts begin as the tokenizer begins a text (with a BOS token where the model has one); chat
    prompts begin as the chat template does. Nothing is put between the two parts.
    """
    head, tail = _frame(tokenizer, prompt.chat)
    return [*head, *_text(tokenizer, prompt.fixed)], [*_text(tokenizer, prompt.body), *tail]


def _frame(tokenizer: PreTrainedTokenizerBase, chat: bool) -> tuple[list[int], list[int]]:
    """What stands before and after the message: control tokens, which no message can write."""
    if not chat or not getattr(tokenizer, "chat_template", None):
        return _ids(tokenizer("")), []
    message = [{"role": "user", "content": _MARK}]
    whole: Any = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    head, tail = str(whole).split(_MARK, 1)
    return _ids(tokenizer(head, add_special_tokens=False)), _ids(tokenizer(tail, add_special_tokens=False))


def _text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not text:
        return []
    return _ids(tokenizer(text, add_special_tokens=False, split_special_tokens=True))


def _ids(encoded: Any) -> list[int]:
    return [int(i) for i in encoded["input_ids"]]
