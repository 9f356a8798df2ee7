"""LlamaIndex messages to what was said, and journal turns back to LlamaIndex messages.

A message that is more than words (tool calls, images, extra arguments) travels whole, as JSON, in its turn's
metadata and comes back equal. Nothing here reads or writes a bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memr1_plugin.adapters._said import Said, plain_json, sayable, strip_recalled
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.types import Turn

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
except ImportError as error:
    raise MissingExtraError.of("llama-index-core", "llama-index") from error

_ROLES = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_BACK = {"user": MessageRole.USER, "assistant": MessageRole.ASSISTANT, "system": MessageRole.SYSTEM}


def words(message: ChatMessage) -> str:
    """Return the words of a message, our own recalled block left out; "" if it holds none (a tool call)."""
    return strip_recalled(message.content or "")


def said_of(message: ChatMessage, key: str = "") -> Said:
    """Return what `message` says; ``key`` is its identity, since LlamaIndex's messages have no id."""
    message = without_recalled(message)
    text = message.content or ""
    role = _ROLES.get(message.role, "system")
    payload: dict[str, Any] = {}
    back = _BACK.get(role)
    if back is None or message != ChatMessage(role=back, content=sayable(text).strip()) or not text.strip():
        payload = {"_llama_index": plain_json(message.model_dump(mode="json"))}
    return Said(role, text, "", key, payload)


def without_recalled(message: ChatMessage) -> ChatMessage:
    """Return `message` without our own recalled block; the same object if it holds none."""
    texts = [block.text for block in message.blocks if isinstance(block, TextBlock)]
    if all(strip_recalled(text) == text for text in texts):
        return message
    message = message.model_copy(deep=True)
    for block in message.blocks:
        if isinstance(block, TextBlock):
            block.text = strip_recalled(block.text)
    return message


def message_of(turn: Turn) -> ChatMessage | None:
    """Return the message that a turn came from; None for a turn of another framework that has no words here."""
    if "_llama_index" in turn.metadata:
        return ChatMessage.model_validate(dict(turn.metadata["_llama_index"]))
    back = _BACK.get(turn.role)
    foreign = "_langchain" in turn.metadata
    return None if back is None or (foreign and turn.text == "(no text)") else ChatMessage(role=back, content=turn.text)


def messages_of(turns: Sequence[Turn]) -> list[ChatMessage]:
    """Return the messages of a dialogue, in order; new objects, which a framework may change as it likes."""
    return [message for message in map(message_of, turns) if message is not None]


def add_recalled(message: ChatMessage, block: str) -> ChatMessage:
    """Return a copy of `message` that begins with the recalled block."""
    return message.model_copy(update={"blocks": [TextBlock(text=f"{block}\n\n"), *message.blocks]})


def inert(block: str) -> str:
    """Return `block` with the two names spelt apart that context engines fill in wherever they stand."""
    return block.replace("{context_str}", "{ context_str }").replace("{query_str}", "{ query_str }")
