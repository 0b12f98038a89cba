"""What the pages say of images and of targets in two dimensions is so."""

from itertools import product

import pytest
from recorded import EXPERIMENTS, differences

from scmixvi.experiments import density2d
from scmixvi.experiments._common import by_seed, interval, paired
from scmixvi.experiments._reports import paper_images as _paper_images
from scmixvi.experiments._reports.paper_images import TABLE_8
from scmixvi.records import read


def test_what_is_said_of_the_two_dimensional_targets_is_so():
    runs = read(EXPERIMENTS / "density2d.json", {})["runs"]
    pairs, light = ("bimodal", "bimodal, s = 0.5"), "light mode (0.2)"

    def found(target, family):
        return list(by_seed(runs, f"{target}/{family}").values())

    def masses(target, family):
        return [run["mass"][light] for run in found(target, family)]

    others, fell_short = [f for f in density2d.METHODS if f != "mixture"], []
    for target in ("ring", *pairs):
        seeds = by_seed(runs, f"{target}/mixture")
        assert all(by_seed(runs, f"{target}/{family}").keys() == seeds.keys() for family in others)
        for seed, best in seeds.items():
            rest = [runs[f"{target}/{family}/seed={seed}"] for family in others]
            if target == "bimodal" and best["mass"][light] < 0.1:
                fell_short.append(seed)
                continue
            for key in ("kl_q_p", "kl_p_q"):
                assert best[key] < 0.4
                assert all(best[key] < run[key] for run in rest if key in run)
            assert abs(best["evidence_mean"] - 1) < 0.01
            right = [r["evidence_sd"] for r in rest if abs(r["evidence_mean"] - 1) < 0.01]
            assert sum(spread < best["evidence_sd"] for spread in right) <= 1
    assert len(fell_short) == 1
    there = {
        family: sorted(round(30 * mass) for mass in masses("bimodal", family))
        for family in ("mixture", "ensemble")
    }
    assert there == {"mixture": [2, 4, 4, 6, 6], "ensemble": [2, 2, 2, 2, 3]}
    assert sum("kl_p_q" not in run for run in found("ring", "iaf")) == 2
    for target in pairs:
        assert max(masses(target, "dm_pmc/0.1")) < 0.001
        assert min(masses(target, "dm_pmc/0.3") + masses(target, "dm_pmc/0.5")) > 0.03
    flows = masses("bimodal", "iaf")
    assert all(min(mass, 1 - mass) < 0.01 for mass in flows)
    assert sum(mass < 0.01 for mass in flows) > len(flows) / 2
    assert max(masses("bimodal, s = 0.5", "ensemble")) < 0.01
    for sharp, *blurred in zip(
        *(found("ring", f"dm_pmc/{scale}") for scale in density2d.DM_PMC_SCALES), strict=True
    ):
        assert all(run["kl_q_p"] > 5 * sharp["kl_q_p"] for run in blurred)


def test_what_is_said_of_path_gradients_is_so():
    runs = read(EXPERIMENTS / "path_gradients.json", {})["runs"]
    pairs = [(n.replace("/path/", "/whole/"), n) for n in runs if "/path/" in n]
    assert len(pairs) == 6
    likelihoods = [runs[w]["nll_pooled"] - runs[p]["nll_pooled"] for w, p in pairs]
    bounds = [
        runs[p]["trainings"][0]["val_bound"] - runs[w]["trainings"][0]["val_bound"]
        for w, p in pairs
    ]
    assert 0.3 <= round(min(likelihoods), 1) <= round(max(likelihoods), 1) <= 0.6
    assert 0.7 <= round(min(bounds), 1) <= round(max(bounds), 1) <= 1.0
    assert all(b > n for b, n in zip(bounds, likelihoods, strict=True))
    assert {runs[n]["trainings"][0]["epochs"] for n in runs} == {20}


def test_what_is_said_of_eq_17_with_the_papers_draws_is_so():
    said = {"cortex": (1.8, 2.7), "sc_mixology": (0.6, 2.2), "pbmc68k": (-1.1, 1.3)}
    for data, expected in said.items():
        names = [f"{data}/mixture/S={size}/Eq. 17" for size in (4, 1)]
        found = differences("decoders.json", *names, "eq17")
        assert tuple(round(value, 1) for value in found) == expected


def test_what_is_said_of_latents_of_images_is_so():
    runs = read(EXPERIMENTS / "latents.json", {})["runs"]
    mixture, ensemble, vae = (
        [by_seed(runs, f"mnist/{name}/S={size}") for size in range(1, 6)]
        for name in ("mixture", "ensemble", "vae")
    )
    assert [len(column) for column in mixture] == [3] * 5
    for key, gained in (("accuracy", [2.3, 2.7, 2.8]), ("accuracy_reduced", [0.7, 1.4, 1.5])):
        found = [last[key] - mixture[0][seed][key] for seed, last in mixture[4].items()]
        assert sorted(round(100 * points, 1) for points in found) == gained
    falls = [mixture[0][seed]["nll"] - last["nll"] for seed, last in mixture[4].items()]
    assert sorted(round(nats, 1) for nats in falls) == [0.8, 1.1, 1.2]
    for seed, last in ensemble[4].items():
        first = ensemble[0][seed]
        for key in ("accuracy", "accuracy_reduced"):
            of_mixture = mixture[4][seed][key] - mixture[0][seed][key]
            assert 0 < last[key] - first[key] < of_mixture
        assert 0 < first["nll"] - last["nll"] < mixture[0][seed]["nll"] - mixture[4][seed]["nll"]
    for ours, theirs in zip(mixture[1:], ensemble[1:], strict=True):
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            assert 0.15 < b["nll"] - a["nll"] < 0.85
            assert -0.0025 < a["accuracy"] - b["accuracy"] < 0.0035
    for n, said in ((3, (-0.42, 0.22)), (4, (-0.40, 0.13)), (5, (-0.61, 0.51))):
        names = f"mnist/mixture/S={n}", f"mnist/ensemble/S={n}"
        difference = differences("latents.json", *names, "nll", n_seeds=3)
        assert difference == pytest.approx(said, abs=0.005)
    for ours, theirs in zip(mixture[2:], ensemble[2:], strict=True):
        both = zip(ours.values(), theirs.values(), strict=True)
        assert all(a["jsd"] > b["jsd"] for a, b in both)
    for column, paper in zip(vae, (94.9, 94.8, 94.9, 94.8, 94.8), strict=True):
        assert all(7.5 < paper - 100 * run["accuracy"] < 12.5 for run in column.values())


def test_what_is_said_of_fashion_mnist_is_so():
    runs = read(EXPERIMENTS / "latents.json", {})["runs"]
    mixture, ensemble, vae = (
        [list(by_seed(runs, f"fashion_mnist/{name}/S={size}").values()) for size in range(1, 6)]
        for name in ("mixture", "ensemble", "vae")
    )
    assert [len(column) for column in mixture] == [3] * 5

    def ahead(key, size, first=mixture, second=ensemble):
        both = zip(first[size - 1], second[size - 1], strict=True)
        return [a[key] - b[key] for a, b in both]

    below = {2: (-0.31, 0.08), 3: (-0.38, 0.18), 4: (-0.44, 0.19), 5: (-0.58, 0.14)}
    for size, said in below.items():
        assert interval(ahead("nll", size)) == pytest.approx(said, abs=0.005)
        assert max(ahead("nll", size)) < 0 < min(ahead("jsd", size))
        for key in ("accuracy", "accuracy_reduced", "accuracy_train_to_test"):
            mean, half = interval(ahead(key, size))
            assert abs(mean) < half
    points = [[round(100 * gain, 1) for gain in ahead("accuracy", size)] for size in (2, 4, 5)]
    assert points[0] == [0.7, 0.3, -0.2]
    assert points[1] == [0.3, 0.5, -0.6]
    assert interval(ahead("accuracy", 5)) == pytest.approx((-0.003, 0.007), abs=5e-4)
    assert float(TABLE_8["mixture"][4].split()[0]) - float(
        TABLE_8["ensemble"][4].split()[0]
    ) == pytest.approx(0.9)
    for rows, falls, gains in (
        (mixture, (0.7, 0.8), (2.0, 2.7)),
        (ensemble, (0.2, 0.2), (2.0, 3.0)),
    ):
        fell, gained = (
            [scale * (b[key] - a[key]) for a, b in zip(rows[0], rows[4], strict=True)]
            for key, scale in (("nll", -1), ("accuracy", 100))
        )
        assert (round(min(fell), 1), round(max(fell), 1)) == falls
        assert (round(min(gained), 1), round(max(gained), 1)) == gains
    off = {
        name: [
            100 * row["accuracy"] - float(figure.split()[0])
            for column, figure in zip(rows[1:], TABLE_8[name][1:], strict=True)
            for row in column
        ]
        for rows, name in ((mixture, "mixture"), (ensemble, "ensemble"), (vae, "vae"))
    }
    assert max(map(abs, off["mixture"] + off["ensemble"])) < 1.1
    assert -14 < min(off["vae"]) < max(off["vae"]) < -9


def test_what_is_said_of_big_encoders_is_so():
    runs = read(EXPERIMENTS / "big_iwae.json", {})["runs"]
    ahead = {2: (0.04, -0.12, -0.07), 3: (0.11, -0.16, -0.09)}
    for size, key in product(ahead, ("nll", "nll_pooled")):
        jobs = (f"mnist/{name}/S={size}" for name in ("iwae_units", "mixture"))
        mean, half = differences("big_iwae.json", *jobs, key, n_seeds=3)
        assert abs(mean) < half
    for size, seed in product(ahead, range(3)):
        found, units, layers = (
            runs[f"mnist/{name}/S={size}/seed={seed}"]
            for name in ("mixture", "iwae_units", "iwae_layers")
        )
        assert round(units["nll"] - found["nll"], 2) == ahead[size][seed]
        one = runs[f"mnist/mixture/S=1/seed={seed}"]
        assert layers["nll"] > one["nll"] + 10
        assert max(found["nll"], units["nll"]) < one["nll"]
        assert float(_paper_images.TABLE_7["iwae_units"][1]) > float(
            _paper_images.TABLE_7["mixture"][0]
        )


def test_what_is_said_of_the_gap_of_images_is_so():
    runs = read(EXPERIMENTS / "inference_gap_images.json", {})["runs"]

    def of(size, key, group="test"):
        found = by_seed(runs, f"mnist/mixture/S={size}")
        return {seed: run[group][key] for seed, run in found.items()}

    def less(first, second):
        return tuple(round(number, 1) for number in interval(paired(first, second)))

    for size in (1, 4):
        won = interval(paired(of(size, "gap/one Gaussian"), of(size, "gap/four Gaussians")))
        assert round(won[0], 2) == 0.54
        assert won[1] < 0.1
    assert less(of(1, "gap/encoders"), of(4, "gap/encoders")) == (0.9, 0.6)
    assert less(of(1, "gap/100 steps"), of(4, "gap/100 steps")) == (0.7, 0.4)
    for group in ("test", "training"):
        for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
            whole, best = of(size, "gap/encoders", group), of(size, f"gap/{family}", group)
            shares = [1 - best[seed] / whole[seed] for seed in whole]
            assert 0.59 < min(shares) < max(shares) < 0.69
            left = interval(list(of(size, "gap/full covariance", group).values()))[0]
            assert 0.7 < left < 0.85
    assert all(0.09 < run["test"]["effective_share"] < 0.13 for run in runs.values())


def test_what_is_said_of_decoders_of_images_is_so():
    runs = read(EXPERIMENTS / "decoders_images.json", {})["runs"]

    def of(job, key):
        found = by_seed(runs, f"mnist/{job}")
        assert len(found) == 3
        return {seed: run[key] for seed, run in found.items()}

    def below(first, second, digits=2):
        return tuple(round(n, digits) for n in interval(paired(of(*second), of(*first))))

    one, four, ensemble = "mixture/S=1", "mixture/S=4", "ensemble/S=4"
    for size, said in ((2, (0.5, 0.4)), (3, (0.7, 0.2)), (4, (0.7, 0.1)), (5, (0.9, 0.5))):
        assert below((f"mixture/S={size}", "nll_refined"), (one, "nll_refined"), 1) == said
    assert below((ensemble, "nll_refined"), (one, "nll_refined")) == (0.2, 0.01)
    assert below((four, "nll_refined"), (ensemble, "nll_refined")) == (0.51, 0.14)
    for job, pooled, eq17 in (
        (four, (1.13, 0.09), (0.78, 0.08)),
        (ensemble, (0.69, 0.06), (0.38, 0.05)),
    ):
        assert below((job, "nll_pooled"), (one, "nll_pooled")) == pooled
        assert below((job, "nll"), (one, "nll")) == eq17
    assert below((one, "nll_refined"), (one, "nll")) == (0.97, 0.08)
    assert below((four, "nll_refined"), (four, "nll_pooled")) == (0.54, 0.05)


def test_what_is_said_of_ten_epochs_of_the_vanilla_model_is_so():
    runs = read(EXPERIMENTS / "image_nll_short.json", {})["runs"]
    one, four = (runs[f"mnist/vanilla/S={size}/seed=0"] for size in (1, 4))
    other = runs["mnist/vanilla/S=1/seed=1"]
    assert len(runs) == 3
    for key, said in {"nll": 0.31, "nll_refined": 0.28}.items():
        assert round(one[key] - other[key], 2) == said
        assert other[key] > four[key]
    for key, said in {"nll": 0.99, "nll_pooled": 1.1, "nll_refined": 1.01}.items():
        assert round(one[key] - four[key], 2) == said
    paper = _paper_images.TABLE_1["vanilla"]
    assert round(paper[0][0] - paper[3][0], 2) == 1.14
    above = [other["nll"] - paper[0][0], one["nll"] - paper[0][0], four["nll"] - paper[3][0]]
    assert [round(nats, 1) for nats in above] == [3.1, 3.4, 3.5]
    changes = {round(run["nll_change_by_batch_norm"], 1) for run in runs.values()}
    assert changes == {0.2}
    assert {run["trainings"][0]["best_epoch"] for run in runs.values()} == {10}
