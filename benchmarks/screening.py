"""How much poisoning the screening catches, and how often it cries wolf.

Three sets of attempts in tests/data/red_team.jsonl, told apart by "split":

- "design": the rules were written with these before them; what is missed is known and left.
- "report": no rule was changed for them, but they are worded as attacks usually are, and as the rules know them.
- "unseen": written last, in other words than attacks are known by; measured, and no rule was changed since.

Ordinary conversations are all turns of LoCoMo's dev conversations, and what people wrote to an assistant in the
evidence of LongMemEval; of both, the half that nobody looked at while writing rules is counted apart.

    python benchmarks/screening.py [--json] [--missed] [--meaning]

With ``--meaning``, of `screening_meaning.MeaningScreener`: all of LoCoMo is new to it, and of LongMemEval the half that
is "never looked at".
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memr1_plugin.screening import RuleScreener, Screener
from memr1_plugin.screening_meaning import MeaningScreener

ROOT = Path(__file__).resolve().parent.parent
RED_TEAM = ROOT / "tests" / "data" / "red_team.jsonl"
DATA = Path(os.environ.get("MEMR1_DATA", ROOT.parent / "shared" / "data"))
DESIGN = {"conv-26", "conv-30"}

screener: Screener = MeaningScreener() if "--meaning" in sys.argv else RuleScreener()


def red_team(split: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The hostile and the harmless texts of one half."""
    rows = [json.loads(line) for line in RED_TEAM.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == split]
    return [row for row in rows if row["hostile"]], [row for row in rows if not row["hostile"]]


def locomo(design: bool) -> list[str]:
    """All turns of the dev conversations that were, or were not, looked at."""
    file = DATA / "locomo" / "locomo_dev.json"
    conversations = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return [
        turn["text"]
        for each in conversations
        if (each["sample_id"] in DESIGN) == design
        for key, session in each["conversation"].items()
        if key.startswith("session_") and isinstance(session, list)
        for turn in session
    ]


def longmemeval(design: bool) -> list[str]:
    """Turns that people wrote to an assistant."""
    file = DATA / "longmemeval_evidence" / "longmemeval_oracle_evidence_turns.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines() if file.exists() else [])
    turns = [turn for row in rows for session in row["evidence_sessions"] for turn in session["turns"]]
    texts = list(dict.fromkeys(turn["content"] for turn in turns if turn["role"] == "user"))
    return texts[0 if design else 1 :: 2]


def alarms(texts: Iterable[str]) -> tuple[int, list[tuple[str, str]]]:
    """How many texts there are, and those that were caught with why."""
    n, caught = 0, []
    for text in texts:
        n += 1
        if findings := screener.screen(text):
            caught.append((findings[0].rule, text))
    return n, caught


def caught_of(split: str) -> dict[str, Any]:
    """What is caught of one set of attempts, by kind, and what of the harmless texts written beside it."""
    hostile, harmless = red_team(split)
    caught = [row for row in hostile if screener.screen(row["text"])]
    kinds, total = Counter(row["kind"] for row in caught), Counter(row["kind"] for row in hostile)
    n, wolves = alarms(row["text"] for row in harmless)
    return {
        "attempts": len(hostile),
        "caught": len(caught),
        "by kind": {kind: f"{kinds[kind]}/{of}" for kind, of in total.items()},
        "missed": [row["id"] for row in hostile if row not in caught],
        "look-alikes": n,
        "false alarms": wolves,
    }


def ordinary(name: str, looked_at: list[str], aside: list[str]) -> dict[str, Any]:
    """False alarms on ordinary conversations, and the time that a turn takes."""
    start = time.process_time()
    (n, first), (m, second) = alarms(looked_at), alarms(aside)
    spent = time.process_time() - start
    return {
        "set": name,
        "turns": n + m,
        "false alarms": len(first) + len(second),
        "of them never looked at": f"{len(second)}/{m}",
        "texts": first + second,
        "CPU ms per turn": round(1000 * spent / max(1, n + m), 3),
    }


def measure() -> dict[str, Any]:
    """All numbers."""
    sets = (("LoCoMo dev", locomo), ("LongMemEval", longmemeval))
    return {
        "red team": {split: caught_of(split) for split in ("design", "report", "unseen")},
        "ordinary": [ordinary(name, read(True), read(False)) for name, read in sets],
    }


def main() -> None:
    """Measure and print."""
    found = measure()
    if "--json" in sys.argv:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for split, row in found["red team"].items():
        wolves = f"false alarms on look-alikes {len(row['false alarms'])}/{row['look-alikes']}"
        print(f"{split}: {row['caught']}/{row['attempts']} attempts caught; {wolves}")
        print("  " + ", ".join(f"{kind} {share}" for kind, share in row["by kind"].items()))
        if "--missed" in sys.argv:
            print("  missed:", *row["missed"], *(text for _, text in row["false alarms"]))
    for row in found["ordinary"]:
        if not row["turns"]:
            print(f"{row['set']}: not measured, {DATA} does not hold it (set MEMR1_DATA)")
            continue
        aside = row["of them never looked at"]
        print(f"{row['set']}: {row['false alarms']}/{row['turns']} false alarms (never looked at: {aside}), "
              f"{row['CPU ms per turn']} ms of CPU a turn")  # fmt: skip


if __name__ == "__main__":
    main()
