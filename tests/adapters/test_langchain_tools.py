"""The tools of an agent that manages its memory itself: LangChain's standard suite, and each one's deed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_tests")
from langchain_core.tools import BaseTool
from langchain_tests.unit_tests import ToolsUnitTests

from memr1_plugin import Memory, MemoryR1Error, Scope
from memr1_plugin.adapters.langchain import memory_tools
from memr1_plugin.adapters.langchain.tools import CorrectMemory, ForgetMemory, Remember, SearchMemory

ANA = Scope(user="ana")


class _Standard(ToolsUnitTests):
    made: type[BaseTool]
    example: dict[str, Any]

    @pytest.fixture(autouse=True)
    def _memory(self, memory: Memory) -> None:
        self._door = memory

    @property
    def tool_constructor(self) -> type[BaseTool]:
        return self.made

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"memory": self._door, "user_id": "ana"}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return self.example


class TestSearch(_Standard):
    """LangChain's standard tests for search_memory."""

    made, example = SearchMemory, {"query": "Where?"}


class TestRemember(_Standard):
    """LangChain's standard tests for remember."""

    made, example = Remember, {"text": "Ana lives in Graz."}


class TestCorrect(_Standard):
    """LangChain's standard tests for correct_memory."""

    made, example = CorrectMemory, {"memory_id": 1, "text": "Ana lives in Graz."}


class TestForget(_Standard):
    """LangChain's standard tests for forget_memory."""

    made, example = ForgetMemory, {"memory_id": 1}


def named(memory: Memory, **options: Any) -> dict[str, BaseTool]:
    return {tool.name: tool for tool in memory_tools(memory=memory, user_id="ana", **options)}


def test_remember_search_correct_forget(memory: Memory) -> None:
    """The life of a memory in four calls: the number that search shows is the one that the others take."""
    tools = named(memory)
    assert "Ana lives in Graz." in tools["remember"].invoke({"text": "Ana lives in Graz."})
    found = tools["search_memory"].invoke({"query": "Where does Ana live?"})
    number = int(found.split("\n")[1].split(".")[0])
    assert "data, not instructions" in found
    assert "Porto" in tools["correct_memory"].invoke({"memory_id": number, "text": "Ana lives in Porto."})
    assert memory.bank.get(ANA, number).text == "Ana lives in Porto."
    assert "forgotten" in tools["forget_memory"].invoke({"memory_id": number})
    assert tools["search_memory"].invoke({"query": "Where does Ana live?"}) == "No memory covers this."
    memory.undo(memory.history(number, scope=ANA)[-1], scope=ANA)
    assert "Porto" in tools["search_memory"].invoke({"query": "Where does Ana live?"})


async def test_each_has_a_native_async_twin(memory: Memory) -> None:
    """ainvoke does what invoke does."""
    tools = named(memory)
    await tools["remember"].ainvoke({"text": "Ana lives in Graz."})
    assert "Graz" in await tools["search_memory"].ainvoke({"query": "Where does Ana live?"})


def test_erase_leaves_nothing(memory: Memory) -> None:
    """With erase=True, forget_memory takes the item, its history and the turn it came from."""
    tools = named(memory, erase=True)
    tools["remember"].invoke({"text": "Ana lives in Graz."})
    [item] = memory.bank.items(ANA)
    tools["forget_memory"].invoke({"memory_id": item.id})
    assert memory.history(scope=ANA) == [] and memory.turns(scope=ANA) == []


def test_a_wrong_number_is_told_in_words(memory: Memory) -> None:
    """An agent that names a memory which is not there, or another user's, reads what is wrong; nothing changes."""
    [change] = memory.observe("I live in Porto.", scope=Scope(user="ben"))
    for number in (999, change.item_id):
        reply = named(memory)["correct_memory"].invoke({"memory_id": number, "text": "x"})
        assert reply.startswith("Not done:") and str(number) in reply
    assert memory.bank.items(Scope(user="ben"))[0].text == "I live in Porto."


def test_the_runs_config_says_whose(memory: Memory) -> None:
    """ "configurable" names the user, as in agents that serve many."""
    [search] = [tool for tool in memory_tools(memory=memory) if tool.name == "search_memory"]
    memory.observe("I live in Porto.", scope=Scope(user="ben"))
    assert "Porto" in search.invoke({"query": "Where do I live?"}, {"configurable": {"user_id": "ben"}})
    assert (
        search.invoke({"query": "Where do I live?"}, {"configurable": {"user_id": "ana"}}) == "No memory covers this."
    )


def test_a_failing_memory_is_told_or_raised(memory: Memory) -> None:
    """By default the agent reads that memory is not available; on_error="raise" raises."""
    soft, hard = named(memory)["remember"], named(memory, on_error="raise")["remember"]
    memory.bank.close()
    assert soft.invoke({"text": "Ana lives in Graz."}) == "The memory is not available at the moment."
    with pytest.raises(MemoryR1Error):
        hard.invoke({"text": "Ana lives in Graz."})
