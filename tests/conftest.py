"""Shared by all tests: the laws are importable, and every test starts from one seed."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir():
    """Folder of real data that packages do not bundle; skips where it is missing."""
    folder = Path(os.environ.get("SCMIXVI_DATA_DIR", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("SCMIXVI_DATA_DIR is not set to a folder of data")
    return folder
