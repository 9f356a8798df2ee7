"""Evidence recall: of the turns that an answer rests on, how many do the first k memories hold?

    python benchmarks/retrieval.py locomo_dev.json             # the retriever, and every part of it alone
    python benchmarks/retrieval.py locomo_dev.json --json

The bank is filled through the verbatim extractor (each fact an ADD, no model call), so what extraction drops counts
against recall. Questions of category 5 and without evidence are left out, as in LoCoMo's own recall. The parameters of
`ranking` were chosen on conv-26 and conv-30; the others had no say. Embeddings are kept in a cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from rich.console import Console
from rich.progress import track
from rich.table import Table

from memr1_plugin import ranking, retrieval
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Embedder, QuestionEmbedder, Vectors, as_embedder, embed_questions
from memr1_plugin.evaluation.datasets import Conversation, Question, load
from memr1_plugin.extraction import VerbatimExtractor
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.types import Operation, OperationKind, Scope, Turn

KS = (1, 3, 5, 10, 20, 30, 60)
TARGETS = {10: 0.75, 30: 0.85}
CHOSEN_ON = ("conv-26", "conv-30")
BATCH = 256
Search = Callable[[str, Scope], list[int]]
"""A question in a scope to item ids, best first."""

UNRELATED = """What is the capital of France?
How do I install a GPU driver on Linux?
asdf qwer zxcv
What is the boiling point of tungsten?
Who won the 1998 world cup final?
Explain the Treaty of Westphalia
What is the derivative of x squared?
How many moons does Jupiter have?
Which compiler flags does the kernel need?
When was the Battle of Hastings?
What is the price of copper per ton?
How tall is Mount Everest?
Translate 'good morning' into Swahili
What does HTTP 418 mean?
What is the chemical formula of caffeine?
How do I reverse a linked list in C?
When does the train to Zurich leave?
flibbertigibbet quux?
Which planet is closest to the sun?
colourless green ideas sleep furiously"""


class CachedEmbedder:
    """An embedder that remembers, on the disk, what it embedded before."""

    def __init__(self, inner: Embedder, folder: Path) -> None:
        self._inner, self.id, self.dim = inner, inner.id, inner.dim
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{hashlib.sha256(inner.id.encode()).hexdigest()[:16]}.npz"
        self._known: dict[str, Vectors] = {}
        if self._path.exists():
            with np.load(self._path) as file:
                self._known = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
        self._saved = len(self._known)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) unit vectors."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        new = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in self._known]
        for start in range(0, len(new), BATCH):  # saved as it goes: a slow machine may be interrupted
            batch = new[start : start + BATCH]
            vectors = self._inner.embed([text for _, text in batch])
            self._known.update((key, vector) for (key, _), vector in zip(batch, vectors, strict=True))
            if len(self._known) >= self._saved + BATCH:
                self.save()
        return np.stack([self._known[key] for key in keys])

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Compute them, or look them up where they are read like any text."""
        inner = self._inner
        return inner.embed_questions(texts) if isinstance(inner, QuestionEmbedder) else self.embed(texts)

    def save(self) -> None:
        """Write what is new."""
        if len(self._known) > self._saved:
            np.savez(self._path, keys=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))
            self._saved = len(self._known)


def fill(bank: Bank, conversation: Conversation) -> None:
    """Add every fact of a conversation."""
    extractor, operations = VerbatimExtractor(), []
    previous: Turn | None = None
    for turn in conversation.turns:
        before = previous if previous is not None and previous.session == turn.session else None
        operations += [Operation(OperationKind.ADD, fact) for fact in extractor.extract(turn, before)]
        previous = turn
    bank.apply(conversation.scope, operations)


@contextmanager
def without(**constants: Any) -> Iterator[None]:
    """Run with other constants in `ranking`, and what `retrieval` took from it: a part switched off."""
    before = [(module, name, getattr(module, name)) for name in constants for module in (ranking, retrieval)
              if hasattr(module, name)]  # fmt: skip
    try:
        for module, name, _ in before:
            setattr(module, name, constants[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def parts(bank: Bank, embedder: Embedder) -> dict[str, tuple[Search, dict[str, Any]]]:
    """Return the rows of the table: a search, and what of `ranking` is switched off meanwhile."""

    def vectors(view: Any) -> Search:
        return lambda query, scope: ids(
            bank.search_vectors(scope, embed_questions(embedder, [query])[0], KS[-1], view=view)
        )

    def text(view: Any) -> Search:
        return lambda query, scope: ids(bank.search_text(scope, query, KS[-1], view=view))

    def ids(found: Sequence[tuple[int, float]]) -> list[int]:
        return [item_id for item_id, _ in found]

    def full(query: str, scope: Scope) -> list[int]:
        return [item.id for item in Retriever(bank, embedder, Settings()).search(query, scope, KS[-1], floor=0.0)]

    def floored(query: str, scope: Scope) -> list[int]:
        return [item.id for item in Retriever(bank, embedder, Settings()).search(query, scope, KS[-1])]

    steps = (
        ("  and names out of the query", "without_names"),
        ("  and the cosine itself", "COSINE_WEIGHT"),
        ("  and the rare words that it has", "COVERAGE_BONUS"),
        ("  and the speaker it names", "SPEAKER_BONUS"),
        ("  and the same sitting", "SITTING_BONUS"),
        ("  and the month it names", "DATE_BONUS"),
        ("  and a time for a when", "KIND_BONUS"),
    )
    off: dict[str, Any] = {name: 0.0 for _, name in steps}
    off["without_names"] = lambda query, named: query
    rows: dict[str, tuple[Search, dict[str, Any]]] = {
        "vectors, what was said": (vectors("text"), {}),
        "vectors, with the turn before": (vectors("context"), {}),
        "BM25, what was said": (text("text"), {}),
        "BM25, with the turn before": (text("context"), {}),
        "the four, fused by rank": (full, dict(off)),
    }
    for title, name in steps:
        del off[name]
        rows[title] = (full, dict(off))
    rows["the retriever, with its floor"] = (floored, {})
    return rows


def asked(conversation: Conversation) -> list[Question]:
    """Return the questions that have evidence to find."""
    return [q for q in conversation.questions if q.evidence and not q.unanswerable]


def recall(conversations: Sequence[Conversation], bank: Bank, search: Search, name: str) -> dict[str, Any]:
    """Return the mean recall at each k: of all questions, by category, and by conversation."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    spent: list[float] = []
    for conversation in conversations:
        turns = {item.id: set(item.turn_ids) for item in bank.items(conversation.scope)}
        for question in track(asked(conversation), f"{name.strip()}, {conversation.id}", transient=True):
            begun = time.perf_counter()
            found = search(question.text, conversation.scope)
            spent.append(time.perf_counter() - begun)
            evidence = set(question.evidence)
            hit = [len(evidence & set().union(*(turns[i] for i in found[:k]))) / len(evidence) for k in KS]
            for group in ("all", f"category {question.category}", conversation.id):
                rows[group].append(hit)
    means = {group: [round(float(x), 4) for x in np.mean(hits, axis=0)] for group, hits in sorted(rows.items())}
    counts = {group: len(hits) for group, hits in rows.items()}
    return {"recall": means, "questions": counts, "ms": round(float(np.median(spent)) * 1e3, 2)}


def measure(conversations: Sequence[Conversation], embedder: Embedder) -> dict[str, Any]:
    """Fill a bank and measure every row, and how often the floor lets nothing through."""
    with Bank.open(":memory:", embedder) as bank:
        for conversation in track(conversations, "filling the bank", transient=True):
            fill(bank, conversation)
        results: dict[str, Any] = {}
        for name, (search, switched_off) in parts(bank, embedder).items():
            with without(**switched_off):
                results[name] = recall(conversations, bank, search, name)
        retriever = Retriever(bank, embedder, Settings())

        def silent(questions: Sequence[tuple[str, Scope]]) -> float:
            return sum(not retriever.search(query, scope, 10) for query, scope in questions) / len(questions)

        real = [(q.text, c.scope) for c in conversations for q in asked(c)]
        unrelated = [(query, c.scope) for c in conversations for query in UNRELATED.splitlines()]
        floor = {"real questions that find nothing": silent(real), "unrelated ones": silent(unrelated)}
    return {"ks": KS, "parts": results, "floor": floor}


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("ranking", *(f"@{k}" for k in KS), "ms", title="evidence recall")
    for name, row in results["parts"].items():
        table.add_row(name, *(f"{x:.3f}" for x in row["recall"]["all"]), f"{row['ms']:.1f}")
    console.print(table)
    *_, (_, last) = results["parts"].items()
    table = Table("the retriever", *(f"@{k}" for k in KS), "questions")
    for group, row in last["recall"].items():
        chosen = " (parameters chosen here)" if group in CHOSEN_ON else ""
        table.add_row(group + chosen, *(f"{x:.3f}" for x in row), str(last["questions"][group]))
    console.print(table)
    for name, share in results["floor"].items():
        console.print(f"{name}: {share:.1%}")
    for k, target in TARGETS.items():
        reached = last["recall"]["all"][KS.index(k)]
        console.print(f"target at {k}: {target:.2f}, reached {reached:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a file of conversations with questions and evidence")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("memr1-plugin")) / "benchmarks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    embedder = CachedEmbedder(as_embedder(None), arguments.cache)
    try:
        results = measure(load(arguments.path), embedder)
    finally:
        embedder.save()
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        show(results, Console())


if __name__ == "__main__":
    main()
