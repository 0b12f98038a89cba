"""What every JSON says of where it was made."""

import importlib.util
import json
import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import anndata
import numpy as np
import pytest
import sklearn

import scmixvi
from scmixvi import records

CPU_INFO = "processor\t: 0\nmodel name\t: A CPU: 3 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n"


def test_the_device_is_the_cpus_model(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO)
    monkeypatch.setattr(records, "CPU_INFO", path)
    assert records.environment("cpu")["device"] == "A CPU: 3 GHz"


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nmodel name\t:\n"])
def test_a_cpu_that_cannot_be_read_is_what_python_calls_it(text, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(records, "CPU_INFO", path)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert records.cpu_name() == "riscv64"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert records.cpu_name() == "arm"


def test_versions_of_optional_packages_are_there_where_they_are(monkeypatch):
    found = records.environment("cpu")
    assert found["scikit-learn"] == sklearn.__version__

    def version(name):
        if name == "scib-metrics" and not installed:
            raise PackageNotFoundError(name)
        return f"version of {name}"

    monkeypatch.setattr(records, "version", version)
    installed = True
    assert records.environment("cpu")["scib-metrics"] == "version of scib-metrics"
    installed = False
    assert "scib-metrics" not in records.environment("cpu")
    assert records.environment("cpu")["scvi-tools"] == "version of scvi-tools"


def test_a_clone_that_is_not_installed_is_recorded(monkeypatch):
    def version(name):
        if name == "scmixvi":
            raise records.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(records, "version", version)
    assert records.environment("cpu")["scmixvi"] == scmixvi.__version__


def test_the_demo_s_json_says_where_it_was_made(tmp_path):
    path = Path(__file__).parents[1] / "tutorials" / "demo.py"
    spec = importlib.util.spec_from_file_location("tutorials_demo", path)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    arguments = Namespace(output=tmp_path, seed=3, max_epochs=1)
    machine = records.environment("cpu")
    demo.write(anndata.AnnData(np.ones((2, 2))), {"a": {"JSD": 0.5}}, arguments, machine)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["made_with"] == {"seed": 3, "max_epochs": 1, "environment": machine}
    assert {"date", "device", "threads", "scvi-tools"} <= machine.keys()
    assert content["models"] == {"a": {"JSD": 0.5}}


def test_what_holds_nothing_further_stands_on_one_line(tmp_path):
    content = {
        "runs": {"a/seed=0": {"test": {"x": 1.5, "y": None}, "n": [1, 2]}, 'b"': {}},
        "rows": [{"k": "v\n"}, [], [[1], "t"]],
        "flat": True,
        "none": [],
    }
    path = tmp_path / "figures.json"
    records.write(path, content)
    text = path.read_text()
    assert json.loads(text) == content
    assert text.count("\n") == 19
    assert '   "test": {"x": 1.5, "y": null},\n' in text
    assert records.read(path, None) == content
    for value in ({}, [], [1], 3, {"a": {}}, [{}], {1: [2]}):
        records.write(path, value)
        assert json.loads(path.read_text()) == json.loads(json.dumps(value))
