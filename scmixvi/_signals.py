"""What a program does that is told to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

TOLD_TO_END = 128 + signal.SIGTERM  # 143, as shells say of what was told to end


@contextmanager
def status_of_ending() -> Iterator[None]:
    """Let a training that is told to end leave with 143: Lightning's exception leaves with 0."""
    try:
        yield
    except SIGTERMException as ended:
        raise SystemExit(TOLD_TO_END) from ended


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGTERM end what runs now, where Lightning would wait for the end of a batch.

    A batch of a test may take thousands of samples of every image. Off the main thread, where
    Python takes no signals, nothing changes.
    """

    def end(signum: int, frame: Any) -> None:
        raise SystemExit(TOLD_TO_END)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
