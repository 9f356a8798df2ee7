"""Killed in the middle: what was acknowledged is there, what was not is whole or absent."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from bank_help import ANA, found, near

from memr1_plugin.bank.bank import Bank
from memr1_plugin.testing import HashEmbedder

WRITER = """
import sys
from bank_help import *
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Turn
start = int(sys.argv[2])
with Bank.open(sys.argv[1], HashEmbedder(), persist_from=5) as bank:
    near(bank, "apple")
    for n in range(start, start + 10_000):
        turn = Turn(f"turn {n}", scope=ANA, id=str(n))
        bank.record([turn])
        print("turn", n, flush=True)
        operations = [adding(f"{fruit} {n}", turn_id=str(n)) for fruit in ("apple", "pear")]
        [one, two] = bank.apply(ANA, operations, turns=[turn])
        print("change", one.id, two.id, flush=True)
        if n % 5 == 0:
            [gone] = bank.apply(ANA, [deleting(one.item_id)])
            print("change", gone.id, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_sigkill(path: Path, embedder: HashEmbedder) -> None:
    """Five writers in a row are killed at random moments; their printed record is the independent witness."""
    rng = random.Random(8)
    turns: set[str] = set()
    changes: set[int] = set()
    for round_ in range(5):
        command = [sys.executable, "-c", WRITER, str(path), str(round_ * 10_000)]
        writer = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        # After so many lines and a little more: a slow machine must not make it a test of nothing.
        said = [writer.stdout.readline() for _ in range(rng.randint(5, 25))]
        time.sleep(rng.random() * 0.01)
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split("\n")[:-1]
        writer.wait(timeout=60)
        writer.stdout.close()
        for kind, *ids in (line.split() for line in said if line.strip()):
            turns.update(ids if kind == "turn" else [])
            changes.update(map(int, ids) if kind == "change" else [])
        with Bank.open(path, embedder, persist_from=5) as bank:
            assert turns <= {turn.id for turn in bank.turns(ANA)}
            assert changes <= {change.id for change in bank.history(ANA)}
            assert bank.check() == []
            pending = {turn.id for turn in bank.pending()}
            for turn in bank.turns(ANA):
                of_turn = [c for c in bank.history(ANA) if c.turn_id == turn.id]
                assert len(of_turn) == (0 if turn.id in pending else 2)
            live = [item.id for item in bank.items(ANA)]
            assert sorted(near(bank, "apple pear", k=99_999)) == live == sorted(found(bank, "apple pear", k=99_999))
    assert len(turns) > 10
