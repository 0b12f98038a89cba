"""Pytest plugin: `scvi.model.SCVI` becomes MixtureSCVI before scvi-tools' tests import it."""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
import rich.pretty  # noqa: F401  (scvi-tools 1.4 uses it and relies on others to import it)

EXPECTED = Path(__file__).with_name("expected_failures.toml")

HOLDERS = [
    "scvi.model",
    "scvi.external",
    "scvi.hub",
    "scvi.criticism",
    "scvi.autotune",
]
"""Modules that keep SCVI itself (SCANVI, SOLO, ...): imported before the name is rebound."""


def pytest_addoption(parser):
    group = parser.getgroup("conformance")
    group.addoption("--mixture-components", type=int, help="S; without it SCVI stays in place")


def set_default(function, name, value):
    """Give a parameter of `function` another default, for every way of calling it."""
    parameter = inspect.signature(function).parameters[name]
    if parameter.kind is parameter.KEYWORD_ONLY:
        function.__kwdefaults__[name] = value
        return
    optional = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.KEYWORD_ONLY and p.default is not p.empty
    ]
    defaults = dict(zip(optional, function.__defaults__, strict=True)) | {name: value}
    function.__defaults__ = tuple(defaults.values())


def import_if_there(name):
    try:
        importlib.import_module(name)
    except ImportError as error:  # autotune needs ray, hub needs huggingface_hub
        return f"{name} not imported: {error}".splitlines()[0]
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    n_components = config.getoption("--mixture-components")
    config.scvi_notes = [note for note in map(import_if_there, HOLDERS) if note]
    import scvi.model

    if n_components is not None:
        from scmixvi import MixtureSCVI

        set_default(MixtureSCVI.__init__, "n_components", n_components)
        scvi.model.SCVI = MixtureSCVI


def pytest_sessionstart(session):
    import scvi

    write = session.config.get_terminal_writer().line
    n_components = session.config.getoption("--mixture-components")
    kind = "control" if n_components is None else f"S = {n_components}"
    write(f"scvi-tools {scvi.__version__}; scvi.model.SCVI is {scvi.model.SCVI!r} ({kind})")
    for note in session.config.scvi_notes:
        write(note)


def pytest_collection_modifyitems(config, items):
    """Mark the expected failures, strictly: one that passes is a failure of the run."""
    if config.getoption("--mixture-components") is None:
        return
    expected = {f["test"]: f["reason"] for f in tomllib.loads(EXPECTED.read_text())["failure"]}
    found = {item.nodeid: item for item in items if item.nodeid in expected}
    files = {item.nodeid.split("::")[0] for item in items}
    whole = not any("::" in str(argument) for argument in config.args) and not config.option.keyword
    gone = [t for t in expected if whole and t not in found and t.split("::")[0] in files]
    if gone:
        raise pytest.UsageError(f"{EXPECTED.name} names tests that are not there: {gone}")
    for nodeid, item in found.items():
        item.add_marker(pytest.mark.xfail(reason=expected[nodeid], strict=True))
