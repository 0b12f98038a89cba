"""The benchmark of many components: what it compares, keeps and draws."""

import json

import pytest

from benchmarks import many_components as benchmark


def test_it_writes_what_it_measured_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    out = tmp_path / "many.json"
    words = f"--smoke --components 1 5 --n-drawn 2 --rounds 2 --seeds 3 5 --out {out}".split()
    benchmark.main(["times", "bounds", "plot", *words])
    record = json.loads(out.read_text())
    names = [benchmark.REFERENCE, *(n for n in benchmark.models([2], [1, 5]) if "trunk" in n)]
    for data in ("cortex", "mnist"):
        times, bounds = record["times"][data]["models"], record["bounds"][data]
        assert list(times) == list(bounds) == names
        assert times[benchmark.REFERENCE]["ratio"]["median"] == 1.0
        for runs in bounds.values():
            assert list(runs) == ["3", "5"]
            assert runs["3"]["miselbo"] != runs["5"]["miselbo"]
            for row in runs.values():
                assert row["miselbo"] < row["log_likelihood"] + 5
                assert row["seconds"] > 0
    assert out.with_suffix(".png").stat().st_size > 1000
    monkeypatch.setattr(benchmark, "BOUNDS", dict.fromkeys(("cortex", "mnist"), pytest.fail))
    benchmark.main(["bounds", *words])
    assert json.loads(out.read_text()) == record
