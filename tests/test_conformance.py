"""The conformance runner's own machinery; `make conformance` runs scvi-tools' tests with it."""

import importlib.util
import inspect
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "conformance"


@pytest.fixture(scope="module")
def plugin():
    spec = importlib.util.spec_from_file_location("rebinding", FOLDER / "scvi_rebinding.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def positional(a, b=1, n_components=4, c=2, **kwargs):
    return a, b, n_components, c


def keyword_only(a, b=1, *, n_components=4, c=2):
    return a, b, n_components, c


@pytest.mark.parametrize("function", [positional, keyword_only])
def test_the_default_changes_and_nothing_else(plugin, function):
    plugin.set_default(function, "n_components", 3)
    assert function(0) == (0, 1, 3, 2)
    assert function(0, n_components=7, c=5) == (0, 1, 7, 5)
    assert inspect.signature(function).parameters["n_components"].default == 3


def test_every_expected_failure_has_a_test_and_a_reason():
    failures = tomllib.loads((FOLDER / "expected_failures.toml").read_text())["failure"]
    assert failures
    for failure in failures:
        assert set(failure) == {"test", "reason"}
        assert "::" in failure["test"]
        assert len(failure["reason"].split()) > 3
