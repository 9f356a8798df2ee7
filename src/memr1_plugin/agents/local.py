"""A language model in this process: one 4-bit base, one LoRA a role, many callers.

An `Engine` whose single thread owns the model; callers' prompts wait in a queue, and those that can be
computed together are. Weights are found by `models`, loaded by `loading`, decoded by `decoding`; none of
them, nor torch, is imported before the first prompt. Gathering without waiting is vLLM's idea.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.agents.setup import prepare
from memr1_plugin.errors import InputError, MemoryR1Error, MissingExtraError, ModelError
from memr1_plugin.logs import fields

if TYPE_CHECKING:
    from memr1_plugin.agents.decoding import Decoder

log = logging.getLogger(__name__)
NEEDED = ("torch", "transformers", "xgrammar")
_PADDING = 1.5
"""A batch may cost this much more than its rows alone; beyond it, padding eats what batching saves."""


@dataclass(frozen=True)
class LocalOptions:
    """How a `LocalEngine` runs its model. The defaults are right for the default model on any machine."""

    quantize: bool = True
    """nf4 by bitsandbytes; False: dense weights in the compute dtype."""
    unpack: bool | None = None
    """Compute nf4 weights as dense matrices, each role's LoRA added in: faster on a CPU, and 212 MB a role for
    SmolLM2-135M; None: on CPUs that compute bfloat16 natively (docs/engines.md has the numbers)."""
    compile: bool | None = None
    """Compute the unpacked weights with OpenVINO; None: in 16 bits on x86-64, where that takes half the time
    (docs/engines.md), the extra ``openvino`` is installed and the model is of a kind that `compiled` serves."""
    device: str | None = None
    """"cpu", "cuda:1", ...; None chooses."""
    device_map: str | None = None
    """Given to transformers as it is ("auto" spreads a large model over several GPUs)."""
    dtype: str | None = None
    """"float32", "bfloat16" or "float16"; None chooses what the device computes fast."""
    max_batch: int = 8
    """Most prompts computed together."""
    reuse_prefix: bool = True
    """Compute a prompt's fixed part once. Costs a few megabytes; off for measurements only."""
    trust_remote_code: bool = False
    """Let a model folder bring Python code that is then executed."""

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise InputError(f"max_batch is {self.max_batch}; expected at least 1.")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise InputError(f'dtype is {self.dtype!r}; expected "float32", "bfloat16", "float16" or None.')


@dataclass(eq=False)
class _Job:
    """One prompt in the queue."""

    prompt: Prompt
    role: Role
    future: Future[Completion] = field(default_factory=Future)

    @property
    def key(self) -> tuple[Role, bool, str]:
        """Jobs with equal keys can be one batch: same LoRA, same fixed part."""
        return (self.role, self.prompt.chat, self.prompt.fixed)


class LocalEngine:
    """An `Engine` on transformers. Nothing is loaded before the first prompt; thread-safe."""

    def __init__(
        self,
        model: str | Path | None = None,
        loras: str | Path | Mapping[Role, Path] | None = None,
        *,
        options: LocalOptions | None = None,
    ) -> None:
        """Name the parts; nothing is read yet.

        Args:
            model: as for `models.resolve`: a preset, hub id, folder or GGUF file; None: SmolLM2-135M.
            loras: a folder with ``manager/`` and ``answer/``, or each role's folder; None: those that ship for
                the model; ``{}``: none.
            options: device, dtype, batch; see `LocalOptions`.
        """
        self._model, self._loras = model, loras
        self.options = options or LocalOptions()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._found_lock = threading.Lock()
        self._found: tuple[models.Weights, dict[Role, Path], dict[Role, LoraInfo]] | None = None
        self._queue: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._decoder: Decoder | None = None
        self._closed = False
        _OPEN.add(self)

    @property
    def id(self) -> str:
        """Model, quantisation and, once it is loaded, dtype and device."""
        weights = self._find()[0]
        parts = [weights.name, "nf4" if self.options.quantize else "dense"]
        decoder = self._decoder
        if decoder is not None:
            parts += [decoder.model.how] if hasattr(decoder.model, "how") else []
            parts += [str(decoder.model.dtype).removeprefix("torch."), str(decoder.model.device)]
        return " ".join(parts)

    @property
    def weights(self) -> models.Weights:
        """The base's weights, as they were found."""
        return self._find()[0]

    def lora(self, role: Role) -> LoraInfo | None:
        """The LoRA of `role`, read from its folder; the model is not loaded for this."""
        return self._find()[2].get(role)

    def check(self) -> None:
        """Raise what the first prompt would raise for missing packages, weights or unfit LoRAs; loads nothing."""
        for module in NEEDED:
            if find_spec(module) is None:
                raise MissingExtraError.of(module, "local")
        self._find()

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete each prompt greedily; order is kept.

        Raises:
            ModelError: weights missing or broken, a prompt too long, memory exhausted, or the engine closed.
        """
        for prompt in prompts:
            if prompt.max_tokens < 1:
                raise InputError(f"max_tokens is {prompt.max_tokens}; expected at least 1.")
        self._find()
        jobs = [_Job(prompt, role) for prompt in prompts]
        with self._wake:
            if self._closed:
                raise ModelError("this engine is closed; open another.")
            self._queue.extend(jobs)
            self._start()
            self._wake.notify()
        try:
            return [job.future.result() for job in jobs]
        finally:
            for job in jobs:
                job.future.cancel()  # of jobs that still wait when one has failed, or the caller gave up

    def close(self) -> None:
        """Stop the thread, fail what waits, and release the model. Closing twice is fine."""
        with self._wake:
            self._closed = True
            thread = self._thread
            self._wake.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=30)
        self._decoder = None

    def _find(self) -> tuple[models.Weights, dict[Role, Path], dict[Role, LoraInfo]]:
        with self._found_lock:
            if self._found is None:
                weights = models.resolve(self._model)
                if isinstance(self._loras, Mapping):
                    folders = dict(self._loras)
                else:
                    folders = models.find_loras(weights.name, self._loras)
                infos = {role: models.read_lora(folder, role, weights) for role, folder in folders.items()}
                self._found = (weights, folders, infos)
            return self._found

    def _start(self) -> None:
        """Start the thread if it does not run (also after a fork, which copies no threads)."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="memr1-engine", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (jobs := self._next_batch()) is not None:
            self._complete_batch(jobs)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for prompts, and take the oldest with what fits beside it; None when the engine is closed."""
        with self._wake:
            while not self._queue and not self._closed:
                self._wake.wait()
            if self._closed:
                for job in self._queue:
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_exception(ModelError("the engine was closed before it came to this prompt."))
                self._queue.clear()
                return None
            batch = gather(self._queue, self.options.max_batch)
            taken = set(map(id, batch))
            self._queue = deque(job for job in self._queue if id(job) not in taken)
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def _complete_batch(self, jobs: Sequence[_Job]) -> None:
        """Complete jobs together; if memory runs out, in halves; any failure reaches its callers, not this thread."""
        if not jobs:
            return
        try:
            decoder = self._load()
        except Exception as error:  # noqa: BLE001  # handed to the callers: the thread must live on
            for job in jobs:
                job.future.set_exception(_as_model_error(error))
            return
        try:
            done = decoder.complete([job.prompt for job in jobs], jobs[0].role, lambda: self._closed)
        except Exception as error:  # noqa: BLE001  # likewise
            self._failed(decoder, jobs, error)
            return
        for job, completion in zip(jobs, done, strict=True):
            job.future.set_result(completion)

    def _failed(self, decoder: Decoder, jobs: Sequence[_Job], error: Exception) -> None:
        decoder.make_room()
        if len(jobs) > 1 and not self._closed:  # one bad prompt must not fail its neighbours
            half = len(jobs) // 2
            self._complete_batch(jobs[:half])
            self._complete_batch(jobs[half:])
            return
        for job in jobs:
            job.future.set_exception(_as_model_error(error))

    def _load(self) -> Decoder:
        if self._decoder is None:
            weights, loras, _ = self._find()
            weights = prepare(weights)
            try:
                import torch

                from memr1_plugin.agents import compiled, decoding, loading
                from memr1_plugin.agents.unpacked import Unpacked
            except MissingExtraError:
                raise
            except ImportError as error:
                raise MissingExtraError.of("torch", "local") from error
            options = self.options
            base = loading.load_base(
                weights.path,
                quantize=options.quantize,
                device=options.device,
                device_map=options.device_map,
                dtype=getattr(torch, options.dtype) if options.dtype else None,
                trust_remote_code=options.trust_remote_code,
            )
            tokenizer = loading.load_tokenizer(weights.path, trust_remote_code=options.trust_remote_code)
            model = loading.add_loras(base, loras)
            if options.quantize and loading.unpacks(model, options.unpack):
                compiles = compiled.compiles(model, options.compile)
                model = compiled.Compiled(Unpacked(model)) if compiles else Unpacked(model)
            self._decoder = decoding.Decoder(model, tokenizer, reuse_prefix=options.reuse_prefix)
            log.info("serving %s", self.id, extra=fields("engine_opened", engine="transformers"))
        return self._decoder


def _as_model_error(error: Exception) -> Exception:
    if isinstance(error, MemoryR1Error):
        return error
    wrapped = ModelError(
        f"the model failed ({type(error).__name__}: {error}). If memory ran out, show fewer memories or take a "
        "smaller model; the engine goes on."
    )
    wrapped.__cause__ = error
    return wrapped


def gather(queue: Sequence[_Job], max_batch: int) -> list[_Job]:
    """Return the oldest job and those that are cheap to compute with it: same key, similar length."""
    first = queue[0]
    size = len(first.prompt.body)
    alike = sorted((job for job in queue if job.key == first.key), key=lambda job: abs(len(job.prompt.body) - size))
    batch, longest, total = [first], size, size
    for job in alike:
        if job is first:
            continue
        longest, total = max(longest, len(job.prompt.body)), total + len(job.prompt.body)
        if len(batch) == max_batch or longest * (len(batch) + 1) > _PADDING * total + 400:
            break
        batch.append(job)
    return batch


_OPEN: weakref.WeakSet[LocalEngine] = weakref.WeakSet()
_shared: dict[Any, LocalEngine] = {}
_shared_lock = threading.Lock()


def shared_engine(
    model: str | Path | None = None,
    loras: str | Path | None = None,
    *,
    options: LocalOptions | None = None,
) -> LocalEngine:
    """Return the one engine of this process for these arguments; all memories share its model.

    Raises:
        MissingExtraError: the ``local`` extra is not installed.
        WeightsNotFoundError: the model's weights are not on this machine.
        LoraMismatchError: a LoRA was trained on another base or prompt.
    """
    chosen = options or LocalOptions()
    key = (os.getpid(), model and str(model), loras and str(loras), os.environ.get("MEMR1_HOME"), chosen)
    with _shared_lock:
        engine = _shared.get(key)
        if engine is None or engine._closed:
            engine = LocalEngine(model, loras, options=chosen)
            engine.check()
            _shared[key] = engine
        return engine


@atexit.register
def _close_all() -> None:
    """A thread inside torch while the interpreter is torn down would crash it."""
    for engine in list(_OPEN):
        engine.close()
