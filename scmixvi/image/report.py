"""What a run leaves behind: what it was made by, for the JSON, and a sheet of sampled images."""

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scmixvi.records import environment


def run_record(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Command, seed, date, versions and device of this process, as plain values."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    program = ["-m", module.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]
    try:
        torchvision = version("torchvision")
    except PackageNotFoundError:
        torchvision = "none"
    return {
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
        "seed": run_seed(),
        "environment": environment(device) | {"torchvision": torchvision},
    }


def run_seed() -> int | None:
    """What Lightning's `seed_everything` was called with in this process, if it was."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def sample_sheet(images: Tensor, path: str | Path) -> None:
    """Write images `[n, C, H, W]` within [0, 1] as one PNG, in rows of about sqrt(n)."""
    from torchvision.utils import save_image  # an extra: `import scmixvi.image` must do without

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_image(images.float().cpu(), path, nrow=max(1, round(len(images) ** 0.5)), padding=1)
