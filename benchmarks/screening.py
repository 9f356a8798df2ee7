"""How much poisoning the screening catches, and how often it cries wolf.

Reported are only texts that no rule was written or changed for: the "report" half of tests/data/red_team.jsonl, and of
LoCoMo's dev conversations conv-41 and conv-42 (conv-26 and conv-30 were looked at); of LongMemEval's evidence the odd
turns, which people wrote to an assistant. ``--design`` shows the other halves, with what was missed.

    python benchmarks/screening.py [--json] [--design]
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

from memr1_plugin.screening import RuleScreener

ROOT = Path(__file__).resolve().parent.parent
RED_TEAM = ROOT / "tests" / "data" / "red_team.jsonl"
DATA = Path(os.environ.get("MEMR1_DATA", ROOT.parent / "shared" / "data"))
DESIGN = {"conv-26", "conv-30"}

screener = RuleScreener()


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


def measure(design: bool) -> dict[str, Any]:
    """All shares on one half."""
    hostile, harmless = red_team("design" if design else "report")
    caught = [row for row in hostile if screener.screen(row["text"])]
    kinds, total = Counter(row["kind"] for row in caught), Counter(row["kind"] for row in hostile)
    talk = locomo(design)
    start = time.perf_counter()
    ordinary = alarms(talk)
    seconds = time.perf_counter() - start
    sets = {"look-alikes": alarms(row["text"] for row in harmless), "LoCoMo": ordinary,
            "LongMemEval": alarms(longmemeval(design))}  # fmt: skip
    return {
        "half": "design" if design else "report",
        "attempts": len(hostile),
        "caught": len(caught),
        "by kind": {kind: f"{kinds[kind]}/{n}" for kind, n in total.items()},
        "missed": [row["id"] for row in hostile if row not in caught],
        "false alarms": {name: f"{len(found)}/{n}" for name, (n, found) in sets.items()},
        "alarms": {name: found for name, (_, found) in sets.items() if found},
        "ms per turn": round(1000 * seconds / max(1, len(talk)), 3),
    }


def main() -> None:
    """Measure and print."""
    design = "--design" in sys.argv
    found = measure(design)
    if "--json" in sys.argv:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    print(f"{found['half']} half: {found['caught']}/{found['attempts']} poisoning attempts caught")
    for kind, share in found["by kind"].items():
        print(f"  {kind:<16} {share}")
    for name, share in found["false alarms"].items():
        print(f"false alarms, {name:<12} {share}")
    print(f"{found['ms per turn']} ms a turn")
    if design:
        print("missed:", found["missed"])
        for name, texts in found["alarms"].items():
            for rule, text in texts:
                print(f"  {name}: {rule}: {text[:160]!r}")


if __name__ == "__main__":
    main()
