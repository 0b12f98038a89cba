"""The API page lists every public object, and nothing that is not there."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MODULES = ["core", "datasets", "image", "pl", "singlecell"]


def listed():
    """Names under autosummary on the API page, relative to the package."""
    return set(re.findall(r"^   ([\w.]+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_object_has_its_place(module):
    found = importlib.import_module(f"scmixvi.{module}")
    names = {name for name in found.__all__ if not inspect.ismodule(getattr(found, name))}
    pages = listed()
    pages |= {page.rsplit(".", 1)[0] for page in pages}
    missing = {n for n in names if f"{module}.{n}" not in pages and n not in pages}
    assert missing == set()


def test_every_listed_object_exists():
    assert len(listed()) > 10
    for name in listed():
        module, _, attribute = f"scmixvi.{name}".rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name
