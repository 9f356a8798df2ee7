"""Fixtures that several tests share: where the public data sets are, and the day on which things are said."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with LoCoMo, LongMemEval and the recorded scores; a test that needs it is skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEMR1_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets: {folder} does not exist; set MEMR1_DATA to the folder that holds locomo/")
    return folder


@pytest.fixture
def monday() -> datetime:
    """Monday, 8 May 2023, 13:56 UTC."""
    return datetime(2023, 5, 8, 13, 56, tzinfo=timezone.utc)
