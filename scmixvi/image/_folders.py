"""One training a folder at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from scmixvi.records import UNWRITABLE


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder against other trainings, by a lock in it; it is made where there is none.

    Where the drive has locks, it is the system's and is gone with the process, however that ends.
    Where it has none, filelock keeps a marker file instead, which a killed process leaves behind
    and a later one takes over on the same machine alone; its older versions hold nothing there.

    Raises
    ------
    ValueError
        If another training holds it.
    OSError
        If it cannot be made or written to; the message names the folder.
    """
    with ExitStack() as held:
        try:
            _hold(folder, held, timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another training is running in {folder}: wait for its end, or name another "
                "folder by --trainer.default_root_dir. (On a drive without locks a killed one may "
                "have left training.lock: remove it if none runs.)"
            ) from error
        yield


@contextmanager
def in_turn_in(folder: str | Path) -> Iterator[None]:
    """As :func:`alone_in`, but wait, and say so, while another training holds the folder.

    Raises
    ------
    OSError
        As :func:`alone_in`.
    """
    with ExitStack() as held:
        try:
            _hold(folder, held, timeout=0)
        except Timeout:
            print(f"{folder}: another process works here, waiting for it", flush=True)
            _hold(folder, held, timeout=-1)
        yield


def _hold(folder: str | Path, held: ExitStack, timeout: float) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(Path(folder) / "training.lock").acquire(timeout=timeout))
    except NotImplementedError:  # a drive without locks
        pass
    except Timeout:
        raise
    except OSError as error:
        raise OSError(UNWRITABLE.format(folder=folder, error=error)) from error
