"""Words and BM25: what counts as a word, and that a scope is ranked by its own texts alone."""

from __future__ import annotations

import math

import pytest
from bank_help import ANA, BOB, add, adding, found

from memr1_plugin.bank import text_index
from memr1_plugin.bank.bank import Bank


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I'd moved to Berlin!", ["moved", "berlin"]),
        ("Crème brûlée, ÅNGSTRÖM", ["creme", "brulee", "angstrom"]),
        ("what is it that you were", []),
        ("snake_case foo.bar x2", ["snake", "case", "foo", "bar", "x2"]),
        ("東京に行く", ["東京", "京に", "に行", "行く"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("x" * 100, ["x" * 40]),
        ("", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    """Lower case, no accents, no stop words, Chinese and Japanese in pairs of characters."""
    assert text_index.words(text) == words


@pytest.mark.parametrize(
    ("a", "b"), [("moving", "moved"), ("cities", "city"), ("running", "runs"), ("hopeful", "hope")]
)
def test_stems_are_porters(a: str, b: str) -> None:
    """Forms of a word meet in its stem; the stemmer is FTS5's own."""
    assert text_index.stem(a) == text_index.stem(b)


@pytest.mark.parametrize(
    "word", ["moving", "sky", "yes", "gas", "is", "x", "2nd", "naïve", "oasis", "eye", "東京", "caresses"]
)
@pytest.mark.parametrize("scope_no", [1, 42, 98765])
def test_a_stored_word_is_found_by_the_stem_of_a_query(bank: Bank, word: str, scope_no: int) -> None:
    """The number in front of a stored word changes nothing of how it is stemmed."""
    with bank._store.writing() as connection:
        text_index.add(connection, scope_no, 7, [], text_index.words(word))
        [term] = text_index.terms(word) or [""]
        ids, counts = text_index.postings(connection, scope_no, term, "text")
    if word not in text_index.STOP_WORDS:
        assert ids.tolist() == [7] and counts.tolist() == [1]


def test_scores_are_bm25_with_exact_term_frequencies(bank: Bank) -> None:
    """The textbook's formula, worked out by hand for one word."""
    short, long = add(bank, "tea tea"), add(bank, "tea, scones, jam, butter, cream")
    add(bank, "coffee")
    lengths = {short: 3, long: 6}  # the speaker counts: "Ana: tea tea"
    mean = (3 + 6 + 2) / 3
    idf = math.log1p((3 - 2 + 0.5) / (2 + 0.5))
    scores = dict(bank.search_text(ANA, "tea", 10, view="text"))
    for item_id, tf in ((short, 2), (long, 1)):
        expected = idf * tf * 2.2 / (tf + 1.2 * (1 - 0.75 + 0.75 * lengths[item_id] / mean))
        assert scores[item_id] == pytest.approx(expected, rel=1e-5)


def test_another_scopes_texts_change_no_score(bank: Bank) -> None:
    """A thousand texts of Bob's about tea do not make Ana's tea a common word."""
    for text in ("I drink tea.", "I drink coffee.", "I drink coffee and more coffee."):
        add(bank, text)
    before = bank.search_text(ANA, "tea or coffee", 10, view="text")
    bank.apply(BOB, [adding("tea tea tea coffee and tea, " * 5, speaker="Bob") for _ in range(1_000)])
    assert bank.search_text(ANA, "tea or coffee", 10, view="text") == before


@pytest.mark.parametrize(
    "query",
    ['"', "tea AND", "NEAR(tea coffee)", "text:tea*", "tea NOT coffee", "(", "'; DROP TABLE items; --", "-tea", "^tea"],
)
def test_nothing_in_a_query_is_syntax(bank: Bank, query: str) -> None:
    """FTS5's operators, quotes and SQL are words, or nothing."""
    item_id = add(bank, "I drink tea.")
    assert found(bank, query) == ([item_id] if "tea" in query else [])
    assert bank.check() == []


def test_a_word_that_looks_like_a_scopes_word_stays_in_its_scope(bank: Bank) -> None:
    """Terms carry their scope's number in front; writing such a term oneself reaches nobody else."""
    mine = add(bank, "berlin")
    other = add(bank, "1zberlin 2zberlin \U0001e9001zberlin", BOB)
    assert found(bank, "berlin") == [mine] and found(bank, "berlin", BOB) == []
    assert found(bank, "1zberlin", BOB) == [other] and found(bank, "2zberlin") == []


def test_full_text_is_built_anew_when_its_words_have_changed(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank made with other stop words is brought up to date when it is opened."""
    item_id = add(bank, "I drink tea.", context="Bob: What do you drink?")
    bank.close()
    monkeypatch.setattr(text_index, "WORDS_VERSION", "2")
    monkeypatch.setattr(text_index, "STOP_WORDS", frozenset({"tea"}))
    with Bank.open(bank.path, bank.embedder) as again:
        assert found(again, "tea") == [] and found(again, "what", view="context") == [item_id]
        assert again.check() == []
