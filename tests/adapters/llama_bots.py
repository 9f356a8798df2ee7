"""LlamaIndex models that compute their replies from what they are shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import PrivateAttr

try:
    from llama_index.core.base.llms.types import ToolCallBlock
except ImportError:  # before 0.14, tool calls are extra arguments
    ToolCallBlock = None  # type: ignore[assignment, misc]


def last_user(messages: Sequence[ChatMessage]) -> str:
    """Return the newest user message's words."""
    return next((m.content or "" for m in reversed(messages) if m.role == MessageRole.USER), "")


class EchoLLM(CustomLLM):
    """Says back the last user message; keeps every prompt it saw."""

    _seen: list[list[ChatMessage]] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=4000, is_chat_model=True)

    def _reply(self, messages: Sequence[ChatMessage]) -> str:
        self._seen.append(list(messages))
        return f"echo: {last_user(messages)}"

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", content=self._reply(messages)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.chat(messages)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        reply = self._reply(messages)

        def pieces() -> Iterator[ChatResponse]:
            for end in range(0, len(reply), 7):
                message = ChatMessage(role="assistant", content=reply[: end + 7])
                yield ChatResponse(message=message, delta=reply[end : end + 7])

        return pieces()

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        async def pieces() -> AsyncIterator[ChatResponse]:
            for piece in self.stream_chat(messages):
                yield piece

        return pieces()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=f"standalone: {prompt.splitlines()[-1]}")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        yield self.complete(prompt)


class ReasonLLM(EchoLLM):
    """Writes as a ReAct agent should: one action, then the answer that the observation gives."""

    def _reply(self, messages: Sequence[ChatMessage]) -> str:
        self._seen.append(list(messages))
        last = messages[-1].content or ""
        if last.startswith("Observation:"):
            return f"Thought: I can answer.\nAnswer: {last.removeprefix('Observation: ')}"
        return 'Thought: I need a tool.\nAction: weather\nAction Input: {"city": "Graz"}'


class ToolLLM(EchoLLM, FunctionCallingLLM):
    """Calls the first tool once for each user message, then says what the tool said."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=4000, is_chat_model=True, is_function_calling_model=True)

    def _answer(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        self._seen.append(list(messages))
        if messages[-1].role == MessageRole.TOOL:
            return ChatResponse(message=ChatMessage(role="assistant", content=messages[-1].content))
        name = f"call-{len(self._seen)}"
        if ToolCallBlock is None:
            return ChatResponse(message=ChatMessage(role="assistant", additional_kwargs={"tool_calls": [name]}))
        call = ToolCallBlock(tool_call_id=name, tool_name="weather", tool_kwargs={"city": "Graz"})
        return ChatResponse(message=ChatMessage(role="assistant", blocks=[call]))

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._answer(messages)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        answer = self._answer(messages)

        async def pieces() -> AsyncIterator[ChatResponse]:
            yield answer

        return pieces()

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        return {"messages": list(chat_history or []) + ([user_msg] if user_msg else [])}

    def get_tool_calls_from_response(self, response: ChatResponse, **kwargs: Any) -> list[ToolSelection]:
        message = response.message
        blocks = [block for block in message.blocks if ToolCallBlock is not None and isinstance(block, ToolCallBlock)]
        names = [block.tool_call_id or "" for block in blocks] or message.additional_kwargs.get("tool_calls", [])
        return [ToolSelection(tool_id=name, tool_name="weather", tool_kwargs={"city": "Graz"}) for name in names]
