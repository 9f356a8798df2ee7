"""What is imported and what is asked for: no framework before its door is opened, and the extra that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

DOORS = [
    ("from memr1_plugin.adapters.langchain import MemoryR1Memory", "langchain_core", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langchain import MemoryR1Memory", "langchain_classic", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langchain import MemoryR1ChatHistory", "langchain_core", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langchain import MemoryR1Middleware", "langchain", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langchain import MemoryR1Retriever", "langchain_core", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langchain import memory_tools", "langchain_core", "memr1-plugin[langchain]"),
    ("from memr1_plugin.adapters.langgraph import MemoryR1Store", "langgraph", "memr1-plugin[langgraph]"),
    ("from memr1_plugin.adapters.llama_index import MemoryR1Memory", "llama_index", "memr1-plugin[llama-index]"),
    ("from memr1_plugin.adapters.llama_index import MemoryR1Block", "llama_index", "memr1-plugin[llama-index]"),
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("line", "missing", "extra"), DOORS)
def test_a_missing_framework_is_told_with_the_extra_that_brings_it(line: str, missing: str, extra: str) -> None:
    """Without the framework, opening its door says which pip install is needed."""
    names = [missing, *(["langchain_core.memory"] if missing == "langchain_classic" else [])]
    done = run(f"import sys\nfor name in {names!r}: sys.modules[name] = None\n{line}")
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr and f"pip install '{extra}'" in done.stderr


def test_opening_no_door_imports_no_framework() -> None:
    """The doors' package and `wrap` load neither LangChain nor LangGraph nor LlamaIndex, and no pydantic."""
    heavy = ["langchain", "langchain_core", "langgraph", "llama_index", "pydantic", "openai", "torch", "transformers"]
    code = "import sys, memr1_plugin.adapters.wrap, memr1_plugin.adapters.langchain"
    assert run(f"{code}\nprint([name for name in {heavy!r} if name in sys.modules])").stdout.strip() == "[]"


def test_a_misspelt_door_is_told() -> None:
    """An attribute that is not there is answered with those that are."""
    done = run("from memr1_plugin.adapters import langchain\nlangchain.MemoryR1Memmory")
    assert "has no attribute 'MemoryR1Memmory'" in done.stderr and "MemoryR1Memory" in done.stderr
