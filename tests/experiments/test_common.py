"""What the experiments share: resuming, seeds and intervals."""

import json
import math
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scipy import stats

from scmixvi.experiments import _common


@pytest.fixture
def arguments(tmp_path):
    return _common.parse("An experiment.", tmp_path / "x.json", ["--seed", "3", "--smoke"])


def draw():
    return {"torch": torch.rand(1).item(), "numpy": np.random.rand()}  # noqa: NPY002


def test_a_resumed_experiment_finds_what_an_uninterrupted_one_finds(arguments, tmp_path):
    _common.run_missing(arguments, {"a": draw, "b": draw})
    whole = json.loads(arguments.result.read_text())
    assert set(whole["runs"]) == {"a/seed=3", "b/seed=3"}
    environment = whole["runs"]["a/seed=3"]["environment"]
    assert torch.__version__.startswith(environment["torch"])
    assert whole["runs"]["a/seed=3"]["torch"] == whole["runs"]["b/seed=3"]["torch"]

    again = _common.parse("Doc.", tmp_path / "y.json", ["--seed", "3", "--smoke"])
    with pytest.raises(ZeroDivisionError):
        _common.run_missing(again, {"a": draw, "b": lambda: 1 / 0})
    _common.run_missing(again, {"a": lambda: pytest.fail("a is there"), "b": draw})
    resumed = json.loads(again.result.read_text())
    for key in whole["runs"]:
        assert resumed["runs"][key]["torch"] == whole["runs"][key]["torch"]
        assert resumed["runs"][key]["numpy"] == whole["runs"][key]["numpy"]


def test_what_another_process_wrote_meanwhile_is_kept(arguments):
    other = _common.parse("Doc.", arguments.result, ["--seed", "4", "--smoke"])

    def job():
        _common.run_missing(other, {"a": draw})
        return draw()

    _common.run_missing(arguments, {"a": job})
    assert set(json.loads(arguments.result.read_text())["runs"]) == {"a/seed=3", "a/seed=4"}


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    def run(seed):
        words = ["--seed", str(seed), "--smoke"]
        arguments = _common.parse("Doc.", tmp_path / "x.json", words)
        _common.run_missing(arguments, {f"a{i}": draw for i in range(40)})

    processes = [get_context("fork").Process(target=run, args=(seed,)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(json.loads((tmp_path / "x.json").read_text())["runs"]) == 3 * 40
    assert not list(tmp_path.glob("*.part"))


def test_a_training_that_is_told_to_end_says_so_and_writes_nothing(arguments):
    def ended():
        raise SIGTERMException

    with pytest.raises(SystemExit) as status:
        _common.run_missing(arguments, {"data/ended": ended, "data/next": dict})
    assert status.value.code == 143
    assert not arguments.result.exists()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"smoke": true}', '{"runs": []}'])
def test_what_is_no_result_is_left_alone(arguments, content):
    arguments.result.write_text(content)
    with pytest.raises(ValueError, match="x.json is no result of an experiment, or is damaged"):
        _common.run_missing(arguments, {"a": draw})
    assert arguments.result.read_text() == content


def test_a_place_that_cannot_be_written_is_said_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = _common.parse("Doc.", tmp_path / "file" / "x.json", [])
    with pytest.raises(OSError, match="file cannot be made or written to"):
        _common.run_missing(arguments, {"a": lambda: pytest.fail("ran")})
    with pytest.raises(ValueError, match="no result of an experiment"):
        _common.recorded(tmp_path)


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x", "1.5"])
def test_seeds_are_those_that_all_libraries_take(tmp_path, capsys, seed):
    with pytest.raises(SystemExit):
        _common.parse("Doc.", tmp_path / "x.json", [f"--seed={seed}"])
    assert f"{seed!r} is no whole number from 0 to 2^32 - 1" in capsys.readouterr().err


def test_weights_of_results_that_are_named_alike_are_apart(tmp_path):
    names = "run.json", "run.v1", "run.v2", "run.v1.json"
    found = [_common.beside(tmp_path / name, ".weights").name for name in names]
    assert found == ["run.weights", "run.v1.weights", "run.v2.weights", "run.v1.weights"]


def test_damaged_weights_are_named(arguments):
    _common.trained(arguments, "a", lambda: {"w": torch.ones(2)})
    path = _common.place_of(arguments, "a")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{path.name} is damaged: delete it, to train again"):
        _common.trained(arguments, "a", dict)


def test_smoke_and_real_runs_do_not_mix(arguments):
    _common.run_missing(arguments, {"a": draw})
    arguments.smoke = False
    with pytest.raises(ValueError, match="holds smoke runs and cannot take real ones"):
        _common.run_missing(arguments, {"b": draw})


def test_runs_of_other_settings_do_not_mix(arguments, tmp_path):
    def run(name, seed=3, **settings):
        words = ["--smoke", "--seed", str(seed), "--result", str(tmp_path / "x.json")]
        other = _common.parse("Doc.", tmp_path, words)
        _common.run_missing(other, {name: draw}, settings=settings)
        return json.loads(arguments.result.read_text())["runs"]

    run("mnist/a", epochs=10, samples=5)
    for name, seed in (("mnist/a", 3), ("mnist/a", 4), ("mnist/b", 3)):
        with pytest.raises(ValueError, match=r"a/seed=3 with epochs = 10, not 20: .* --result\."):
            run(name, seed, epochs=20, samples=5)
    runs = run("mnist/a", 4, epochs=10, samples=5)
    assert runs["mnist/a/seed=4"]["settings"] == {"epochs": 10, "samples": 5}
    assert len(run("cifar10/a", epochs=20)) == 3, "data sets have settings of their own"
    assert len(run("mnist/c", epochs=10, splits=2)) == 4, "what no run says is no other setting"


def test_runs_without_settings_are_left_alone(arguments):
    before = {"environment": {"torch": "1.0"}, "smoke": True, "runs": {"a/seed=0": {"nll": 1.0}}}
    arguments.result.write_text(json.dumps(before))
    _common.run_missing(arguments, {"a": draw}, settings={"epochs": 10})
    after = json.loads(arguments.result.read_text())
    assert after["environment"] == before["environment"], "of the runs that have none themselves"
    assert after["runs"]["a/seed=0"] == {"nll": 1.0}
    assert after["runs"]["a/seed=3"]["settings"] == {"epochs": 10}


def test_settings_are_compared_again_before_writing(arguments):
    other = _common.parse("Doc.", arguments.result, ["--seed", "4", "--smoke"])

    def job():
        _common.run_missing(other, {"a": draw}, settings={"epochs": 20})
        return draw()

    with pytest.raises(ValueError, match="a/seed=4 with epochs = 20, not 10"):
        _common.run_missing(arguments, {"a": job}, settings={"epochs": 10})


def test_weights_are_trained_once(arguments):
    calls = []

    def train():
        calls.append(1)
        return {"weight": torch.rand(2), "n_epochs": 7}

    first = _common.trained(arguments, "S=1", train)
    torch.rand(5)
    assert torch.equal(_common.trained(arguments, "S=1", train)["weight"], first["weight"])
    assert torch.equal(_common.trained(arguments, "S=2", train)["weight"], first["weight"])
    assert len(calls) == 2
    torch.manual_seed(3)
    assert torch.equal(first["weight"], torch.rand(2)), "training starts from the seed"
    after = []
    for _ in range(2):
        _common.trained(arguments, "S=3", train)
        after.append(torch.rand(1).item())
    assert after[0] == after[1], "what follows does not depend on whether it was trained now"


def test_threads_are_one_unless_the_environment_says_otherwise(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _common.prepare(0)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _common.prepare(0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_interval_is_scipys():
    values = [2.0, 3.5, 1.0, 4.0, 2.5]
    mean, half = _common.interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(_common.interval([1.0])[1])
    with pytest.raises(ValueError, match="at least one value"):
        _common.interval([])


def test_cells():
    assert _common.cell([]) == "not run"
    assert _common.cell([0.5], 1, 100) == "50.0"
    # t(0.975, df = 1) = 12.706; standard error of (1, 3) is 1
    assert _common.cell([1.0, 3.0], 1, sign=True) == "+2.0 ± 12.7"


def test_differences_are_paired_by_seed():
    runs = {"m/seed=10": {"v": 1}, "m/seed=2": {"v": 5}, "mm/seed=1": {}, "m/S=2/seed=1": {}}
    found = _common.by_seed(runs, "m")
    assert list(found) == [2, 10]
    values = {seed: run["v"] for seed, run in found.items()}
    assert _common.paired(values, {10: 0.5, 3: 9.0}) == [0.5]
