"""Where the seconds of a training epoch go, and how much memory it takes."""

import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from torch import nn

_MODULE_PARTS = {"inference": "encoder", "generative": "decoder", "loss": "likelihood and bound"}


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
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())
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
        self._started[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add what it took to its part."""
        taken = time.perf_counter() - self._started.pop(action_name)
        for ending, part in self._ACTIONS.items():
            if action_name.endswith(ending) and "[Callback]" not in action_name:
                self.seconds[part] += taken


@contextmanager
def timed_parts(module: nn.Module) -> Iterator[dict[str, float]]:
    """Time the module's inference, generative and loss by name while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)

    def wrapped(call: Callable, part: str) -> Callable:
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

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
    """MB above the start: resident set on the CPU, allocated on the GPU."""
    found: dict[str, float] = {}
    process, stop = psutil.Process(), threading.Event()
    start = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not stop.wait(0.01):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["resident_mb"] = round((highest - start) / 2**20, 1)
        if torch.cuda.is_available():
            found["cuda_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
