"""Results as JSON: with versions, device and date, and never half-written."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

PACKAGES = ("scmixvi", "scvi-tools", "torch", "lightning", "anndata", "scanpy")


def environment(device: torch.device | str | None = None) -> dict[str, str | int]:
    """What a figure depends on besides the code and its arguments.

    Parameters
    ----------
    device
        Where it was computed; None is the GPU where there is one.

    Returns
    -------
    Date (UTC), device name, number of CPU threads, and versions.
    """
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def read(path: Path, default: Any) -> Any:
    """The JSON at `path`, or `default` where there is none."""
    return json.loads(path.read_text()) if path.exists() else default


def write(path: Path, content: Any) -> None:
    """Replace the file at `path` in one step, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.{os.getpid()}.part")
    whole.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(whole, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of such a block of theirs: to read `path`, change and write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield
