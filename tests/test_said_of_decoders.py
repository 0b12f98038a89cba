"""What the pages say of decoders, proposals and gaps of cells is so."""

import numpy as np
from recorded import EXPERIMENTS, differences

from benchmarks import _report_bounds as of_bounds
from scmixvi.experiments._common import by_seed, interval, paired
from scmixvi.records import read


def runs_of_decoders():
    """Those that the text compares: not Eq. 17 alone, nor longer training."""
    runs = read(EXPERIMENTS / "decoders.json", {})["runs"]
    others = ("Eq. 17", "longer")
    return {name: run for name, run in runs.items() if not any(other in name for other in others)}


def test_what_is_said_of_decoders_and_posteriors_is_so():
    def difference(data, model, *keys, of="mixture"):
        first, one = f"{data}/{model}/S=4", f"{data}/{of}/S=1"
        return differences("decoders.json", first, one, *keys)

    models = [(data, "mixture") for data in of_bounds.DATASETS]
    models += [("cortex", "default"), ("sc_mixology", "default")]
    for data, model in models:
        gain, half = difference(data, model, "test", "log_p", of=model)
        assert abs(gain) < half < 2.4
        wider, half = difference(data, model, "test", "gap", of=model)
        assert (abs(wider) < half) != ((data, model) == ("cortex", "mixture"))
    for model, expected in (("mixture", (-2.5, 1.4)), ("ensemble", (-3.0, 0.8))):
        found = difference("cortex", model, "test", "gap")
        assert tuple(round(number, 1) for number in found) == expected
    gain, _ = difference("cortex", "ensemble", "test", "log_p")
    assert abs(gain) < 0.05

    most = [
        abs(gain) + half
        for data, model in models
        for gain, half in [difference(data, model, "test", "log_p", of=model)]
    ]
    assert round(max(most), 1) == 2.3
    trained_on = {
        (data, model): difference(data, model, "training", "log_p", of=model)
        for data, model in models
    }
    assert tuple(round(n, 1) for n in trained_on.pop(("cortex", "mixture"))) == (4.1, 3.2)
    assert all(abs(gain) < half for gain, half in trained_on.values())

    runs = runs_of_decoders()
    ensemble, one = (by_seed(runs, f"cortex/{model}") for model in ("ensemble/S=4", "mixture/S=1"))
    apart = sorted(abs(ensemble[s]["test"]["log_p"] - one[s]["test"]["log_p"]) for s in one)
    assert round(apart[-1], 2) == 0.05
    for name, run in runs.items():
        assert run["test"]["still_rising"] < 0.02, name


def test_what_is_said_of_longer_training_is_so():
    def difference(first, second, *keys, data="sc_mixology"):
        names = f"{data}/{first}", f"{data}/{second}"
        return tuple(round(n, 1) for n in differences("decoders.json", *names, *keys))

    both, none = "longer, batch norm both", "longer, batch norm none"
    assert difference("default/S=1", "mixture/S=1", "test", "log_p") == (-29.5, 1.1)
    training = difference("default/S=1", "mixture/S=1", "training", "log_p")
    assert [round(n) for n in training] == [-20, 3]
    assert difference(both, "mixture/S=1", "test", "log_p") == (-11.3, 3.8)
    assert difference(none, "mixture/S=1", "test", "log_p") == (0.2, 3.4)
    assert [round(n) for n in difference(none, both, "test", "log_p")] == [12, 2]
    assert [round(n) for n in difference(both, "default/S=1", "test", "log_p")] == [18, 4]
    assert [round(n) for n in difference(both, "default/S=1", "test", "gap")] == [14, 2]
    assert difference(both, "default/S=1", "test", "miselbo") == (4.5, 5.6)
    assert difference(both, "default/S=1", "test", "log_p", data="cortex") == (-3.9, 2.1)
    assert difference(both, "default/S=1", "test", "miselbo", data="cortex") == (-9.9, 2.8)
    training = difference(both, "default/S=1", "training", "log_p", data="cortex")
    assert [round(n) for n in training] == [21, 3]
    assert difference(none, both, "test", "log_p", data="cortex") == (4.1, 2.5)


def test_what_is_said_of_own_draws_is_so():
    runs = runs_of_decoders()

    def short(model):
        found = by_seed(runs, model).values()
        return [run["test"]["log_p"] - run["test"]["own_draws"] for run in found]

    for data, expected in (
        ("cortex/mixture", (4.5, 1.0)),
        ("sc_mixology/mixture", (3.1, 1.0)),
        ("pbmc68k/mixture", (0.2, 0.6)),
        ("cortex/default", (4.4, 3.1)),
        ("sc_mixology/default", (6.3, 7.0)),
    ):
        both = zip(short(f"{data}/S=1"), short(f"{data}/S=4"), strict=True)
        found = interval([one - four for one, four in both])
        assert tuple(round(number, 1) for number in found) == expected
    cortex = {name.rsplit("/", 1)[0] for name in runs if name.startswith("cortex/")}
    means = [interval(short(model))[0] for model in cortex]
    assert (round(min(means), 1), round(max(means), 1)) == (7.9, 12.8)


def test_what_is_said_of_gaps_of_cells_not_seen_is_so():
    runs = runs_of_decoders()

    def less(model):
        """By how many per cent the mean gap of training cells is below that of test cells."""
        found = by_seed(runs, model).values()
        test, training = (sum(run[group]["gap"] for run in found) for group in ("test", "training"))
        return round(100 * (1 - training / test))

    models = {name.rsplit("/", 1)[0] for name in runs}
    others = [less(model) for model in models if not model.startswith("sc_mixology")]
    assert (min(others), max(others)) == (66, 88)
    assert [less(f"sc_mixology/mixture/S={size}") for size in (1, 4)] == [58, 62]
    assert [less(f"sc_mixology/default/S={size}") for size in (1, 4)] == [46, 51]


def test_what_is_said_of_the_gap_of_cells_is_so():
    runs = read(EXPERIMENTS / "inference_gap.json", {})["runs"]
    data_sets = ("cortex", "sc_mixology", "pbmc68k")

    def of(data, size, key, group="test"):
        found = by_seed(runs, f"{data}/mixture/S={size}")
        return {seed: run[group][key] for seed, run in found.items()}

    def means(key, sizes=(1, 4), group="test", digits=1, scale=1):
        found = [np.mean(list(of(d, s, key, group).values())) for d in data_sets for s in sizes]
        return round(scale * min(found), digits), round(scale * max(found), digits)

    assert means("gap/encoders", digits=0) == (12, 28)
    assert means("gap/encoders", group="training", digits=0) == (2, 11)
    assert means("gap/one Gaussian") == (0.8, 1.4)
    assert means("gap/full covariance") == (0.2, 0.2)
    assert means("gap/100 steps", [1]) == (0.9, 1.5)
    assert means("gap/100 steps", [4]) == (0.6, 1.0)
    for group, least, most in (("test", 91, 98), ("training", 65, 96)):
        shares = []
        for data in data_sets:
            for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
                whole, left = (
                    of(data, size, "gap/encoders", group),
                    of(data, size, f"gap/{family}", group),
                )
                assert len(whole) == 5
                shares += [100 * (1 - left[seed] / whole[seed]) for seed in whole]
                pair = of(data, size, "gap/one Gaussian"), of(data, size, "gap/four Gaussians")
                assert round(np.mean(paired(*pair)), 1) in (0.3, 0.4, 0.5)
        assert (int(min(shares)), round(max(shares))) == (least, most)
    per_cent = {"digits": 0, "scale": 100}
    assert means("covered/encoders", [1], **per_cent) == (2, 11)
    assert means("covered/encoders", [4], **per_cent) == (5, 14)
    assert means("covered/100 steps", [1], **per_cent) == (54, 67)
    assert means("covered/100 steps", [4], **per_cent) == (68, 77)
    assert means("expression/encoders", [1], **per_cent) == (47, 61)
    assert means("expression/encoders", [4], **per_cent) == (65, 67)
    assert means("expression/100 steps", [1], **per_cent) == (86, 87)
    assert means("expression/100 steps", [4], **per_cent) == (88, 89)

    trained_on = {"group": "training", **per_cent}
    assert means("expression/encoders", [1], **trained_on) == (63, 82)
    assert means("expression/encoders", [4], **trained_on) == (75, 85)
    assert means("expression/100 steps", [1], **trained_on) == (87, 88)
    assert means("expression/100 steps", [4], **trained_on) == (89, 89)

    def ahead(data, key, group="test"):
        return interval(paired(of(data, 4, key, group), of(data, 1, key, group)))

    for data, expected in {"cortex": (9, 3), "sc_mixology": (12, 3), "pbmc68k": (3, 1)}.items():
        points = ahead(data, "expression/encoders", "training")
        assert tuple(round(100 * number) for number in points) == expected

    said = {"cortex": (18, 3), "sc_mixology": (18, 2), "pbmc68k": (5, 2)}
    for data in data_sets:
        points = ahead(data, "expression/encoders")
        assert tuple(round(100 * number) for number in points) == said[data]
        closer, _ = ahead(data, "gap/100 steps")
        assert 0.3 <= round(-closer, 1) <= 0.7
        for key in ("covered/100 steps", "expression/100 steps"):
            gain, half = ahead(data, key)
            assert gain > half
    for size, n_steps in ((1, 50), (1, 100), (4, 50), (4, 100)):
        found = by_seed(runs, f"cortex/mixture/S={size}").values()
        for score in ("svm_train_to_test", "svm", "ari", "nmi"):
            gained = interval(
                [
                    run[f"scores/{n_steps} steps"][score] - run["scores/encoders"][score]
                    for run in found
                ]
            )
            assert abs(gained[0]) < gained[1]
            if (size, n_steps, score) == (1, 100, "svm_train_to_test"):
                assert tuple(round(100 * number, 1) for number in gained) == (0.8, 1.5)


def test_what_is_said_of_the_uncertainty_with_the_defaults_is_so():
    runs = read(EXPERIMENTS / "inference_gap.json", {})["runs"]
    defaults = ("cortex/default", "sc_mixology/default")
    settings = (*(f"{data}/mixture" for data in of_bounds.DATASETS), *defaults)

    def of(setting, size, key, group):
        found = by_seed(runs, f"{setting}/S={size}")
        assert len(found) == 5
        return {seed: run[group][key] for seed, run in found.items()}

    def means(key, group, sizes, among=settings):
        found = [np.mean(list(of(name, s, key, group).values())) for name in among for s in sizes]
        return min(found), max(found)

    def per_cent(*asked):
        return tuple(round(100 * share) for share in means(*asked))

    for group, size, all_settings, with_defaults in (
        ("test", [1], (44, 61), (44, 46)),
        ("test", [4], (61, 67), (61, 65)),
        ("training", [1], (55, 82), (55, 65)),
        ("training", [4], (75, 85), (78, 78)),
    ):
        assert per_cent("expression/encoders", group, size) == all_settings
        assert per_cent("expression/encoders", group, size, defaults) == with_defaults
    assert per_cent("expression/100 steps", "test", [1, 4], defaults) == (87, 89)
    assert per_cent("expression/100 steps", "training", [1, 4], defaults) == (88, 90)
    refined = [per_cent("expression/100 steps", group, [1, 4]) for group in ("test", "training")]
    assert refined == [(86, 89), (87, 90)]
    in_z = [per_cent("covered/100 steps", group, [1, 4]) for group in ("test", "training")]
    assert (min(in_z)[0], max(in_z)[1]) == (54, 79)

    key, ahead = "expression/encoders", {}
    for name in settings:
        for group in ("test", "training"):
            gain, half = interval(paired(of(name, 4, key, group), of(name, 1, key, group)))
            assert gain > half
            ahead[name, group] = gain, half
    said = [tuple(round(100 * number) for number in ahead[n, "training"]) for n in defaults]
    assert said == [(13, 8), (24, 7)]

    def rounded(key, sizes, digits, among=defaults):
        return tuple(round(nats, digits) for nats in means(key, "test", sizes, among))

    assert rounded("gap/encoders", [1, 4], 0, settings) == (12, 33)
    assert rounded("gap/encoders", [1, 4], 0) == (27, 33)
    assert rounded("gap/one Gaussian", [1, 4], 1) == (1.0, 1.3)
    assert rounded("gap/100 steps", [1], 1) == (1.4, 1.4)
    assert rounded("gap/100 steps", [4], 1) == (0.7, 0.8)
    left = {
        n_steps: rounded(f"gap/{n_steps} steps", [1, 4], 1, settings) for n_steps in (25, 50, 100)
    }
    assert left == {25: (1.0, 2.3), 50: (0.6, 1.6), 100: (0.6, 1.5)}
    for key, most in (("expression", 0.5), ("covered", 1.2)):
        pairs = [
            [np.mean(list(of(n, s, f"{key}/{k} steps", g).values())) for k in (50, 100)]
            for n in settings
            for s in (1, 4)
            for g in ("test", "training")
        ]
        assert round(max(100 * abs(few - many) for few, many in pairs), 1) <= most
    shares = []
    for name in settings:
        for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
            pair = (of(name, size, f"gap/{f}", "test") for f in ("one Gaussian", "four Gaussians"))
            assert round(np.mean(paired(*pair)), 1) in (
                (0.4, 0.5) if name in defaults else (0.3, 0.4, 0.5)
            )
            whole, left = (
                of(name, size, "gap/encoders", "test"),
                of(name, size, f"gap/{family}", "test"),
            )
            shares += [100 * (1 - left[s] / whole[s]) for s in whole if name in defaults]
    assert (int(min(shares)), round(max(shares))) == (94, 98)
