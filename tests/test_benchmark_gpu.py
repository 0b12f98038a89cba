"""The runner of what needs a GPU: what it does with stages that fail or take too long."""

import json
import os
import sys
import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import STAGES, Stage, run


def python(code, most_seconds=60, takes_minutes=False):
    return Stage(("-c", code), most_seconds, takes_minutes)


def test_every_stage_has_its_turn_and_its_exit_status(tmp_path):
    result = tmp_path / "gpu.json"
    stages = {
        "wrong": python("raise SystemExit(3)"),
        "slow": python("import time; time.sleep(60)", most_seconds=0.5),
        "right": python("pass"),
    }
    status = run(stages, 1, result, "cpu")
    assert status == {"wrong": "failed", "slow": "out of time", "right": "ok"}
    found = json.loads(result.read_text())
    assert [row["exit_status"] for row in found.values()] == [3, None, 0]
    assert found["slow"]["seconds"] < 30
    assert found["right"]["environment"]["torch"] == torch.__version__.partition("+")[0]


def test_nothing_begins_once_the_minutes_are_over(tmp_path):
    status = run({"late": python("pass")}, 0, tmp_path / "gpu.json", "cpu")
    assert status == {"late": "not begun"}
    assert not (tmp_path / "gpu.json").exists()


def test_what_a_stage_started_ends_with_it(tmp_path):
    pid = tmp_path / "pid"
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time, pathlib\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    run({"parent": python(code, most_seconds=3)}, 1, tmp_path / "gpu.json", "cpu")
    deadline = time.monotonic() + 10
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(pid.read_text()))


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_stage_that_ends_by_itself_hears_its_minutes(tmp_path):
    code = "import sys, pathlib; pathlib.Path('{}').write_text(' '.join(sys.argv[1:]))"
    heard = tmp_path / "heard"
    run({"paper": python(code.format(heard), 60, True)}, 2, tmp_path / "gpu.json", "cpu")
    assert heard.read_text() == "--minutes 0.80"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
def test_without_a_device_it_says_so():
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main([])


@pytest.mark.parametrize("name", [name for name in STAGES if name != "tests"])
def test_every_stage_is_a_command_that_takes_its_arguments(name, monkeypatch, capsys):
    """The stages' own parsers, asked without running anything."""
    module, *words = STAGES[name].arguments[1:]
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit) as stopped:
        __import__(module, fromlist=["main"]).main()
    assert stopped.value.code == 0
    offered = capsys.readouterr().out
    assert all(word in offered for word in words if word.startswith("--"))
