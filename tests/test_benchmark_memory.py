"""The benchmark of memory trains both ways, and leaves the training as it was."""

import json
import sys

from benchmarks import memory as benchmark
from scmixvi.core.memory import freed_memory_kept
from scmixvi.singlecell._training import fitting as _fitting


def test_both_ways_are_compared(tmp_path, monkeypatch):
    result = tmp_path / "memory.json"
    options = ["--epochs", "1", "--rounds", "1", "--threads", "1", "--n-cells", "200"]
    options += ["--n-genes", "300", "--components", "2", "--result", str(result)]
    monkeypatch.setattr(sys, "argv", ["memory", *options])
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda _: SameProcess)
    benchmark.main()
    (row,) = json.loads(result.read_text())["rows"]
    assert (row["n_genes"], row["n_components"]) == (300, 2)
    assert all(row["seconds_an_epoch"][way]["median"] > 0 for way in ("kept", "given back"))
    assert set(row["pages_a_step"]) == {"kept", "given back"}
    assert _fitting.freed_memory_kept is freed_memory_kept


class SameProcess:
    """In the place of multiprocessing's context and pool."""

    def __init__(self, n_processes):
        assert n_processes == 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def apply(self, function, arguments):
        return function(*arguments)

    Pool = classmethod(lambda cls, n_processes: cls(n_processes))
