"""What this machine does well: device, compute dtype, and whether 4-bit matrix products really work.

Decides nothing about models. The dtype is read from what the processor says of itself, not timed: a timing
on a busy machine would make the same bank answer differently on two days.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import Any

from memr1_plugin.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError.of("torch", "local") from error

_PACKAGES = (
    "memr1-plugin",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "openvino",
    "xgrammar",
    "sentence-transformers",
)


@dataclass(frozen=True)
class Hardware:
    """What `memr1 doctor` prints about the machine."""

    python: str
    packages: dict[str, str]
    """Version of each package that serving uses; "" when it is not installed."""
    device: str
    device_name: str
    dtype: str
    threads: int
    four_bit: str
    """"works (0.2 ms, error 3.1 %)" of a real nf4 matrix product, or why it does not."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def choose_device() -> str:
    """Return "cuda" where there is one, else "cpu". (On Apple's MPS 4-bit weights are not dependable yet.)"""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(device: str) -> torch.dtype:
    """Return the dtype that `device` computes fast: bfloat16 where it is native, else float32 (CPU) or float16.

    Measured on a CPU with AVX512-BF16: bfloat16 2.7 times as fast as float32 in large products. On a CPU
    without it, SmolLM2-135M in bfloat16 did not finish in minutes.
    """
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device == "cpu" and _cpu_has_bfloat16() else torch.float32


def dtype_name(device: str | None = None) -> str:
    """Return `choose_dtype` in words, "bfloat16"; of the device that is chosen here where none is named."""
    return str(choose_dtype(device or choose_device())).removeprefix("torch.")


def _cpu_has_bfloat16() -> bool:
    probe = getattr(torch.cpu, "get_capabilities", None)
    if probe is not None:
        says = probe()
        return bool(says.get("avx512_bf16") or says.get("amx_bf16"))
    older = (getattr(torch.cpu, "_is_avx512_bf16_supported", None), getattr(torch.cpu, "_is_amx_tile_supported", None))
    return any(check is not None and check() for check in older)


def device_name(device: str) -> str:
    """Return the maker's name of the device."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    probe = getattr(torch.cpu, "get_capabilities", None)
    return str(probe().get("cpu_name", "")) if probe else platform.processor()


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """Hold back the warning about an optional kernel package that bitsandbytes prints when first imported."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def try_four_bit(device: str) -> str:
    """Multiply by a real nf4 matrix on `device` and say how it went, in words for `doctor`."""
    try:
        with quiet_bitsandbytes():
            nn: Any = import_module("bitsandbytes.nn")
    except ImportError as error:
        return f"no: bitsandbytes cannot be imported ({error}). Run: pip install 'memr1-plugin[local]'"
    dtype = choose_dtype(device)
    dense = torch.nn.Linear(512, 512, bias=False)
    layer = nn.Linear4bit(512, 512, bias=False, compute_dtype=dtype, quant_type="nf4")
    try:
        layer.load_state_dict(dense.state_dict())
        layer = layer.to(device).eval()
        x = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            layer(x.to(device, dtype))
            start = time.perf_counter()
            found = layer(x.to(device, dtype)).float().cpu()
            milliseconds = 1000 * (time.perf_counter() - start)
            expected = dense(x)
    except (RuntimeError, NotImplementedError, ValueError, OSError) as error:
        return f"no: an nf4 product failed on {device} ({type(error).__name__}: {error}). Use quantize=False."
    off = float((found - expected).norm() / expected.norm())
    if off > 0.3:
        return f"no: an nf4 product on {device} is wrong by {off:.0%}; expected about 9 %. Use quantize=False."
    return f"works ({milliseconds:.1f} ms, error {off:.1%})"


def versions() -> dict[str, str]:
    """Return the version of each package that serving uses; "" for those that are not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def inspect() -> Hardware:
    """Return what `doctor` prints; takes a second, for it really computes."""
    device = choose_device()
    return Hardware(
        python=platform.python_version(),
        packages=versions(),
        device=device,
        device_name=device_name(device),
        dtype=dtype_name(device),
        threads=torch.get_num_threads(),
        four_bit=try_four_bit(device),
    )
