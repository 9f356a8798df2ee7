"""What the bank's tests share: an embedder without weights, and an open bank on a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memr1_plugin.bank.bank import Bank
from memr1_plugin.testing import HashEmbedder


@pytest.fixture
def embedder() -> HashEmbedder:
    """An embedder without weights."""
    return HashEmbedder()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's bank is."""
    return tmp_path / "bank.db"


@pytest.fixture
def bank(path: Path, embedder: HashEmbedder) -> Iterator[Bank]:
    """An empty bank on a file."""
    with Bank.open(path, embedder, busy_timeout_s=5.0) as opened:
        yield opened
