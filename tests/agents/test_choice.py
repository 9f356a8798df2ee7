"""The engine that is taken where nobody named one."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memr1_plugin.agents import choice, llamacpp, models
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.testing import HashEmbedder


def without(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    """Let `find_spec` not find some packages."""

    def find(name: str, package: str | None = None) -> Any:
        return None if name in absent else find_spec(name, package)

    for module in (choice, llamacpp, choice.local):
        monkeypatch.setattr(module, "find_spec", find)


def test_transformers_serve_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra `local` there the transformers engine is taken, llama.cpp installed or not."""
    pytest.importorskip("torch")
    pytest.importorskip("xgrammar")
    assert choice.choose().engine == "transformers"
    without(monkeypatch, "xllamacpp")
    assert choice.choose().engine == "transformers"


def test_llamacpp_serves_where_it_alone_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without torch the `cpu` extra serves a model that has a GGUF file, once a process, and the log says why."""
    pytest.importorskip("xllamacpp")
    if llamacpp.find_gguf() is None:
        pytest.skip(f"no weights: {models.PIP_LINE}")
    without(monkeypatch, "torch")
    assert choice.choose().engine == "llama.cpp" and "`local` is not" in choice.choose().why
    assert choice.choose("owner/name").engine == "transformers"
    from memr1_plugin import Memory

    with caplog.at_level(logging.INFO), Memory.open(":memory:", embedder=HashEmbedder()) as memory:
        assert isinstance(memory.engine, llamacpp.LlamaCppEngine)
        assert choice.shared_engine() is memory.engine
    assert "llama.cpp was chosen: the extra `cpu` is installed" in caplog.text
    memory.engine.close()
    again = choice.shared_engine()
    assert again is not memory.engine, "a closed engine is not handed out"
    again.close()


def test_without_any_engine_the_error_names_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither extra there: opening says which to install."""
    monkeypatch.setenv("MEMR1_HOME", str(tmp_path))  # another test's engine may be open, and shared, in this process
    without(monkeypatch, "torch", "xllamacpp")
    with pytest.raises(MissingExtraError, match=r"memr1-plugin\[local\]"):
        choice.shared_engine()
