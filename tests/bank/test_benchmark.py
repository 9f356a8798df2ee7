"""The benchmark runs, and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bank.py"


def test_the_banks_benchmark_runs() -> None:
    """A small run gives every measure; with few items all of the nearest ten are found."""
    command = [sys.executable, str(BENCHMARK), "--items", "400", "--scopes", "4", "--scopes", "1", "--json"]
    many, one = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=240).stdout)
    assert (many["scopes"], one["scopes"]) == (4, 1)
    for found in (many, one):
        assert found["search vectors recall@10"] == 1 and found["insert p95 ms"] > 0 and found["rebuild vectors/s"] > 0
