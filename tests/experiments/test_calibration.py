"""The experiment of known truths, on a corner of the data, and its report."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.experiments import calibration
from scmixvi.experiments._reports import calibration as report
from scmixvi.experiments.calibration import STAGES, probabilities, scored


def test_smoke_run_has_every_posterior_and_is_reported(tmp_path):
    result = tmp_path / "calibration.json"
    calibration.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    jobs = [f"cortex/{kind}/S={size}" for kind in ("simulated", "types") for size in (1, 4)]
    assert set(runs) == {f"{job}/seed=0" for job in jobs}
    for job in jobs:
        run = runs[f"{job}/seed=0"]
        if "simulated" in job:
            for depth, stage in product(report.DEPTHS, STAGES):
                assert 0.3 < run[depth][f"z/{stage}"] < 1
                assert 0.3 < run[depth][f"expression/{stage}"] < 1
        else:
            for prediction in report.PREDICTIONS:
                assert run[f"log_score/{prediction}"] < 0
                assert 0 <= run[f"right/{prediction}"] <= 1
    table = report.calibration_tables(runs)
    held = 100 * runs["cortex/simulated/S=4/seed=0"]["depth known"]["z/exact"]
    start = "| depth known | cortex | 4 |"
    row = next(line for line in table.splitlines() if line.startswith(start))
    assert f"| {held:.1f} |" in row
    added, base = (
        runs["cortex/types/S=1/seed=0"][f"log_score/{p}"] for p in ("draws/exact", "mean/encoders")
    )
    assert f"| {added - base:+.3f} |" in table
    report.calibration_figure(runs, tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 0


def test_probabilities_are_averaged_over_draws():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)
    classifier = LogisticRegression().fit(x, y)
    z = torch.from_numpy(rng.normal(size=(5, 7, 2)))
    expected = np.mean([classifier.predict_proba(part.numpy()) for part in z], axis=0)
    np.testing.assert_allclose(probabilities(classifier, z), expected)
    np.testing.assert_allclose(probabilities(classifier, z[0]), classifier.predict_proba(z[0]))


def test_scores_are_those_of_the_true_type():
    p = torch.tensor([[0.95, 0.05, 0.0], [0.2, 0.3, 0.5]])
    found = scored(p, torch.tensor([1, 2]))
    assert found["log_score"].tolist() == pytest.approx([np.log(0.05), np.log(0.5)])
    assert found["brier"].tolist() == pytest.approx([2 * 0.95**2, 0.04 + 0.09 + 0.25])
    assert found["right"].tolist() == [0, 1]
    assert found["sure_and_wrong"].tolist() == [1, 0]


def test_a_known_depth_is_all_that_differs(make_trained):
    """The likelihood of the cells is that of the depth that they were drawn with."""
    model = make_trained(batch_key="batch")
    drawn, z = calibration.simulated(model, np.arange(0, 60, 2))
    there = calibration.of_known_depth(model, drawn.copy())
    tensors = next(iter(there._make_data_loader(there.adata, batch_size=30)))
    depth = drawn.obs[calibration.DEPTH].to_numpy()
    assert not np.allclose(depth, drawn.X.sum(1).A1)
    found = []
    for scale in (1.0, 2.0):
        tensors["size_factor"] = torch.from_numpy(scale * depth).float().unsqueeze(1)
        encoded = there.module._encoded_whole(tensors)
        given = there.module._get_generative_input(tensors, encoded) | {"z": z}
        found.append(there.module.generative(**given)["px"].mu.sum(1))
    torch.testing.assert_close(found[0], torch.from_numpy(depth).float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1], 2 * found[0])
    counts = there.adata_manager.get_from_registry("X")
    assert (counts != drawn.X).nnz == 0
    np.testing.assert_array_equal(there.adata.obs["_scvi_batch"], drawn.obs["_scvi_batch"])


@pytest.fixture
def make_trained():
    def make(**setup):
        adata = make_adata()
        MixtureSCVI.setup_anndata(adata, **setup)
        model = MixtureSCVI(adata, n_components=2, n_hidden=16, n_latent=3)
        model.train(1, latent_key=None, **QUIET)
        return model

    return make
