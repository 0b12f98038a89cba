"""The API page lists every public object, and what the pages name exists."""

import ast
import importlib
import inspect
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import scmixvi

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("[!_g]*/*.md"), ROOT / "README.md"])
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


pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def path_of(page, name):
    """Where a file that a page names may be: beside it, at the root, or among the configs."""
    return [page.parent / name, ROOT / name, ROOT / "scmixvi" / "image" / name]


@pages
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        assert find_spec(module.rstrip(".")), f"there is no module {module}"
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"(?:`|^)make (\w+)", text, flags=re.MULTILINE):
        assert target in targets, f"there is no make {target}"


@pages
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:benchmarks|configs|docs|scmixvi|tests|tutorials)/[\w./]+)`", text)
    named += re.findall(r"--config ([\w./]+)", text)
    named += re.findall(r"\]\((?!https?:)([^)#\s]+\.\w+)[^)\s]*\)", text)
    named += re.findall(r"^```\{(?:include|figure|literalinclude)\} (\S+)", text, re.MULTILINE)
    missing = [n for n in named if not any(path.exists() for path in path_of(page, n))]
    assert missing == []


@pages
def test_python_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                found = importlib.import_module(node.module)
                missing = [n.name for n in node.names if not hasattr(found, n.name)]
                assert missing == [], f"{node.module} has no {missing}"


def imported(source):
    """What of ours Python imports by name, relative to the package; no modules, no experiments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "scmixvi":
            found = importlib.import_module(node.module)
            module = node.module.removeprefix("scmixvi").removeprefix(".")
            if not module.startswith("experiments"):
                names = (alias.name for alias in node.names)
                yield from (f"{module}.{n}" for n in names if not inspect.ismodule(vars(found)[n]))


def test_what_pages_and_notebooks_import_is_on_the_api_page():
    python = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
    blocks = [block for page in PAGES for block in python.findall(page.read_text())]
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        blocks += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    named = {name for block in blocks for name in imported(block)}
    assert len(named) > 20
    assert named - listed() == set()


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == scmixvi.__version__
    assert citation["license"] == "BSD-3-Clause"
