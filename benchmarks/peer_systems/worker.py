"""Speaks to one memory system, in that system's own environment: turns and questions in, memories out.

    python worker.py SYSTEM FOLDER URL

Reads one JSON object a line: {"turn": {...}} observes, {"search": "..."} searches; writes one a line, with the
seconds that it took, what the system holds or found, and the error if it raised. Imports nothing of the project
but for the project's own two systems, so that it runs in an environment where the project is not installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

USER = "conversation"
FOUND = 20
"""Memories asked for by a search; the context budget cuts them."""
_BASE, _EMBEDDER, _KEY = "smollm2", "minilm", "none"
_DIMENSIONS = 384


def said(turn: dict[str, Any]) -> str:
    """A turn as a peer is told it: day, speaker and words, for none of them takes a date beside the text."""
    return f"[{turn['day']}] {turn['speaker']}: {turn['text']}"


class Mem0:
    """mem0, as its README opens it: Qdrant in a folder, one `add` a turn, inference on."""

    def __init__(self, folder: Path, url: str) -> None:
        os.environ.update(MEM0_TELEMETRY="False", MEM0_DIR=str(folder / "home"))
        from mem0 import Memory

        api = {"openai_base_url": url, "api_key": _KEY}
        store = {
            "path": str(folder / "qdrant"),
            "collection_name": "m",
            "embedding_model_dims": _DIMENSIONS,
            "on_disk": True,
        }
        self.memory = Memory.from_config(
            {
                "llm": {"provider": "openai", "config": {"model": _BASE, **api}},
                "embedder": {
                    "provider": "openai",
                    "config": {"model": _EMBEDDER, "embedding_dims": _DIMENSIONS, **api},
                },
                "vector_store": {"provider": "qdrant", "config": store},
                "history_db_path": str(folder / "history.db"),
            }
        )

    def observe(self, turn: dict[str, Any]) -> None:
        self.memory.add([{"role": "user", "content": said(turn)}], user_id=USER)

    def held(self) -> dict[str, str]:
        found = self.memory.get_all(filters={"user_id": USER}, top_k=10_000)
        return {str(m["id"]): m["memory"] for m in found["results"]}

    def search(self, query: str) -> list[str]:
        found = self.memory.search(query, filters={"user_id": USER}, top_k=FOUND)
        return [str(m["id"]) for m in found["results"]]


class PowerMem:
    """PowerMem on SQLite, its zero-server store; intelligent add on, as by default."""

    def __init__(self, folder: Path, url: str) -> None:
        from powermem import Memory

        api = {"openai_base_url": url, "api_key": _KEY}
        self.memory = Memory(
            config={
                "llm": {"provider": "openai", "config": {"model": _BASE, **api}},
                "embedder": {
                    "provider": "openai",
                    "config": {"model": _EMBEDDER, "embedding_dims": _DIMENSIONS, **api},
                },
                "vector_store": {"provider": "sqlite", "config": {"database_path": str(folder / "memories.db")}},
                "telemetry": {"enable_telemetry": False},
            }
        )

    def observe(self, turn: dict[str, Any]) -> None:
        self.memory.add([{"role": "user", "content": said(turn)}], user_id=USER)

    def held(self) -> dict[str, str]:
        found = self.memory.get_all(user_id=USER, limit=10_000)
        return {str(m["id"]): m["memory"] for m in found["results"]}

    def search(self, query: str) -> list[str]:
        found = self.memory.search(query, user_id=USER, limit=FOUND)
        return [str(m["id"]) for m in found["results"]]


class LangMem:
    """LangMem's store manager, inserts and deletes on; the in-memory store, written to a file after each turn."""

    def __init__(self, folder: Path, url: str) -> None:
        from langchain_openai import ChatOpenAI, OpenAIEmbeddings
        from langgraph.store.memory import InMemoryStore
        from langmem import create_memory_store_manager

        api: dict[str, Any] = {"base_url": url, "api_key": _KEY}
        embeddings = OpenAIEmbeddings(model=_EMBEDDER, check_embedding_ctx_length=False, **api)
        self.store = InMemoryStore(index={"dims": _DIMENSIONS, "embed": embeddings})
        self.file = folder / "store.json"
        self.space = ("memories", USER)
        if self.file.exists():
            for key, value in json.loads(self.file.read_text(encoding="utf-8")).items():
                self.store.put(self.space, key, value)
        self.manager = create_memory_store_manager(
            ChatOpenAI(model=_BASE, temperature=0, max_retries=0, timeout=900, **api),
            namespace=("memories", "{langgraph_user_id}"),
            store=self.store,
            enable_deletes=True,
        )
        self.config = {"configurable": {"langgraph_user_id": USER}}

    def observe(self, turn: dict[str, Any]) -> None:
        self.manager.invoke({"messages": [{"role": "user", "content": said(turn)}]}, config=self.config)

    def held(self) -> dict[str, str]:
        items = {item.key: item.value for item in self.store.search(self.space, limit=10_000)}
        self.file.write_text(json.dumps(items), encoding="utf-8")
        return {key: _text(value) for key, value in items.items()}

    def search(self, query: str) -> list[str]:
        return [item.key for item in self.store.search(self.space, query=query, limit=FOUND)]


def _text(value: dict[str, Any]) -> str:
    content = value.get("content", value)
    found = content.get("content", content) if isinstance(content, dict) else content
    return found if isinstance(found, str) else json.dumps(found)


class Memr1:
    """This project with its default settings, on the same server as the others."""

    def __init__(self, folder: Path, url: str) -> None:
        from memr1_plugin import Memory
        from memr1_plugin.embedding import as_embedder

        embedder = as_embedder(None)
        embedder.embed(["loaded before the clock starts"])
        self.memory = Memory.open(folder / "memory.db", engine=self.engine(url), embedder=embedder)

    def engine(self, url: str) -> Any:
        from memr1_plugin.agents.engine import LoraInfo, Role
        from memr1_plugin.agents.models import trained_prompt_hash
        from memr1_plugin.agents.remote import RemoteEngine

        names = {Role.MANAGER: "manager", Role.ANSWER: "answer", Role.BASE: _BASE}
        loras = {role: LoraInfo(role.value, trained_prompt_hash(role)) for role in (Role.MANAGER, Role.ANSWER)}
        return RemoteEngine(url, names, loras=loras)

    def observe(self, turn: dict[str, Any]) -> None:
        at = datetime.fromisoformat(turn["at"])
        self.memory.observe(turn["text"], speaker=turn["speaker"], at=at, id=turn["id"])

    def held(self) -> dict[str, str]:
        from memr1_plugin import Scope

        return {str(item.id): item.text for item in self.memory.bank.items(Scope(), limit=None)}

    def search(self, query: str) -> list[str]:
        return [str(i.id) for i in self.memory.search(query, k=FOUND)]

    def counts(self) -> dict[str, int]:
        """What this process spent, for an engine that the server does not see; and refused operations."""
        return dict(self.memory.stats().counts)


class Memr1Local(Memr1):
    """This project as it is installed: its own engine in its own process."""

    def engine(self, url: str) -> Any:
        from memr1_plugin.agents.engine import Prompt, Role
        from memr1_plugin.agents.local import LocalEngine

        engine = LocalEngine()
        engine.complete([Prompt("", "Loaded before the clock starts", max_tokens=1)], Role.BASE)
        return engine


SYSTEMS: dict[str, Callable[[Path, str], Any]] = {
    "mem0": Mem0,
    "powermem": PowerMem,
    "langmem": LangMem,
    "memr1": Memr1,
    "memr1-local": Memr1Local,
}


def handle(system: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks; return what came of it, errors included: one bad turn must not end the run."""
    reply: dict[str, Any] = {"error": ""}
    start, worked = time.perf_counter(), time.process_time()
    try:
        if "turn" in request:
            system.observe(request["turn"])
        else:
            reply["found"] = system.search(request["search"])
    except Exception as error:  # noqa: BLE001  # a failure of the system is a result
        traceback.print_exc()
        reply["error"] = f"{type(error).__name__}: {error}"[:500]
    reply["seconds"], reply["processor seconds"] = time.perf_counter() - start, time.process_time() - worked
    reply["held"] = system.held()
    if hasattr(system, "counts"):
        reply["counts"] = system.counts()
    return reply


def main() -> None:
    """Answer requests until there are no more. Whatever a system prints goes to the log."""
    replies, sys.stdout = sys.stdout, sys.stderr
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    system = SYSTEMS[sys.argv[1]](folder, sys.argv[3])
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(system, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
