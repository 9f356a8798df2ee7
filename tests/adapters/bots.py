"""Chat models that compute their replies from what they are shown, for every framework that the doors meet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field


class EchoModel(BaseChatModel):
    """Says back the last user message, word by word when streamed; keeps every prompt it saw."""

    seen: list[list[BaseMessage]] = Field(default_factory=list)
    pause_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _reply(self, messages: Sequence[BaseMessage]) -> AIMessage:
        self.seen.append(list(messages))
        last = next(
            (m.text if isinstance(m.text, str) else m.text() for m in reversed(messages) if m.type == "human"), ""
        )
        return AIMessage(f"echo: {last}")

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._reply(messages))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        await asyncio.sleep(self.pause_s)
        return self._generate(messages)

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._reply(messages)
        if reply.tool_calls:
            calls = [
                {"name": c["name"], "args": str(c["args"]).replace("'", '"'), "id": c["id"], "index": 0}
                for c in reply.tool_calls
            ]
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=calls))
            return
        for word in re.findall(r"\S+\s*", str(reply.content)):
            yield ChatGenerationChunk(message=AIMessageChunk(word))

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(tool, "name", str(tool)) for tool in tools])


class ToolModel(EchoModel):
    """Calls its tool once for each user message, then says what the tool said."""

    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    def _reply(self, messages: Sequence[BaseMessage]) -> AIMessage:
        self.seen.append(list(messages))
        if messages[-1].type == "tool":
            return AIMessage(str(messages[-1].content))
        call = {"name": self.tool, "args": self.arguments, "id": f"call-{len(self.seen)}"}
        return AIMessage("", tool_calls=[call])
