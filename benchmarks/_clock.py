"""Where the seconds of a training epoch go, and how much memory it takes."""

import ctypes
import gc
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from torch import nn

_MODULE_PARTS = {"inference": "encoder", "generative": "decoder", "loss": "likelihood and bound"}


def _device_time() -> float:
    """The clock once the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class EpochClock(Callback):
    """Seconds from the start of one epoch to the start of the next, logging included."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self._processor: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        """Note the time, after the device has finished."""
        self._now()

    def on_train_end(self, *_: object) -> None:
        """Close the last epoch."""
        self._now()

    def _now(self) -> None:
        self.starts.append(_device_time())
        self._processor.append(time.process_time())

    def epochs(self, warmup: int) -> list[float]:
        """Seconds of each epoch after the first `warmup`."""
        return np.diff(self.starts)[warmup:].tolist()

    def processor_epochs(self, warmup: int) -> list[float]:
        """The same in seconds of the processor: what other programs do hardly enters."""
        return np.diff(self._processor)[warmup:].tolist()


class PartsProfiler(Profiler):
    """Lightning's own hooks, added up by what they are for."""

    _ACTIONS = {
        "train_dataloader_next": "data",
        "batch_to_device": "data",
        ".training_step": "training_step",
        ".backward": "backward",
        ".optimizer_step": "optimizer_step",
        "run_training_batch": "batch",
        "run_training_epoch": "epoch",
    }

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        """Start the clock of an action."""
        self._started[action_name] = _device_time()

    def stop(self, action_name: str) -> None:
        """Add what it took to its part."""
        taken = _device_time() - self._started.pop(action_name)
        for ending, part in self._ACTIONS.items():
            if action_name.endswith(ending) and "[Callback]" not in action_name:
                self.seconds[part] += taken


@contextmanager
def timed_parts(module: nn.Module) -> Iterator[dict[str, float]]:
    """Time the module's inference, generative and loss by name while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)

    def wrapped(call: Callable, part: str) -> Callable:
        def timed(*args: object, **kwargs: object) -> object:
            start = _device_time()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[part] += _device_time() - start

        timed.__signature__ = inspect.signature(call)
        return timed

    for name, part in _MODULE_PARTS.items():
        setattr(module, name, wrapped(getattr(module, name), part))
    try:
        yield seconds
    finally:
        for name in _MODULE_PARTS:
            delattr(module, name)


def shares(module_seconds: dict[str, float], profiler: PartsProfiler, total: float) -> dict:
    """Share of `total` that each part took; what is left over is Lightning's and logging's."""
    parts = dict(module_seconds)
    for part in ("data", "backward"):
        parts[part] = profiler.seconds[part]
    inside = profiler.seconds["training_step"] + profiler.seconds["backward"]
    parts["optimiser"] = max(profiler.seconds["optimizer_step"] - inside, 0.0)
    parts["Lightning and logging"] = max(total - sum(parts.values()), 0.0)
    return {name: round(seconds / total, 3) for name, seconds in parts.items()}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """MB above the start: resident on the CPU (Linux's VmHWM), allocated on the GPU.

    What a process has freed it may use again unseen: measure in one that has done nothing else.
    """
    found: dict[str, float] = {}
    forget_peak()
    start = peak_mb()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield found
    found["resident_mb"] = round(peak_mb() - start, 1)
    if torch.cuda.is_available():
        found["cuda_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)


def peak_mb() -> float:
    """The most memory that was resident since :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak() -> None:
    """Give free memory back, which glibc keeps, and let the peak be what is resident then."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
