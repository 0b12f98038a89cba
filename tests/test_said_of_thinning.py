"""What the pages say of encoders that see a part of each cell is so."""

import numpy as np
from recorded import beyond, by_job

from scmixvi.experiments._common import interval, paired

DATASETS = ("cortex", "sc_mixology", "pbmc68k")
MODELS = [(data, size) for data in DATASETS for size in (1, 4)]


def of(data, arm, size, *keys):
    """A figure of every seed."""
    return by_job("thinning.json", f"{data}/{arm}/S={size}", *keys)


def gains(data, size, *keys, what=""):
    return paired(*(of(data, f"{arm}{what}", size, *keys) for arm in ("thinned", "default")))


def test_what_is_said_of_held_out_cells_is_so():
    log_p = {model: gains(*model, "test", "log_p") for model in MODELS}
    miselbo = {model: gains(*model, "test", "miselbo") for model in MODELS}
    for found in (log_p, miselbo):
        assert sum(gain > 0 for values in found.values() for gain in values) == 29
    means = {model: round(np.mean(values), 1) for model, values in log_p.items()}
    assert means == dict(zip(MODELS, (2.4, 1.2, 1.7, 0.6, 3.9, 3.9), strict=True))
    assert [m for m in MODELS if not beyond(log_p[m])] == [("cortex", 1), ("sc_mixology", 4)]
    assert [m for m in MODELS if not beyond(miselbo[m])] == [("sc_mixology", s) for s in (1, 4)]
    rounded = {model: round(np.mean(values)) for model, values in miselbo.items()}
    assert rounded == dict(zip(MODELS, (9, 8, 8, 7, 10, 10), strict=True))
    mixology = [gain for size in (1, 4) for gain in miselbo["sc_mixology", size]]
    assert (round(min(mixology)), round(max(mixology))) == (-4, 20)
    gaps = [np.mean(gains(*model, "test", "gap")) for model in MODELS]
    assert (round(-max(gaps)), round(-min(gaps))) == (6, 7)
    before = [np.mean(list(of(data, "default", s, "test", "gap").values())) for data, s in MODELS]
    assert (round(min(before)), round(max(before))) == (13, 32)


def test_what_is_said_of_cells_that_were_trained_on_is_so():
    found = [gains(*model, "training", "log_p") for model in MODELS]
    assert max(max(values) for values in found) < 0
    means = [-np.mean(values) for values in found]
    assert (round(min(means)), round(max(means))) == (3, 8)


def ahead_of(arm, other, model, *keys, what=""):
    data, size = model
    return paired(*(of(data, f"{a}{what}", size, *keys) for a in (arm, other)))


def test_what_is_said_of_dropout_is_so():
    gained = {m: ahead_of("dropout", "default", m, "test", "log_p") for m in MODELS}
    assert min(min(values) for values in gained.values()) > 0
    assert all(beyond(values) for values in gained.values())
    means = [np.mean(values) for values in gained.values()]
    assert (round(min(means), 1), round(max(means), 1)) == (1.9, 5.2)
    more = {m: ahead_of("dropout", "thinned", m, "test", "log_p") for m in MODELS}
    better = [m for m in MODELS if beyond(more[m])]
    assert better == [("sc_mixology", 4), ("pbmc68k", 1), ("pbmc68k", 4)]
    means = [np.mean(more[m]) for m in better]
    assert (round(min(means), 1), round(max(means), 1)) == (1.2, 2.2)
    price = [-np.mean(ahead_of("dropout", "default", m, "training", "log_p")) for m in MODELS]
    assert (round(min(price)), round(max(price))) == (9, 16)
    wider = [ahead_of("dropout", "thinned", m, "test", "gap") for m in MODELS]
    assert sum(map(beyond, wider)) == 3
    means = [np.mean(values) for values in wider]
    assert (round(min(means)), round(max(means))) == (2, 6)
    keys = "training", "expression/encoders"
    held = [ahead_of("thinned", "dropout", m, *keys, what=", coverage") for m in MODELS]
    assert sum(map(beyond, held)) == 4
    points = [100 * np.mean(values) for values in held]
    assert (round(min(points)), round(max(points))) == (6, 13)


def test_what_is_said_of_both_together_is_so():
    gained = {m: np.mean(ahead_of("both", "default", m, "test", "log_p")) for m in MODELS}
    assert [round(gained["pbmc68k", size], 1) for size in (1, 4)] == [7.4, 7.7]
    bound = [
        np.mean(ahead_of("both", "default", ("pbmc68k", s), "test", "miselbo")) for s in (1, 4)
    ]
    assert [round(value) for value in bound] == [14, 15]
    more = [
        ahead_of("both", arm, ("pbmc68k", size), "test", "log_p")
        for arm in ("thinned", "dropout")
        for size in (1, 4)
    ]
    assert all(map(beyond, more))
    means = [np.mean(values) for values in more]
    assert (round(min(means), 1), round(max(means), 1)) == (2.3, 3.8)
    others = [m for m in MODELS if m[0] != "pbmc68k"]
    means = [gained[m] for m in others]
    assert (round(min(means), 1), round(max(means), 1)) == (1.9, 3.2)
    over = [beyond(ahead_of("both", "dropout", m, "test", "log_p")) for m in others]
    assert sum(over) == 1
    price = [-np.mean(ahead_of("both", "default", m, "training", "log_p")) for m in MODELS]
    assert (round(min(price)), round(max(price))) == (14, 21)


def test_what_is_said_of_refined_encoders_is_so():
    def added(arm, model, group):
        data, size = model
        stages = (arm + stage for stage in (", refined", ""))
        return paired(*(of(data, stage, size, group, "miselbo") for stage in stages))

    for arm, least, most in (("default", 4, 15), ("thinned", 1, 11)):
        means = [np.mean(added(arm, model, "test")) for model in MODELS]
        assert (round(min(means)), round(max(means))) == (least, most)
    ahead = [gains(*model, "test", "miselbo", what=", refined") for model in MODELS]
    assert all(beyond(values) for values in ahead)
    means = [np.mean(values) for values in ahead]
    assert (round(min(means), 1), round(max(means), 1)) == (3.4, 7.5)
    behind = [-np.mean(gains(*m, "training", "miselbo", what=", refined")) for m in MODELS]
    assert (round(min(behind)), round(max(behind))) == (2, 8)


def test_what_is_said_of_one_encoder_and_of_four_is_so():
    for key, said in (("miselbo", 0.5), ("log_p", None)):
        for data in DATASETS:
            ahead = paired(*(of(data, "thinned", size, "test", key) for size in (4, 1)))
            expected = said is not None and data == "pbmc68k"
            assert beyond(ahead) == expected
            if expected:
                assert round(np.mean(ahead), 1) == said


def test_what_is_said_of_scores_is_so():
    for size in (1, 4):
        for score in ("svm", "svm_train_to_test", "ari", "nmi"):
            assert not beyond(gains("cortex", size, "scores", score))


def test_what_is_said_of_uncertainty_is_so():
    keys = "test", "expression/encoders"
    per_cent = {
        (size, arm): round(
            100 * np.mean(list(of("pbmc68k", f"{arm}, coverage", size, *keys).values()))
        )
        for size in (1, 4)
        for arm in ("default", "thinned")
    }
    assert list(per_cent.values()) == [60, 72, 65, 75]
    changed = {model: gains(*model, *keys, what=", coverage") for model in MODELS}
    assert [m for m in MODELS if beyond(changed[m])] == [
        ("cortex", 1),
        ("pbmc68k", 1),
        ("pbmc68k", 4),
    ]
    more, half = interval(changed["cortex", 1])
    assert (round(100 * more), round(100 * half)) == (7, 6)
