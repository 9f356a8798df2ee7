"""The examples of the doors run as they stand, and show that the memory reached the model."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDS = {
    "langchain_memory": "langchain_classic",
    "langchain_chat_history": "langchain_core",
    "langchain_agent": "langchain.agents",
    "langchain_retriever": "langchain_core",
    "langchain_tools": "langchain_core",
    "langgraph_store": "langgraph.store.base",
    "llama_index_memory": "llama_index.core",
    "llama_index_block": "llama_index.core",
    "openai_client": "memr1_plugin",
}


@pytest.mark.parametrize("name", NEEDS)
def test_the_example_runs_and_remembers(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the fact that was told before, and is shorter than 60 lines."""
    pytest.importorskip(NEEDS[name])
    file = EXAMPLES / f"{name}.py"
    assert len(file.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(file), str(folder / "bot.db")])
    if name == "llama_index_block":  # LlamaIndex leaves its database connections to the end of the process
        done = subprocess.run([sys.executable, *sys.argv], capture_output=True, text=True, check=True)
        printed = done.stdout
    else:
        runpy.run_path(str(file), run_name="__main__")
        printed = capsys.readouterr().out
    assert "Rex" in printed
