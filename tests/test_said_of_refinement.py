"""What the pages say of encoders that are refined is so."""

from recorded import EXPERIMENTS, differences

from scmixvi.experiments._common import by_seed
from scmixvi.records import read

REFINED = ("cortex", "sc_mixology", "pbmc68k", "cortex/default", "sc_mixology/default")


def gains_of_refinement(model, stage, group="test"):
    """Every run's gain in MISELBO over the model that it started from: S = 1, then S = 4."""
    runs = read(EXPERIMENTS / "refinement.json", {})["runs"]
    return [
        run[group]["miselbo"] - before[seed][group]["miselbo"]
        for size in (1, 4)
        for before in [by_seed(runs, f"{model}/before/S={size}")]
        for seed, run in by_seed(runs, f"{model}/{stage}/S={size}").items()
    ]


def refinement(model, size, stages, *keys):
    names = [f"{model}/{stage}/S={size}" for stage in stages]
    return differences("refinement.json", *names, *keys)


def test_what_is_said_of_refined_encoders_is_so():
    gains = {model: gains_of_refinement(model, "refined") for model in REFINED}
    assert all(len(found) == 10 for found in gains.values())
    for models, expected in ((REFINED[:3], (1.0, 8.4)), (REFINED[3:], (7.6, 20.1))):
        found = [gain for model in models for gain in gains[model]]
        assert (round(min(found), 1), round(max(found), 1)) == expected
    for model in REFINED:
        for size in (1, 4):
            gain, half = refinement(model, size, ("refined", "before"), "test", "miselbo")
            assert gain > half
    cortex = [
        refinement("cortex/default", s, ("refined", "before"), "test", "miselbo")[0] for s in (1, 4)
    ]
    mixology = [
        refinement("sc_mixology/default", s, ("refined", "before"), "test", "miselbo")[0]
        for s in (1, 4)
    ]
    assert {round(gain) for gain in cortex} == {10}
    assert {round(gain) for gain in mixology} == {12, 14}


def test_what_is_said_of_four_refined_encoders_and_of_one_is_so():
    def ahead(model, first, second):
        names = [f"{model}/{stage}/S={size}" for stage, size in (first, second)]
        return differences("refinement.json", *names, "test", "miselbo")

    fours = {model: ahead(model, ("refined", 4), ("refined", 1)) for model in REFINED}
    found = fours.pop("sc_mixology/default")
    assert tuple(round(number, 1) for number in found) == (2.3, 0.8)
    assert all(abs(gain) < half for gain, half in fours.values())
    unrefined = {model: ahead(model, ("before", 4), ("before", 1)) for model in REFINED}
    assert tuple(round(number, 1) for number in unrefined.pop("cortex")) == (3.1, 2.9)
    assert all(abs(gain) < half for gain, half in unrefined.values())
    gains = gains_of_refinement("sc_mixology/default", "refined")
    assert len(gains) == 10
    ones = [ahead(model, ("refined", 1), ("before", 4)) for model in REFINED]
    assert (round(min(g for g, _ in ones)), round(max(g for g, _ in ones))) == (2, 10)
    assert sum(gain > half for gain, half in ones) == 4


def test_what_is_said_of_training_on_is_so():
    ahead, alone = {}, {}
    for model in REFINED:
        pairs = zip(
            gains_of_refinement(model, "refined"), gains_of_refinement(model, "longer"), strict=True
        )
        assert all(refined > longer for refined, longer in pairs)
        stages = ("refined", "longer")
        ahead[model] = [refinement(model, s, stages, "test", "miselbo")[0] for s in (1, 4)]
        price = [
            after - before
            for after, before in zip(
                gains_of_refinement(model, "refined", "training"),
                gains_of_refinement(model, "longer", "training"),
                strict=True,
            )
        ]
        assert -7 < min(price) < max(price) < -0.7
        alone[model] = gains_of_refinement(model, "longer")
        assert min(gains_of_refinement(model, "longer", "training")) > 0
    for model in ("cortex", "cortex/default"):
        assert all(7.5 < gain < 10.5 for gain in ahead[model])
    assert all(round(gain) == 6 for gain in ahead["pbmc68k"])
    mixology = [*ahead["sc_mixology"], *ahead["sc_mixology/default"]]
    assert (round(min(mixology), 1), round(max(mixology), 1)) == (3.4, 4.4)
    without = [gain for model in REFINED[:3] for gain in alone[model]]
    assert sum(gain > 0 for gain in without) == 1
    assert -5.05 < min(without)
    assert 0.4 < min(alone["cortex/default"]) < max(alone["cortex/default"]) < 5
    assert 6 < min(alone["sc_mixology/default"]) < max(alone["sc_mixology/default"]) < 16.05
    means = [
        refinement(model, s, ("longer", "before"), "test", "miselbo")[0]
        for model in REFINED[3:]
        for s in (1, 4)
    ]
    assert [round(mean) for mean in means] == [2, 2, 10, 9]


def test_what_is_said_of_scores_after_refinement_is_so():
    beyond = {"before": [], "longer": []}
    for model in ("cortex", "cortex/default"):
        for size in (1, 4):
            stages = ("refined", "before")
            gain, half = refinement(model, size, stages, "scores", "svm")
            assert 0.0025 < gain < 0.0055
            beyond["before"] += [(model, size)] * (gain > half)
            gain, half = refinement(model, size, ("refined", "longer"), "scores", "svm")
            beyond["longer"] += [(model, size)] * (gain > half)
            for score in ("ari", "nmi"):
                gain, half = refinement(model, size, stages, "scores", score)
                assert abs(gain) < half
                gain, half = refinement(model, size, ("refined", "longer"), "scores", score)
                moved = (model, size) == ("cortex/default", 1)
                assert (abs(gain) > half) == moved
                if moved:
                    said = {"ari": (0.013, 0.010), "nmi": (0.015, 0.008)}[score]
                    assert (round(gain, 3), round(half, 3)) == said
    assert beyond["before"] == [("cortex", 4), ("cortex/default", 4)]
    assert len(beyond["longer"]) == 3
