"""The experiment of latent depths, on a corner of the data, and its report."""

import json
from itertools import product

import numpy as np

from scmixvi.experiments import depths
from scmixvi.experiments._reports import depths as report
from scmixvi.experiments.calibration import STAGES


def test_smoke_run_has_every_posterior_and_is_reported(tmp_path):
    result = tmp_path / "depths.json"
    depths.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    jobs = [f"cortex/{kind}/S={size}" for kind in ("inferred", "latent") for size in (1, 4)]
    assert set(runs) == {f"{job}/seed=0" for job in jobs}
    for job in jobs:
        run = runs[f"{job}/seed=0"]
        for what, stage in product(("z", "expression"), STAGES):
            assert 0.2 < run[f"{what}/{stage}"] < 1
        if "inferred" in job:
            assert 0.7 < run["width"] < 1.5
            assert 0 < run["shift"] < 2
        else:
            for group in ("test", "training"):
                gaps = [run[group][f"gap/{stage}"] for stage in depths.STEPS]
                # These encoders are hardly trained. What is left of 3 cells by 40 draws is noisy.
                assert gaps[0] > 100 * max(gaps[1:])
                assert min(gaps[1:]) > 0
                assert run[group]["still_rising"] < 0.5
    table = report.depths_tables(runs)
    run = runs["cortex/latent/S=4/seed=0"]
    start = "| trained so | cortex | 4 |"
    row = next(line for line in table.splitlines() if line.startswith(start))
    assert f"| {100 * run['z/exact']:.1f} |" in row
    assert f"| {run['test']['gap/50 steps']:.1f} |" in table
    assert f"| {runs['cortex/inferred/S=1/seed=0']['width']:.2f} |" in table
    report.depths_figure(runs, tmp_path / "depths.png")
    assert (tmp_path / "depths.png").stat().st_size > 0


def test_widths_and_shifts_are_in_units_of_the_posterior_of_sums(monkeypatch):
    rng = np.random.default_rng(0)
    sums = rng.normal(0, [1.0, 3.0], (4000, 5, 2))

    class Model:
        def get_posterior_samples(self, use_observed_lib_size, **_):
            return sums if use_observed_lib_size else 2 * sums + [1.0, -3.0]

    found = depths.compared(Model(), np.arange(5), smoke=False)
    np.testing.assert_allclose([found["width"], found["shift"]], [2, 1], atol=0.05)
