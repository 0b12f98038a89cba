"""Results as JSON: with versions, device and date, and never half-written."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, str]:
    """What a figure depends on besides the code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    packages = ("scmixvi", "scvi-tools", "torch", "lightning", "anndata", "scanpy")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def read(path: Path, default: Any) -> Any:
    """The JSON at `path`, or `default` where there is none."""
    return json.loads(path.read_text()) if path.exists() else default


def write(path: Path, content: Any) -> None:
    """Replace `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(whole, path)
