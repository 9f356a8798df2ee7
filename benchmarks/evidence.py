"""What the Memory Manager costs in evidence: are the turns that answers rest on still in the bank, and found?

    memr1 add --db managed.db --conversation locomo_dev.json --only conv-30      # takes minutes: the model decides
    python benchmarks/evidence.py managed.db locomo_dev.json conv-30

Beside the bank that the Manager kept stands one of the same turns in which each fact was an ADD. An evidence turn is
kept if a visible memory comes from it; "its words" counts only those whose own text still stands, not those that an
UPDATE replaced. Recall is that of `benchmarks/retrieval.py`. Also printed: which evidence was lost to which operation.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memr1_plugin import Memory
from memr1_plugin.evaluation.banks import add_raw
from memr1_plugin.evaluation.datasets import Conversation, Question, load
from memr1_plugin.testing import ScriptedModel

KS = (5, 10, 20, 30)


def asked(conversation: Conversation) -> list[Question]:
    """Return the questions that rest on turns, as LoCoMo's recall counts them."""
    return [q for q in conversation.questions if q.evidence and q.category != "5"]


def measure(memory: Memory, conversation: Conversation) -> dict[str, Any]:
    """Return what a bank holds and finds of the evidence."""
    scope, questions = conversation.scope, asked(conversation)
    items = memory.bank.items(scope)
    linked = {turn_id for item in items for turn_id in item.turn_ids}
    stands = {item.turn_ids[-1] for item in items if item.turn_ids}
    evidence = {turn_id for q in questions for turn_id in q.evidence}
    row: dict[str, Any] = {
        "memories": len(items),
        "evidence turns": len(evidence),
        "kept": round(len(evidence & linked) / len(evidence), 3),
        "its words": round(len(evidence & stands) / len(evidence), 3),
    }
    for k in KS:
        recalls = []
        for question in questions:
            found = {t for item in memory.search(question.text, scope=scope, k=k) for t in item.turn_ids}
            recalls.append(len(found & set(question.evidence)) / len(set(question.evidence)))
        row[f"recall@{k}"] = round(sum(recalls) / len(recalls), 3)
    return row


def lost(memory: Memory, conversation: Conversation) -> list[tuple[str, str, str]]:
    """Return (operation, turn id, text) of the evidence that no visible memory comes from."""
    evidence = {turn_id for q in asked(conversation) for turn_id in q.evidence}
    held = {turn_id for item in memory.bank.items(conversation.scope) for turn_id in item.turn_ids}
    said = {turn.id: f"{turn.speaker}: {turn.text}" for turn in conversation.turns}
    fates = {
        change.turn_id: f"{change.kind.value} by the {change.source}"
        for change in memory.history(scope=conversation.scope)
    }
    return [(fates.get(i, "no fact in it"), i, said[i]) for i in said if i in evidence - held]


def main() -> None:
    """Measure both banks and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("only", help="id of the conversation")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    [conversation] = [c for c in load(given.conversations) if c.id == given.only]
    with (
        Memory.open(given.bank, engine=ScriptedModel.heuristic()) as managed,
        Memory.open(":memory:", engine=ScriptedModel.heuristic()) as added,
    ):
        add_raw(added.bank, conversation.turns)
        rows = {"the Manager's": measure(managed, conversation), "always ADD": measure(added, conversation)}
        gone = lost(managed, conversation)
        operations = Counter(f"{c.kind.value} by the {c.source}" for c in managed.history(scope=conversation.scope))
    if given.json:
        print(json.dumps({"banks": rows, "operations": operations, "lost": gone}, indent=2, ensure_ascii=False))
        return
    console = Console(width=160)
    table = Table(title=f"{conversation.id}: {len(conversation.turns)} turns, {len(asked(conversation))} questions")
    for column in ("bank", *rows["always ADD"]):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    console.print(table)
    console.print(dict(operations))
    for fate, turn_id, text in gone:
        console.print(f"lost to {fate}: {turn_id} {text[:110]}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
