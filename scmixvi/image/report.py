"""What a run leaves behind: figures as JSON, with what they were made by, and a sample sheet."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scmixvi


def run_record(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Command, date, versions, device and seed of this process, as plain values."""
    program = Path(sys.argv[0])
    module = getattr(sys.modules["__main__"].__spec__, "name", program.name)
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "command": " ".join(["python -m", module.removesuffix(".__main__"), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"scmixvi": scmixvi.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "lightning", "torchvision")},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": None if seed is None else int(seed),
    }


def device_name(device: torch.device | str) -> str:
    """Name of the processor behind a torch device."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sample_sheet(images: Tensor, path: str | Path) -> None:
    """Write images `[n, C, H, W]` within [0, 1] as one PNG, in rows of about sqrt(n)."""
    from torchvision.utils import save_image  # an extra: `import scmixvi.image` must do without

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_image(images.float().cpu(), path, nrow=max(1, round(len(images) ** 0.5)), padding=1)


def write_json(record: dict[str, Any], path: str | Path) -> None:
    """Write plain values as indented JSON; missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
