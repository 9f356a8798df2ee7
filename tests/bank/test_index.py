"""The caches: whatever happens to them, search says what SQLite says."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bank_help import ANA, BOB, add, adding, deleting, found, near, updating

from memr1_plugin.bank import vectors as vectors_module
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Vectors
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Scope

_WORDS = "apple bread chair dog eagle fork goat house iron jam kite lamp moon nest oak pear queen rose sun tree"
WORDS = _WORDS.split()


def sayings(n: int, seed: int = 0) -> list[str]:
    """`n` texts of five words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(n)]


def exact(bank: Bank, scope: Scope, vector: Vectors, k: int) -> list[float]:
    """Cosines of the best `k` items, from their texts and no index."""
    items = bank.items(scope)
    cosines = bank.embedder.embed([f"{item.speaker}: {item.text}" for item in items]) @ vector
    return sorted((float(c) for c in cosines), reverse=True)[:k]


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 40 vectors a large scope, so that the inverted file and its rebuilds are seen in a test."""
    monkeypatch.setattr(vectors_module, "FLAT_MAX", 40)


def test_an_index_is_what_a_rebuild_of_it_is(bank: Bank) -> None:
    """After adds, updates, deletes and undos, the index in memory and one built from SQLite say the same."""
    near(bank, "apple")
    changes = [bank.apply(ANA, [adding(text)])[0] for text in sayings(60)]
    for n, change in enumerate(changes[:30]):
        assert change.item_id is not None
        bank.apply(ANA, [updating(change.item_id, WORDS[n % 20]) if n % 2 else deleting(change.item_id)])
    bank.undo(ANA, bank.history(ANA)[-1].id)
    with Bank.open(bank.path, bank.embedder) as fresh:
        for query in ("apple", "moon rose", "iron kite sun"):
            vector = bank.embedder.embed([query])[0]
            for view in ("text", "context"):
                warm = bank.search_vectors(ANA, vector, 20, view=view)
                assert [c for _, c in warm] == pytest.approx(
                    [c for _, c in fresh.search_vectors(ANA, vector, 20, view=view)]
                )
                assert bank.search_text(ANA, query, 99, view=view) == fresh.search_text(ANA, query, 99, view=view)
            assert [c for _, c in bank.search_vectors(ANA, vector, 20, view="text")] == pytest.approx(
                exact(bank, ANA, vector, 20), abs=1e-5
            )


@pytest.mark.usefixtures("small_lists")
def test_a_large_scope_finds_itself_and_all_its_items(bank: Bank) -> None:
    """The inverted file finds the item that was asked for, and k items when there are k."""
    texts = [f"{text} number{n}" for n, text in enumerate(sayings(300))]
    changes = bank.apply(ANA, [adding(text) for text in texts])
    for n in range(0, 300, 7):
        assert near(bank, f"Ana: {texts[n]}", k=1) == [changes[n].item_id]
    assert len(near(bank, "apple", k=300)) == 300
    bank.apply(ANA, [deleting(change.item_id) for change in changes[:290] if change.item_id])
    assert sorted(near(bank, "apple", k=50)) == [change.item_id for change in changes[290:]]


@pytest.mark.usefixtures("small_lists")
def test_a_scope_that_grows_large_changes_its_index_and_not_its_answers(bank: Bank) -> None:
    """Growing past the exact index while it is in use loses nothing."""
    near(bank, "apple")
    for n, text in enumerate(sayings(200)):
        item_id = add(bank, f"{text} number{n}")
        assert item_id in near(bank, f"Ana: {text} number{n}", k=3)
    assert len(near(bank, "apple", k=500)) == 200


def test_a_small_tenant_behind_many_nearer_vectors_finds_all_its_own(bank: Bank) -> None:
    """mem0 on FAISS gave a tenant with 5 memories 0 hits up to top_k=200 behind another's 500 nearer vectors."""
    mine = [add(bank, f"my {word} is somewhere else entirely") for word in WORDS[:5]]
    bank.apply(BOB, [adding("apple bread chair")] * 500)
    assert sorted(near(bank, "apple bread chair", k=5)) == mine
    assert sorted(near(bank, "apple bread chair", k=200)) == mine


def test_a_shared_bank_hands_no_session_anothers_secret(bank: Bank) -> None:
    """LlamaIndex's VectorMemoryBlock, shared by two sessions, handed Alice's secret to Bob."""
    alice, bob = Scope(user="x", session="alice"), Scope(user="x", session="bob")
    add(bank, "my secret code is 4711", alice)
    assert near(bank, "secret code", bob) == found(bank, "secret code", bob) == []
    assert near(bank, "secret code", Scope(user="x")) == bank.items(bob) == bank.history(bob) == []


def test_a_torn_index_file_is_never_believed(
    path: Path, embedder: HashEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    """mem0 answered with the wrong memory at score 1.0 after a torn write of its side file; here it is rebuilt."""
    with Bank.open(path, embedder, persist_from=10) as bank:
        bank.apply(ANA, [adding(f"{text} number{n}") for n, text in enumerate(sayings(30))])
        vector = embedder.embed(["apple number7"])[0]
        expected = bank.search_vectors(ANA, vector, 30, view="text")
    [file] = Path(f"{path}.index").iterdir()
    whole = file.read_bytes()
    torn = [b"", whole[:20], whole[: len(whole) // 2], whole[:-1], b"x" + whole[1:]]
    torn += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), len(whole) // 9)]
    for data in torn:
        file.write_bytes(data)
        caplog.clear()
        with Bank.open(path, embedder, persist_from=10) as bank:
            assert bank.search_vectors(ANA, vector, 30, view="text") == expected
        assert "rebuilding" in caplog.text
        assert len(file.read_bytes()) == len(whole)


def test_an_index_file_behind_the_bank_catches_up(path: Path, embedder: HashEmbedder) -> None:
    """A file of an older version is brought up to date; deleting all files changes no answer."""
    with Bank.open(path, embedder, persist_from=10) as bank:
        ids = [bank.apply(ANA, [adding(text)])[0].item_id for text in sayings(30)]
        near(bank, "apple")
    with Bank.open(path, embedder, persist_from=1 << 60) as bank:
        assert ids[0] and ids[1]
        bank.apply(ANA, [deleting(ids[0]), updating(ids[1], "zebra"), adding("zebra crossing")])
    answers = []
    for keep in (True, False):
        if not keep:
            for file in Path(f"{path}.index").iterdir():
                file.unlink()
        with Bank.open(path, embedder, persist_from=10) as bank:
            answers.append(bank.search_vectors(ANA, embedder.embed(["zebra"])[0], 40, view="context"))
            assert near(bank, "zebra", k=2)[0] in (ids[1], 31) and ids[0] not in near(bank, "zebra", k=40)
    assert answers[0] == answers[1] and len(answers[0]) == 30


def test_an_index_file_of_another_bank_is_refused(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Scope numbers repeat from bank to bank; a copied file must not answer for another's items."""
    for name, seed in (("a", 1), ("b", 2)):
        with Bank.open(tmp_path / name, embedder, persist_from=10) as bank:
            bank.apply(ANA, [adding(text) for text in sayings(20, seed)])
            near(bank, "apple")
    copied = (tmp_path / "a.index" / "1.faiss").read_bytes()
    (tmp_path / "b.index" / "1.faiss").write_bytes(copied)
    with Bank.open(tmp_path / "b", embedder, persist_from=10) as bank:
        vector = embedder.embed(["apple moon"])[0]
        cosines = [cosine for _, cosine in bank.search_vectors(ANA, vector, 5, view="text")]
        assert cosines == pytest.approx(exact(bank, ANA, vector, 5), abs=1e-5)


def test_index_files_that_cannot_be_written_do_no_harm(path: Path, embedder: HashEmbedder) -> None:
    """No space or no right to write beside the bank: a line in the log, and the bank works."""
    Path(f"{path}.index").write_text("a file where the folder should be")
    with Bank.open(path, embedder, persist_from=1) as bank:
        item_id = add(bank, "apple")
        assert near(bank, "apple") == [item_id]
    with Bank.open(path, embedder, persist_from=1) as bank:
        assert near(bank, "apple") == [item_id]


def test_two_open_banks_see_each_others_changes(path: Path, embedder: HashEmbedder) -> None:
    """Writes of another connection are in the next search, text and vectors alike, deletes and erasures too."""
    with Bank.open(path, embedder) as one, Bank.open(path, embedder) as two:
        ids = [add(one, text) for text in ("apple tree", "bread", "chair")]
        assert near(two, "apple", k=1) == found(two, "apple") == [ids[0]]
        two.apply(ANA, [updating(ids[0], "moon"), deleting(ids[1])])
        assert near(one, "moon", k=1) == found(one, "moon") == [ids[0]]
        assert found(one, "bread") == [] and ids[1] not in near(one, "bread")
        one.forget(ANA, ids[2])
        assert near(two, "chair") == [ids[0]] and found(two, "chair") == []
        two.forget(ANA)
        assert near(one, "moon") == found(one, "moon") == one.items(ANA) == []
        again = add(two, "apple")
        assert near(one, "apple") == found(one, "apple") == [again]


def test_another_process_is_seen(bank: Bank) -> None:
    """The version counter lies in the file: a real other process writes, this one finds."""
    near(bank, "zebra")
    script = (
        "import sys; from bank_help import *; from memr1_plugin.testing import HashEmbedder\n"
        "with Bank.open(sys.argv[1], HashEmbedder()) as bank: add(bank, 'zebra crossing')"
    )
    subprocess.run([sys.executable, "-c", script, bank.path], check=True, cwd=Path(__file__).parent, timeout=120)
    assert near(bank, "zebra", k=1) == found(bank, "zebra") == [1]


def test_cold_scopes_are_dropped_and_come_back(path: Path, embedder: HashEmbedder) -> None:
    """With room for little, forty scopes still find their own, again and again."""
    with Bank.open(path, embedder, cache_bytes=20_000) as bank:
        scopes = [Scope(user=str(n)) for n in range(40)]
        ids = [add(bank, f"{WORDS[n % 20]} {n}", scope) for n, scope in enumerate(scopes)]
        for _ in range(2):
            for n, scope in enumerate(scopes):
                assert near(bank, WORDS[n % 20], scope) == found(bank, WORDS[n % 20], scope) == [ids[n]]
        assert len(bank._indexes._scopes) < 10


def test_many_tombstones_are_cleared_away(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item rewritten again and again takes few places in the end, and is found by its last text."""
    monkeypatch.setattr(vectors_module, "FEW_DEAD", 50)
    item_id = add(bank, "apple")
    near(bank, "apple")
    for n in range(120):
        bank.apply(ANA, [updating(item_id, f"moon {n}")])
    assert near(bank, "moon") == [item_id] and found(bank, "moon 119")[0] == item_id
    index = bank._indexes.loaded(1)
    assert index is not None and index._vectors is not None and len(index._vectors.ids) < 60


def test_threads_search_while_one_writes(bank: Bank) -> None:
    """Readers never fail and never see half a turn: each turn adds two items, and counts are even."""
    near(bank, "apple")
    odd: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            n = len(near(bank, "apple", k=500))
            m = len(found(bank, "apple", k=500))
            if n % 2 or m % 2:
                odd.append(n)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(60):
        bank.apply(ANA, [adding(f"apple {n}"), adding(f"apple again {n}")])
    done.set()
    for reader in readers:
        reader.join()
    assert odd == [] and len(near(bank, "apple", k=500)) == 120


def test_faiss_is_not_loaded_by_writing() -> None:
    """Importing and writing loads no FAISS; the first vector search does."""
    script = (
        "import sys; from bank_help import *; from memr1_plugin.testing import HashEmbedder\n"
        "bank = Bank.open(':memory:', HashEmbedder()); add(bank, 'apple'); assert found(bank, 'apple')\n"
        "assert 'faiss' not in sys.modules; near(bank, 'apple'); assert 'faiss' in sys.modules; bank.close()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent, timeout=120)


def test_an_index_file_is_not_believed_by_a_bank_restored_from_a_backup(path: Path, embedder: HashEmbedder) -> None:
    """The file of a later state used to answer for an earlier one that was restored, and that went on differently."""
    with Bank.open(path, embedder, persist_from=10) as bank:
        bank.apply(ANA, [adding(text) for text in sayings(20)])
        near(bank, "apple")
    backup = path.read_bytes()
    with Bank.open(path, embedder, persist_from=10) as bank:
        for text in sayings(5, seed=1):
            add(bank, text)
        near(bank, "apple")
    path.write_bytes(backup)
    with Bank.open(path, embedder, persist_from=10) as bank:
        for text in sayings(6, seed=2):
            add(bank, text)
        for query in ("apple moon", "iron kite sun"):
            vector = embedder.embed([query])[0]
            cosines = [cosine for _, cosine in bank.search_vectors(ANA, vector, 30, view="text")]
            assert cosines == pytest.approx(exact(bank, ANA, vector, 30), abs=1e-5)
