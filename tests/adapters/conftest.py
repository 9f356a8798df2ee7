"""A real memory on a real file for every door: SQLite, FAISS and the agents; model and embedder compute."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memr1_plugin import Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel

OpenMemory = Callable[..., Memory]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """This test's folder; in RAM where the system has such a place, since a bank waits for the disk at each turn."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shm, prefix="memr1-test-") as name:
        yield Path(name)


@pytest.fixture
def open_memory(folder: Path) -> Iterator[OpenMemory]:
    """Open a memory on this test's bank file, as often as a bot restarts."""
    opened: list[Memory] = []

    def open_(name: str = "bot.db", **options: object) -> Memory:
        settings = {"engine": ScriptedModel.heuristic(), "embedder": HashEmbedder(), **options}
        memory = Memory.open(folder / name, **settings)  # type: ignore[arg-type]
        opened.append(memory)
        return memory

    yield open_
    for memory in opened:
        memory.close()


@pytest.fixture
def memory(open_memory: OpenMemory) -> Memory:
    """One memory."""
    return open_memory()
