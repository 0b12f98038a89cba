"""What the pages say of truths that are known is so."""

import numpy as np
from recorded import beyond, by_job

from scmixvi.experiments._common import paired

DATASETS = ("cortex", "sc_mixology", "pbmc68k")
MODELS = [(data, size) for data in DATASETS for size in (1, 4)]


def of(data, kind, size, *keys):
    """A figure of every seed."""
    return by_job("calibration.json", f"{data}/{kind}/S={size}", *keys)


def held(what, stage, depth="depth known", sizes=(1, 4), datasets=DATASETS):
    """Smallest and largest mean over seeds, per cent."""
    means = [
        100 * np.mean(list(of(data, "simulated", size, depth, f"{what}/{stage}").values()))
        for data in datasets
        for size in sizes
    ]
    return round(min(means)), round(max(means))


def test_what_is_said_of_known_depths_is_so():
    assert held("z", "exact") == held("expression", "exact") == (88, 89)
    assert held("z", "100 steps") == (81, 86)
    assert held("expression", "100 steps") == (87, 89)
    assert held("z", "encoders", sizes=[1]) == held("expression", "encoders", sizes=[1]) == (34, 59)
    assert held("z", "encoders", sizes=[4]) == (50, 65)
    assert held("expression", "encoders", sizes=[4]) == (47, 65)
    assert round(90 * 199 / 201, 1) == 89.1


def test_what_is_said_of_four_encoders_is_so():
    more = [
        paired(*(of(d, "simulated", s, "depth known", f"{what}/encoders") for s in (4, 1)))
        for what in ("z", "expression")
        for d in DATASETS
    ]
    assert all(map(beyond, more))
    points = [100 * np.mean(values) for values in more]
    assert (round(min(points)), round(max(points))) == (6, 20)


def test_what_is_said_of_sums_of_counts_is_so():
    summed = {"depth": "depth summed"}
    assert held("z", "exact", **summed, datasets=["cortex"]) == (76, 76)
    assert held("expression", "exact", **summed, datasets=["cortex"]) == (69, 70)
    assert held("z", "exact", **summed, datasets=["sc_mixology"]) == (87, 87)
    assert held("expression", "exact", **summed, datasets=["sc_mixology"]) == (83, 84)
    assert held("z", "exact", **summed, datasets=["pbmc68k"]) == (87, 88)
    assert held("expression", "exact", **summed, datasets=["pbmc68k"]) == (87, 87)
    assert held("z", "exact", **summed) == (76, 88)


def change(model, key, prediction):
    data, size = model
    return paired(*(of(data, "types", size, f"{key}/{p}") for p in (prediction, "mean/encoders")))


def test_what_is_said_of_types_is_so():
    for stage in ("100 steps", "exact"):
        for what in ("mean", "draws"):
            for key in ("log_score", "brier", "right"):
                assert not any(beyond(change(m, key, f"{what}/{stage}")) for m in MODELS)
    sure = [of("cortex", "types", s, "sure_and_wrong/mean/encoders") for s in (1, 4)]
    assert [round(100 * np.mean(list(v.values())), 1) for v in sure] == [1.0, 1.0]
    sure = [of("cortex", "types", s, "sure_and_wrong/draws/exact") for s in (1, 4)]
    assert [round(100 * np.mean(list(v.values())), 1) for v in sure] == [0.6, 0.6]
    fewer = [beyond(change(("cortex", s), "sure_and_wrong", "draws/exact")) for s in (1, 4)]
    assert fewer == [True, False]
    worse = [-np.mean(change(m, "log_score", "draws/encoders")) for m in MODELS]
    assert min(worse) > 0
    assert round(max(worse), 3) == 0.008
