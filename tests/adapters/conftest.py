"""A real memory on a real file for every door: SQLite, FAISS and the agents; model and embedder compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memr1_plugin import Memory
from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.testing import HashEmbedder, ScriptedModel, words

_LISTED = re.compile(r"^(\d+)\. \[[^\]]*\] [^:]*: (.*)$", re.M)


def _reply(prompt: Prompt, role: Role) -> str:
    """Add every fact; select the memories that share a word with the question."""
    if role is Role.MANAGER:
        return "\n".join("ADD" for line in prompt.body.splitlines() if line.startswith("- ["))
    question = set(words(re.findall(r"Question[^:]*: (.*)", prompt.body)[-1]))
    used = [n for n, text in _LISTED.findall(prompt.body) if question & set(words(text))]
    return f" {' '.join(used[:8])} -> yes" if used else " none"


OpenMemory = Callable[..., Memory]


@pytest.fixture
def open_memory(tmp_path: Path) -> Iterator[OpenMemory]:
    """Open a memory on this test's bank file, as often as a bot restarts."""
    opened: list[Memory] = []

    def open_(name: str = "bot.db", **options: object) -> Memory:
        settings = {"engine": ScriptedModel(_reply), "embedder": HashEmbedder(), **options}
        memory = Memory.open(tmp_path / name, **settings)  # type: ignore[arg-type]
        opened.append(memory)
        return memory

    yield open_
    for memory in opened:
        memory.close()


@pytest.fixture
def memory(open_memory: OpenMemory) -> Memory:
    """One memory."""
    return open_memory()
