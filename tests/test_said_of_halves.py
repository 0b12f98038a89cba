"""What the pages say of halves of cells, and of depths that are latent, is so."""

from itertools import product

import numpy as np
from recorded import beyond, by_job

from scmixvi.experiments._common import interval, paired
from scmixvi.experiments.halves import POWERS

DATASETS = ("cortex", "sc_mixology", "pbmc68k")
OTHERS = ("100 steps", "exact", "100 steps, depth latent", "exact, depth latent")


def of(data, size, stage, kind="default"):
    return by_job("halves.json", f"{data}/{kind}/S={size}", stage)


def rounded(values):
    mean, half = interval(values)
    return round(mean, 1), round(half, 1)


def more(data, size, stage, other, kind="default"):
    return paired(of(data, size, stage, kind), of(data, size, other, kind))


def test_what_is_said_of_refined_and_exact_posteriors_is_so():
    steps = {
        (data, size): rounded(more(data, size, "100 steps", "encoders"))
        for data, size in product(DATASETS, (1, 4))
    }
    assert steps["cortex", 1] == (8.1, 1.8)
    assert steps["cortex", 4] == (7.1, 1.5)
    assert steps["sc_mixology", 1] == (6.1, 4.2)
    assert steps["sc_mixology", 4] == (4.9, 2.1)
    assert steps["pbmc68k", 1] == (0.2, 0.7)
    assert steps["pbmc68k", 4] == (0.5, 0.4)
    added = [more(data, size, "exact", "100 steps") for data, size in product(DATASETS, (1, 4))]
    assert all(map(beyond, added))
    means = [np.mean(values) for values in added]
    assert (round(min(means), 1), round(max(means), 1)) == (0.1, 0.6)


def test_what_is_said_of_latent_depths_of_halves_is_so():
    pair = "exact, depth latent", "exact"
    assert [rounded(more("cortex", size, *pair)) for size in (1, 4)] == [(1.6, 0.8), (1.6, 0.9)]
    for data, size in product(DATASETS[1:], (1, 4)):
        assert rounded(more(data, size, *pair))[0] <= 0.1


def test_what_is_said_of_four_encoders_is_so():
    gains = {
        (data, stage): paired(of(data, 4, stage), of(data, 1, stage))
        for data in DATASETS
        for stage in ("encoders", "exact")
    }
    assert rounded(gains["cortex", "encoders"]) == (1.8, 1.3)
    assert rounded(gains["sc_mixology", "encoders"]) == (1.6, 2.4)
    assert rounded(gains["pbmc68k", "encoders"]) == (-0.1, 0.5)
    assert [key for key, values in gains.items() if beyond(values)] == [("cortex", "encoders")]


def test_what_is_said_of_encoders_that_saw_parts_is_so():
    def ahead(data, size, stage):
        return paired(of(data, size, stage, "thinned"), of(data, size, stage))

    encoders = [rounded(ahead(data, 1, "encoders")) for data in DATASETS]
    assert encoders == [(5.5, 1.7), (2.6, 2.1), (3.6, 0.6)]
    assert [rounded(ahead(data, 4, "encoders"))[0] for data in DATASETS] == [4.7, 2.9, 3.5]
    gains = [ahead(data, size, "encoders") for data in DATASETS for size in (1, 4)]
    assert all(map(beyond, gains))
    means = [np.mean(values) for values in gains]
    assert (round(min(means)), round(max(means))) == (3, 5)
    exact = [rounded(ahead(data, 1, "exact")) for data in DATASETS]
    assert exact == [(1.4, 0.3), (0.7, 0.4), (2.2, 0.5)]
    best = [
        more("pbmc68k", size, "encoders", stage, "thinned")
        for size, stage in product((1, 4), OTHERS)
    ]
    assert all(map(beyond, best))
    means = [np.mean(values) for values in best]
    assert (round(min(means), 1), round(max(means), 1)) == (0.6, 0.9)


def test_what_is_said_of_powers_of_the_likelihood_is_so():
    def added(data):
        return {
            (size, power): paired(
                of(data, size, f"power {power}", "powers"), of(data, size, "power 1.0", "powers")
            )
            for size, power in product((1, 4), POWERS[:-1])
        }

    for data in ("cortex", "sc_mixology"):
        assert round(max(map(np.mean, added(data).values())), 1) <= 0.1
    found = added("pbmc68k")
    assert all(map(beyond, found.values()))
    best = max(found, key=lambda key: np.mean(found[key]))
    assert best[1] == 0.5
    assert round(np.mean(found[best]), 1) == 0.6


def held(stage, what, trained="inferred"):
    found = [
        100 * np.mean(list(by_job("depths.json", f"{data}/{trained}/S={size}", key).values()))
        for data, size, key in product(DATASETS, (1, 4), [f"{what}/{stage}"])
    ]
    return round(min(found)), round(max(found))


def test_what_is_said_of_intervals_with_latent_depths_is_so():
    assert held("exact", "z") == held("exact", "expression") == (88, 89)
    assert held("100 steps", "z") == (79, 86)
    assert held("100 steps", "expression") == (85, 88)
    assert held("exact", "z", "latent") == (88, 90)
    assert held("exact", "expression", "latent") == (88, 89)
    assert held("100 steps", "z", "latent") == (78, 86)
    assert held("100 steps", "expression", "latent") == (85, 88)


def test_what_is_said_of_real_cells_with_latent_depths_is_so():
    for data, shift in zip(DATASETS, (0.3, 0.1, 0.1), strict=True):
        for size in (1, 4):
            job = f"{data}/inferred/S={size}"
            wider = np.mean(list(by_job("depths.json", job, "width").values())) - 1
            assert 0.5 < round(100 * wider, 1) < 2.6
            assert round(np.mean(list(by_job("depths.json", job, "shift").values())), 1) == shift


def test_what_is_said_of_encoders_of_depths_is_so():
    def gaps(stage, datasets):
        jobs = (f"{data}/latent/S={size}" for data, size in product(datasets, (1, 4)))
        key = f"gap/{stage}"
        return [list(by_job("depths.json", j, "test", key).values()) for j in jobs]

    for datasets, expected in ((("cortex", "pbmc68k"), (66, 292)), (("sc_mixology",), (276, 2730))):
        found = np.array(gaps("encoders", datasets))
        assert (round(found.min()), round(found.max())) == expected
    for data in DATASETS:
        one, four = np.array(gaps("encoders", [data]))
        mean, half = interval(one - four)
        assert mean - half < 0, "nowhere do four leave less, beyond the noise"
    for stage, expected in (("50 steps", (1.0, 3.0)), ("100 steps", (0.9, 2.6))):
        means = np.mean(gaps(stage, DATASETS), axis=1)
        assert (round(means.min(), 1), round(means.max(), 1)) == expected
