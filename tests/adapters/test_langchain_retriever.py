"""`MemoryR1Retriever`: LangChain's own standard suite, and what it says about memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests")
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField
from langchain_tests.integration_tests import RetrieversIntegrationTests

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langchain import MemoryR1Retriever

FACTS = ("I live in Graz.", "My cat is called Minka.", "My brother builds boats.", "Tea is what I drink.")


class TestStandard(RetrieversIntegrationTests):
    """LangChain's standard tests for retrievers."""

    @pytest.fixture(autouse=True)
    def _fill(self, memory: Memory) -> None:
        for fact in FACTS:
            memory.observe(fact, scope=Scope(user="ana"))
        self._memory = memory

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MemoryR1Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self._memory, "user_id": "ana"}

    @property
    def retriever_query_example(self) -> str:
        return "Where do I live, what is my cat called, and what does my brother build?"


@pytest.fixture
def filled(memory: Memory) -> Memory:
    for fact in FACTS:
        memory.observe(fact, speaker="Ana", scope=Scope(user="ana"))
    return memory


def test_a_document_says_who_when_and_which(filled: Memory) -> None:
    """page_content reads as said; the metadata has the parts, and the id that correct and forget take."""
    [document] = MemoryR1Retriever(memory=filled, user_id="ana", k=1).invoke("Who builds boats?")
    assert document.page_content.endswith("Ana: My brother builds boats.") and document.page_content.startswith("[")
    assert filled.bank.get(Scope(user="ana"), document.metadata["id"]).text == document.metadata["text"]


def test_the_answer_agent_can_choose(filled: Memory) -> None:
    """recall="agent" keeps what the Answer Agent selects among what was found."""
    found = MemoryR1Retriever(memory=filled, user_id="ana", recall="agent").invoke("Who builds boats?")
    assert [document.metadata["text"] for document in found] == ["My brother builds boats."]


def test_one_retriever_serves_many_users_as_a_configurable(filled: Memory) -> None:
    """With user_id made configurable, each run reads its own user's memories."""
    filled.observe("I live in Porto.", scope=Scope(user="ben"))
    one = MemoryR1Retriever(memory=filled).configurable_fields(user_id=ConfigurableField("user_id"))
    texts = [d.metadata["text"] for d in one.invoke("Where do I live?", {"configurable": {"user_id": "ben"}})]
    assert texts == ["I live in Porto."]


def test_callbacks_fire(filled: Memory) -> None:
    """A handler sees the retriever start and end with its documents."""

    class Seen(BaseCallbackHandler):
        def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
            self.found = list(documents)

    seen = Seen()
    MemoryR1Retriever(memory=filled, user_id="ana").invoke("Where do I live?", {"callbacks": [seen]})
    assert seen.found


def test_a_path_is_enough(tmp_path: Path, filled: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doors that name one file get one Memory of the process."""
    monkeypatch.setattr(Memory, "open", classmethod(lambda cls, path, **options: filled))
    first = MemoryR1Retriever(path=tmp_path / "other.db", user_id="ana")
    second = MemoryR1Retriever(path=str(tmp_path / "other.db"), user_id="ben")
    assert first.door.memory is second.door.memory
