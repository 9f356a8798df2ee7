"""LangChain messages to what was said, and journal turns back to LangChain messages.

A message that is more than words (tool calls, images, ids, metadata) travels whole, as JSON, in its turn's
metadata and comes back equal. Nothing here reads or writes a bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memr1_plugin.adapters._said import Said, plain_json, sayable, strip_recalled
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.types import Turn

try:
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
        BaseMessageChunk,
        ChatMessage,
        HumanMessage,
        SystemMessage,
        message_chunk_to_message,
        message_to_dict,
        messages_from_dict,
    )
except ImportError as error:
    raise MissingExtraError.of("langchain-core", "langchain") from error

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_CLASSES: dict[str, type[BaseMessage]] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}


def content_text(content: Any) -> str:
    """Return the words of a message's content: a string, or the text blocks of a list."""
    if isinstance(content, str):
        return str(content)  # outputs of chains are subclasses of str
    if isinstance(content, BaseMessage):
        return content_text(content.content)
    if isinstance(content, (list, tuple)):
        if content and all(isinstance(part, BaseMessage) for part in content):
            return content_text(next((m for m in reversed(content) if m.type == "human"), content[-1]))
        texts = [part if isinstance(part, str) else _block_text(part) for part in content]
        return "\n".join(text for text in texts if text)
    return "" if content is None else str(content)


def _block_text(block: Any) -> str:
    return str(block.get("text") or "") if isinstance(block, dict) and block.get("type", "text") == "text" else ""


def said_of(message: BaseMessage, key: str = "") -> Said:
    """Return what `message` says; ``key`` names the delivery if the message itself has no id."""
    if isinstance(message, BaseMessageChunk):
        message = message_chunk_to_message(message)
    message = without_recalled(message)
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type, "system")
    role = {"human": "user", "ai": "assistant"}.get(role, role)
    text = content_text(message.content)
    plain = _CLASSES.get(role)
    payload: dict[str, Any] = {}
    if plain is None or message != plain(content=sayable(text).strip()) or not text.strip():
        payload = {"_langchain": plain_json(message_to_dict(message))}
    role = role if role in ("user", "assistant", "system", "tool") else "system"
    return Said(role, text, message.name or "", message.id or key, payload)


def without_recalled(message: BaseMessage) -> BaseMessage:
    """Return `message` without our own recalled block; the same object if it holds none."""
    content = message.content
    if isinstance(content, str):
        clean: Any = strip_recalled(content)
    else:
        clean = [_clean_block(block) for block in content]
    return message if clean == content else message.model_copy(update={"content": clean})


def _clean_block(block: Any) -> Any:
    if isinstance(block, str):
        return strip_recalled(block)
    return {**block, "text": strip_recalled(block["text"])} if isinstance(block.get("text"), str) else block


def message_of(turn: Turn) -> BaseMessage | None:
    """Return the message that a turn came from; None for a turn of another framework that has no words here."""
    if "_langchain" in turn.metadata:
        return messages_from_dict([dict(turn.metadata["_langchain"])])[0]
    plain = _CLASSES.get(turn.role)
    foreign = "_llama_index" in turn.metadata
    return None if plain is None or (foreign and turn.text == "(no text)") else plain(content=turn.text)


def messages_of(turns: Sequence[Turn]) -> list[BaseMessage]:
    """Return the messages of a dialogue, in order."""
    return [message for message in map(message_of, turns) if message is not None]


def recalled_message(block: str) -> BaseMessage:
    """Return the recalled block as a message of its own: a user's, never the system's, since it is only data."""
    return HumanMessage(block)


def add_recalled(message: BaseMessage, block: str) -> BaseMessage:
    """Return a copy of `message` that begins with the recalled block; the message itself stays as it is."""
    content = message.content
    joined: Any
    joined = f"{block}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": block}, *content]
    return message.model_copy(update={"content": joined})
