"""One training a folder at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder against other trainings; it is made where there is none.

    No file is written: the lock is the system's and is gone with the process, however that ends.
    Where the system or a network drive has no such lock, nothing is held.

    Raises
    ------
    ValueError
        If another training holds it.
    OSError
        If it cannot be made.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        _lock(held, folder)
        yield
    finally:
        os.close(held)


def _lock(held: int, folder: str | Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another training is running in {folder}: wait for its end, or name another folder by "
            "--trainer.default_root_dir."
        ) from error
    except OSError:  # no locks there
        return
