"""Results as JSON: with versions, device and date, and never half-written."""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from filelock import FileLock

import scmixvi

PACKAGES = ("scvi-tools", "torch", "lightning", "anndata", "scanpy", "scikit-learn")
OPTIONAL_PACKAGES = ("scib-metrics",)
CPU_INFO = Path("/proc/cpuinfo")
UNWRITABLE = "the folder {folder} cannot be made or written to: {error}"


def environment(device: torch.device | str | None = None) -> dict[str, str | int]:
    """What a figure depends on besides the code and its arguments.

    Parameters
    ----------
    device
        Where it was computed; None is the GPU where there is one.

    Returns
    -------
    Date (UTC), device name (the CPU's model where it can be read), number of CPU threads, and
    versions; of packages that only some experiments need, where they are installed.
    """
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "scmixvi": scmixvi.__version__,  # also where a clone is run that is not installed
        **{name: version(name) for name in PACKAGES},
        **_installed(OPTIONAL_PACKAGES),
    }


def cpu_name() -> str:
    """The CPU's model where Linux says it, otherwise what Python calls processor or machine."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*models, platform.processor(), platform.machine()]))


def _installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_writable(folder: str | Path) -> None:
    """Make a folder, and a file in it that is gone at once.

    Raises
    ------
    OSError
        If that cannot be done; the message names the folder.
    """
    folder = Path(folder).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(UNWRITABLE.format(folder=folder, error=error)) from error


def read(path: Path, default: Any) -> Any:
    """The JSON at `path`, or `default` where there is none."""
    return json.loads(path.read_text()) if path.exists() else default


def write(path: Path, content: Any) -> None:
    """Replace the file at `path` in one step, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.{os.getpid()}.part")
    whole.write_text(_text(content) + "\n")
    os.replace(whole, path)


def _text(value: Any, indent: str = "") -> str:
    """JSON in which what holds no further objects or lists stands on one line."""
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not any(isinstance(p, dict | list) for p in parts):
        return json.dumps(value)
    inner = [_text(part, indent + " ") for part in parts]
    if isinstance(value, dict):
        inner = [f"{json.dumps(str(k))}: {text}" for k, text in zip(value, inner, strict=True)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{indent} " + f",\n{indent} ".join(inner) + f"\n{indent}{end}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of such a block of theirs: to read `path`, change and write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield
