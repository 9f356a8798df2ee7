"""Text to vectors: one protocol, and sentence-transformers behind it.

Not here: the default embedder (`minilm`), where weights are found (`agents.models`), the index (`bank.index`). Any
LangChain ``Embeddings`` or LlamaIndex ``BaseEmbedding`` is accepted through `as_embedder`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memr1_plugin.errors import InputError, MissingExtraError, ModelError

Vectors = NDArray[np.float32]
"""(n, dim) float32, each row of length 1, so that a dot product is the cosine."""

_KEPT_TEXTS = 4096
"""Recent texts whose vectors are kept: a turn is embedded when retrieved for and again when stored. 6 MB."""


@runtime_checkable
class Embedder(Protocol):
    """What the bank and retrieval need. Implementations are thread-safe."""

    @property
    def id(self) -> str:
        """Name and version of the vectors ("all-MiniLM-L6-v2"): stored in the bank, compared at open."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors."""


@runtime_checkable
class QuestionEmbedder(Embedder, Protocol):
    """An embedder that reads a question otherwise than what answers it, as retrieval models are trained to."""

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors, to be compared with those of `embed`."""


def embed_questions(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Embed questions: as a `QuestionEmbedder` does, or like any other text."""
    return embedder.embed_questions(texts) if isinstance(embedder, QuestionEmbedder) else embedder.embed(texts)


def unit(vectors: Any, n: int, what: str) -> Vectors:
    """Return what an embedding model gave as unit vectors, or raise `ModelError` if it is not `n` vectors."""
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} gave something that is no matrix of numbers ({error}).") from error
    if n == 0:
        return rows.reshape(0, rows.shape[-1] if rows.ndim == 2 else 0)
    if rows.ndim != 2 or len(rows) != n or not np.isfinite(rows).all():
        raise ModelError(f"{what} gave vectors of shape {rows.shape} for {n} texts; expected ({n}, dim), all finite.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise ModelError(f"{what} gave a vector of zeros, which has no direction; expected an embedding.")
    return rows / lengths  # type: ignore[no-any-return]


class Recent:
    """The vectors of recent texts. Thread-safe; a text is computed once unless two threads want it at once.

    An embedder that has one calls it ``recent``: it may then be given, in one batch, what it will be asked for.
    """

    def __init__(self, size: int = _KEPT_TEXTS) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Vectors] = OrderedDict()

    def embed(self, texts: Sequence[str], compute: Callable[[list[str]], Vectors], dim: int) -> Vectors:
        """Return the vectors of `texts`, calling `compute` once for those that are not kept."""
        with self._lock:
            found = {text: self._kept[text] for text in texts if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found.update(zip(missing, compute(missing), strict=True))
        with self._lock:
            for text in texts:
                self._kept[text] = found[text]
                self._kept.move_to_end(text)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, dim), dtype=np.float32)


class SentenceTransformerEmbedder:
    """Any sentence-transformers model. Loads when it is first used.

    Texts are computed in batches of similar length (sentence-transformers sorts them), one thread at a time: the
    tokenizer underneath is not thread-safe.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> None:
        """Name the model; nothing is loaded yet.

        Args:
            model: a local folder or a hub id.
            device: None lets sentence-transformers choose.
            batch_size: texts computed together.
            trust_remote_code: let the model bring Python code that is then executed.
        """
        self._name = model
        self._device, self._batch_size, self._trust = device, batch_size, trust_remote_code
        self.recent = Recent()
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._dim = 0

    @property
    def id(self) -> str:
        """The model's name; of a local folder, with a hash of its weights' beginning."""
        folder = Path(self._name).expanduser()
        if not folder.is_dir():
            return str(self._name)
        from memr1_plugin.agents.models import base_revision

        return f"{folder.resolve().name}-{base_revision(folder)}"

    @property
    def dim(self) -> int:
        """Length of a vector; asking loads the model."""
        if not self._dim:
            with self._lock:
                self._dim = int(self._load().get_embedding_dimension() or 0)
        return self._dim

    def check(self) -> None:
        """Raise what the first text would raise for a missing package; loads nothing."""
        if find_spec("sentence_transformers") is None:
            raise MissingExtraError.of("sentence-transformers", "local")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors."""
        return self.recent.embed(texts, self._compute, self.dim)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors, with the prompt that the model has for queries, if any."""
        return self._compute(list(texts), questions=True)

    def _compute(self, texts: list[str], *, questions: bool = False) -> Vectors:
        with self._lock:
            try:
                model = self._load()
                rows = (model.encode_query if questions else model.encode)(
                    texts, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
                )
            except (RuntimeError, MemoryError) as error:
                raise ModelError(
                    f"embedding {len(texts)} texts with {self.id} failed ({type(error).__name__}: {error})."
                ) from error
        return unit(rows, len(texts), self.id)

    def _load(self) -> Any:
        """Return the model, loaded once; the caller holds the lock."""
        if self._loaded is None:
            from memr1_plugin.agents.foreign import check_embedder_folder
            from memr1_plugin.agents.loading import quiet

            try:
                with quiet():
                    from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise MissingExtraError.of("sentence-transformers", "local") from error
            local = Path(self._name).expanduser().is_dir()
            where = str(Path(self._name).expanduser() if local else self._name)
            if local:
                check_embedder_folder(Path(where), trust_remote_code=self._trust)
            try:
                with quiet():
                    self._loaded = SentenceTransformer(
                        where,
                        device=self._device,
                        local_files_only=local,
                        trust_remote_code=self._trust,
                        model_kwargs={"use_safetensors": True},
                    )
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(
                    f"the embedding model {where} could not be loaded ({type(error).__name__}: {error}). Give a "
                    "sentence-transformers folder or hub id, or leave the embedder out for the default."
                ) from error
        return self._loaded


class _FrameworkEmbedder:
    """A LangChain or LlamaIndex embedding model behind our protocol."""

    def __init__(self, model: Any, compute: Callable[[list[str]], Any], ask: Callable[[str], Any]) -> None:
        self._id = _name_of(model)
        self._call, self._ask = compute, ask
        self.recent = Recent()
        self._lock = threading.Lock()
        self._dim = 0

    @property
    def id(self) -> str:
        """Class and model name, with which a bank recognises its vectors."""
        return self._id

    @property
    def dim(self) -> int:
        """Length of a vector, found by embedding one word, once."""
        with self._lock:
            if not self._dim:
                self._dim = self._compute(["dimension"]).shape[1]
        return self._dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors."""
        return self.recent.embed(texts, self._compute, self._dim)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors, as the framework embeds queries."""
        return unit([self._ask(text) for text in texts], len(texts), self._id)

    def _compute(self, texts: list[str]) -> Vectors:
        return unit(self._call(texts), len(texts), self._id)


def _name_of(model: Any) -> str:
    """Return a name for the vectors of a framework's model: its class, and the model that it names, if any."""
    for attribute in ("model_name", "model", "model_id", "deployment", "name"):
        name = getattr(model, attribute, None)
        if isinstance(name, str) and name not in ("", "unknown"):
            return f"{type(model).__name__}:{name}"
    return type(model).__name__


def as_embedder(embedder: Any = None) -> Embedder:
    """Return anything that embeds as an `Embedder`.

    Args:
        embedder: an `Embedder`; a LangChain ``Embeddings``; a LlamaIndex ``BaseEmbedding``; the name or folder of a
            sentence-transformers model; None: all-MiniLM-L6-v2, one for the whole process.

    Raises:
        InputError: it is none of these.
        WeightsNotFoundError: None was given, and the default weights are not installed.
    """
    if embedder is None:
        from memr1_plugin import minilm

        minilm.default.check()
        return minilm.default
    if isinstance(embedder, (str, Path)):
        named = SentenceTransformerEmbedder(embedder)
        named.check()
        return named
    if callable(getattr(embedder, "get_text_embedding_batch", None)):
        return _FrameworkEmbedder(embedder, embedder.get_text_embedding_batch, embedder.get_query_embedding)
    if callable(getattr(embedder, "embed_documents", None)):
        return _FrameworkEmbedder(embedder, embedder.embed_documents, embedder.embed_query)
    if isinstance(embedder, Embedder) and not isinstance(embedder, type):
        return embedder
    raise InputError(
        f"the embedder is {type(embedder).__name__}; expected an object with id, dim and embed(texts), a LangChain "
        "Embeddings, a LlamaIndex BaseEmbedding, or the name of a sentence-transformers model."
    )
