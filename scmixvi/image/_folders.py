"""One training a folder at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder against other trainings, by a lock in it; it is made where there is none.

    The lock is the system's and is gone with the process, however that ends.

    Raises
    ------
    ValueError
        If another training holds it.
    OSError
        If it cannot be made or written to.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(Path(folder) / "training.lock").acquire(timeout=0))
        except Timeout as error:
            raise ValueError(
                f"another training is running in {folder}: wait for its end, or name another "
                "folder by --trainer.default_root_dir."
            ) from error
        except NotImplementedError:  # a drive without locks
            pass
        yield
