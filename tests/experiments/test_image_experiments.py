"""The image experiments at tiny sizes: what is trained, what is fixed, and that a run resumes."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from idx_files import grey, write_idx

from scmixvi.core import miselbo
from scmixvi.experiments import (
    big_iwae,
    decoders_images,
    image_nll,
    inference_gap_images,
    latents,
    monotone_images,
    path_gradients,
)
from scmixvi.experiments._families import FAMILIES
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images import training as _image_training
from scmixvi.experiments._images.batch_norm import nlls_by_statistics
from scmixvi.experiments._images.training import Deadline, Models, OutOfTime, Scheme
from scmixvi.experiments._reports import image_nll as _report_image_nll
from scmixvi.experiments._reports import image_tables as _image_tables
from scmixvi.experiments._reports import images as _report_images
from scmixvi.experiments._reports import paper_images as _paper_images
from scmixvi.image._folders import in_turn_in
from scmixvi.image.lightning import VAETraining, recipe_training

TINY = {"n_latent": 3, "encoder_hidden": (8,), "decoder_hidden": (8,)}


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    """MNIST and Fashion-MNIST of random images: 200 to train on, 40 to validate, 40 to test."""
    for name in ("MNIST", "FashionMNIST"):
        write_idx(tmp_path / name / "raw", gzipped=False, n_train=240, n_test=40)
    monkeypatch.setenv("SCMIXVI_DATA_DIR", str(tmp_path))
    return tmp_path


def models(folder, minutes=None, epochs=3, **changes):
    words = ["--result", str(folder / "x.json"), "--samples", "7", "--seed", "3"]
    options = _image_training.parser("An experiment.", folder).parse_args(words)
    scheme = Scheme(epochs=epochs, warmup_epochs=1, **changes)
    return Models("mnist", options, scheme, Deadline(minutes))


def make():
    return recipe_training("mlp", 2, TINY, warmup_epochs=1)


def weights(vae):
    return {key: value.clone() for key, value in vae.state_dict().items()}


class After:
    """A deadline that passes once it has been asked so many times."""

    def __init__(self, n):
        self.n = n

    @property
    def passed(self):
        self.n -= 1
        return self.n < 0

    def check(self):
        if self.passed:
            raise OutOfTime


def test_training_and_test_go_on_as_if_never_stopped(small_data, monkeypatch):
    monkeypatch.setattr(_image_tests, "TEST_BATCH", 10)
    whole, parts = models(small_data / "whole"), models(small_data / "parts")
    vae, record = whole.trained("a", make)
    expected = _image_tests.nll(whole, "a", vae)
    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        parts.trained("a", make)
    assert not (parts.folder / "a" / "trained.json").exists()
    kept = torch.load(parts.folder / "a" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 1, "two of three epochs"
    parts.deadline = Deadline()
    resumed, again = parts.trained("a", make)
    torch.testing.assert_close(weights(resumed), weights(vae), rtol=0, atol=0)
    assert again == record
    assert record["epochs"] == 3
    assert record["accelerator"] == ("cuda" if torch.cuda.is_available() else "cpu")

    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        _image_tests.nll(parts, "a", resumed)
    parts.deadline = Deadline()
    torch.rand(5)
    assert _image_tests.nll(parts, "a", resumed) == expected
    refined = _image_tests.refined_nll(whole, "a", vae)
    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        _image_tests.refined_nll(parts, "a", resumed)
    parts.deadline = Deadline()
    assert _image_tests.refined_nll(parts, "a", resumed) == refined
    assert refined["nll_refined"] <= refined["nll_refined_eq17"]
    steps, samples = refined["n_refinement_steps"], refined["n_refined_samples"]
    assert (steps, samples) == (_image_training.REFINEMENT_STEPS, 7)
    assert expected["n_test_images"] == 40
    assert expected["n_test_samples"] == 7


def test_some_of_the_test_images_are_spread_over_all(small_data):
    found = models(small_data)
    x = found.test_images
    found.n_test_images = 4
    torch.testing.assert_close(found.test_images, x[[0, 10, 20, 30]], rtol=0, atol=0)
    vae, _ = found.trained("a", make)
    assert _image_tests.nll(found, "a", vae)["n_test_images"] == 4
    found.n_test_images = 1000
    assert _image_tests.nll(found, "a", vae)["n_test_images"] == len(x) == 40
    with pytest.raises(SystemExit):
        image_nll.main(["--test-images", "0"])


def test_batch_norm_as_in_the_released_code_is_by_each_draw_of_each_component():
    torch.manual_seed(0)
    vae = recipe_training("vanilla", 2, image_nll.SMOKE_SIZES["vanilla"]).vae
    x = (torch.rand(6, 1, 28, 28) < 0.3).float()
    vae.decoder.train()(torch.randn(6, 4)).log_prob(x)
    before = {key: value.clone() for key, value in vae.eval().state_dict().items()}
    torch.manual_seed(1)
    running, batch = nlls_by_statistics(vae, x, 3)
    for key, value in vae.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)

    torch.manual_seed(1)
    posterior = vae.posterior(x)
    draws = [posterior.sample_stratified(1) for _ in range(3)]
    for found, mode in ((running, False), (batch, True)):
        vae.decoder.train(mode)
        for s in range(2):
            ratios = [
                vae.decoder(z[:, s]).log_prob(x)
                + vae.prior().log_prob((z[:, s],))
                - (log_q[:, s].logsumexp(1) - np.log(2))
                for (z,), log_q in draws
            ]
            expected = np.log(3) - torch.cat(ratios).logsumexp(0)
            torch.testing.assert_close(found[s], expected, rtol=1e-4, atol=1e-3)
    assert (batch - running).abs().min() > 1e-3
    assert batch.std() > 0, "each image has its own"


def test_without_batch_norm_nothing_changes_by_it(small_data):
    found = models(small_data)
    vae, _ = found.trained("a", make)
    figures = _image_tests.nll_change_by_batch_norm(found, "a", vae)
    assert figures == {
        "nll_change_by_batch_norm": 0.0,
        "nll_change_by_batch_norm_standard_error": 0.0,
        "n_batch_norm_samples": 7,
    }


def test_a_training_that_moved_keeps_its_best_epoch(small_data):
    def too_fast():
        return recipe_training("mlp", 2, TINY, warmup_epochs=0, learning_rate=0.5)

    _, whole = models(small_data / "whole").trained("a", too_fast)
    assert whole["best_epoch"] == 1, "later epochs are worse"
    parts = models(small_data / "parts")
    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        parts.trained("a", too_fast)
    (small_data / "parts").rename(small_data / "moved")
    _, moved = models(small_data / "moved").trained("a", too_fast)
    assert moved == whole


def test_a_training_by_another_scheme_is_not_taken_for_this_one(small_data):
    models(small_data).trained("a", make)
    with pytest.raises(ValueError, match="epochs = 3, not 4: use the same arguments, or name"):
        models(small_data, epochs=4).trained("a", make)


def test_a_training_that_has_stopped_early_is_not_trained_on(small_data):
    def too_fast():
        return recipe_training("mlp", 2, TINY, warmup_epochs=0, learning_rate=0.5)

    found = models(small_data, epochs=30, patience=1)
    vae, record = found.trained("a", too_fast)
    assert record["stopped_early"]
    assert record["epochs"] < 30
    (found.folder / "a" / "trained.json").unlink()  # as if interrupted before it was written
    again, same = found.trained("a", too_fast)
    assert same == record
    torch.testing.assert_close(weights(again), weights(vae), rtol=0, atol=0)


def test_a_bound_that_is_not_finite_is_not_taken_for_a_deadline(small_data, monkeypatch):
    found = models(small_data)
    found.deadline = After(1)
    with pytest.raises(OutOfTime):
        found.trained("a", make)
    found.deadline = Deadline()
    own = VAETraining.bound

    def broken(self, *arguments):
        return own(self, *arguments) * (1 if self.training else float("nan"))

    monkeypatch.setattr(VAETraining, "bound", broken)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="is nan after epoch 2: train with a lower"):
            found.trained("a", make)
    kept = torch.load(found.folder / "a" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0, "the epoch before is what there is to go on from"


def test_a_training_of_another_model_is_not_taken_for_this_one(small_data):
    def other():
        return recipe_training("mlp", 2, TINY | {"weights": [0.9, 0.1]}, warmup_epochs=1)

    found = models(small_data)
    found.trained("a", make)
    found.trained("a", make)
    with pytest.raises(ValueError, match="origin = .*, not .*0.9.*: use the same arguments"):
        found.trained("a", other)
    path = found.folder / "a" / "scheme.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "origin"})
    )
    found.trained("a", make)
    assert "origin" not in json.loads(path.read_text()), "a folder from before is left as it is"


def test_the_test_of_other_weights_is_not_taken_for_this_ones(small_data):
    found = models(small_data)
    vae, _ = found.trained("a", make)
    first = _image_tests.nll(found, "a", vae)
    other = make().vae.eval()
    second = _image_tests.nll(found, "a", other)
    assert second["nll"] != first["nll"]
    assert _image_tests.nll(found, "a", vae) == first
    (path,) = found.folder.glob("a/nll_*.pt")
    torch.save({"state_dict": torch.load(path)["state_dict"]}, path)
    assert _image_tests.nll(found, "a", other) == first, (
        "a file from before does not say of which weights it is"
    )


def test_no_time_no_training(small_data):
    with pytest.raises(OutOfTime):
        models(small_data, minutes=0).trained("a", make)
    assert not list(small_data.rglob("*.ckpt"))


def test_a_second_process_waits_while_one_trains_or_tests(small_data, capsys):
    found, seen = models(small_data), []

    def work(held):
        with in_turn_in(found.folder / "a"):
            held.set()
            time.sleep(0.5)
            seen.append(len(list(small_data.rglob("*.pt" if seen else "*.ckpt"))))

    vae = None
    for ask in (
        lambda _: found.trained("a", make)[0],
        lambda vae: _image_tests.nll(found, "a", vae),
    ):
        held = threading.Event()
        other = threading.Thread(target=work, args=[held])
        other.start()
        assert held.wait(20)
        vae = ask(vae)
        other.join()
    assert seen == [0, 0], "nothing was written meanwhile"
    assert capsys.readouterr().out.count("another process works here") == 2


def test_the_test_is_equation_17_and_its_repeats_are_averaged(small_data):
    found = models(small_data)
    vae, _ = found.trained("a", make)
    once, twice = _image_tests.nll(found, "a", vae), _image_tests.nll(found, "a", vae, n_repeats=2)
    _image_training.start_random(3, "a/test/0")
    first, second = (vae.nll(found.test_images, 7) for _ in range(2))
    assert once["nll"] == pytest.approx(first.mean().item(), abs=1e-3)
    assert twice["nll"] == pytest.approx((first + second).mean().item() / 2, abs=1e-3)
    assert once["nll"] != twice["nll"]
    _image_training.start_random(3, "a/test/0")
    pooled = vae.nll(found.test_images, 7, pooled=True).mean().item()
    assert once["nll_pooled"] == pytest.approx(pooled, abs=1e-3)
    assert once["nll_pooled"] < once["nll"]


def test_the_bound_is_miselbo_of_one_draw(small_data):
    found = models(small_data)
    vae, _ = found.trained("a", make)
    exact = torch.stack([miselbo(*vae(found.test_images)) for _ in range(300)]).detach().mean()
    assert _image_tests.bound(found, "a", vae, n_draws=300) == pytest.approx(exact.item(), abs=0.05)
    assert _image_tests.bound(found, "a", vae) == _image_tests.bound(found, "a", vae)


# ---------------------------------------------------------------- latents


def test_ensembles_are_nested_and_leave_the_decoder_alone(small_data):
    found = models(small_data)
    first, _ = latents.mixture(found, 1, TINY)
    target = weights(first.decoder)
    two, records = latents.separate(found, 2, TINY)
    three, more = latents.separate(found, 3, TINY)
    assert [r["name"] for r in more] == ["mixture_S1", "member_2", "member_3"]
    assert more[:2] == records
    for vae in (two, three):
        torch.testing.assert_close(weights(vae.decoder), target, rtol=0, atol=0)
    posteriors = three.posterior.posteriors
    for member, same in zip(two.posterior.posteriors, posteriors, strict=False):
        torch.testing.assert_close(weights(member), weights(same), rtol=0, atol=0)
    own = weights(first.posterior)
    torch.testing.assert_close(weights(posteriors[0]), own, rtol=0, atol=0)
    a, b = (weights(p)["levels.0.head.weight"] for p in posteriors[1:])
    assert not torch.allclose(a, b), "members start from different numbers"


def test_features_are_parameters_or_as_many_draws(small_data):
    vae = make().vae.eval()
    x = models(small_data).test_images
    columns = latents.features(vae, x)
    assert columns.shape == (40, 2 * 2 * 3)
    base = vae.posterior(x).stages[0].conditional()
    np.testing.assert_allclose(columns[:, 3:6], base.mean[1].detach(), rtol=1e-5)
    np.testing.assert_allclose(columns[:, 9:12], base.variance[1].detach(), rtol=1e-5)
    one = recipe_training("mlp", 1, TINY).vae.eval()
    draws = latents.features(one, x, 2000).reshape(40, 2000, 3)
    base = one.posterior(x).stages[0].conditional()
    np.testing.assert_allclose(draws.mean(1), base.mean[0].detach(), atol=0.2)
    np.testing.assert_allclose(draws.var(1), base.variance[0].detach(), rtol=0.3)


def test_a_linear_svm_finds_what_is_linear():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=400)
    signal = random.normal(size=(400, 3)) + 6 * np.eye(3)[labels]
    assert latents.accuracies(signal, labels, 4).mean() > 0.99
    noise = random.normal(size=(400, 3))
    assert latents.accuracies(noise, labels, 4).mean() == pytest.approx(1 / 3, abs=0.1)
    assert latents.accuracies(signal, labels, 4).shape == (4,)


def test_the_reduction_keeps_what_varies_and_rotates_where_nothing_is_cut():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=400)
    signal = random.normal(size=(400, 3)) + 3 * np.eye(3)[labels]
    copies = np.hstack([signal, signal, random.normal(size=(400, 2))])
    reduced = latents.reducer(copies, 3)(copies)
    assert reduced.shape == (400, 3)
    before = latents.accuracies(signal, labels, 4).mean()
    assert latents.accuracies(reduced, labels, 4, scale=False).mean() > before - 0.03
    scaled = (copies - copies.mean(0)) / copies.std(0)
    whole = latents.reducer(copies, 80)(copies)
    np.testing.assert_allclose(whole @ whole.T, scaled @ scaled.T, atol=1e-8)


# ---------------------------------------------------------------- big IWAE


@pytest.mark.parametrize("name", big_iwae.MODELS)
@pytest.mark.parametrize("s", big_iwae.COMPONENTS)
def test_parameter_counts_are_those_of_table_7(name, s):
    n_components = s if name == "mixture" else 1
    vae = recipe_training("mlp", n_components, big_iwae.sizes(name, s)).vae
    counts = big_iwae.parameter_counts(vae)
    column = s - 1
    assert counts["n_encoder_weights"] == _paper_images.TABLE_7_ENCODER[name][column]
    assert counts["n_parameters_of_table_7"] == _paper_images.TABLE_7_TOTAL[name][column]
    assert counts["n_parameters"] > counts["n_parameters_of_table_7"], "biases of the encoders"


# ---------------------------------------------------------------- smoke runs and the report


def run(capsys, module, *words):
    module.main(["--smoke", "--seed", "3", *words])
    return capsys.readouterr().out


def written(path):
    content = json.loads(path.read_text())
    assert content["smoke"]
    for run in content["runs"].values():
        assert run["environment"]["scmixvi"]
        assert run["settings"]["epochs"] == run["trainings"][0]["scheme"]["epochs"]
        assert run["settings"].get("samples") == run.get("n_test_samples")
    return content["runs"]


def test_latents_smoke(small_data, capsys, monkeypatch):
    monkeypatch.setattr(latents, "COMPONENTS", (1, 2))
    result = small_data / "latents.json"
    words = (latents, "--result", str(result), "--datasets", "mnist", "--splits", "2")
    run(capsys, *words)
    runs = written(result)
    assert set(runs) == {f"mnist/{name}/S={s}/seed=3" for name in latents.MODELS for s in (1, 2)}
    same = [runs[f"mnist/{name}/S=1/seed=3"] for name in ("ensemble", "mixture")]
    assert same[0]["accuracy"] == same[1]["accuracy"], "at S = 1 they are one model"
    by_name = {name: runs[f"mnist/{name}/S=2/seed=3"] for name in latents.MODELS}
    assert [by_name[name]["n_features"] for name in latents.MODELS] == [16, 16, 16]
    assert by_name["vae"]["jsd"] == 0
    assert 0 < by_name["ensemble"]["jsd"] < np.log(2)
    assert by_name["vae"]["nll"] == same[0]["nll"] != by_name["ensemble"]["nll"]
    assert run(capsys, *words) == "", "nothing is run twice"
    with pytest.raises(ValueError, match="with splits = 2, not 3: use the same arguments"):
        run(capsys, *words[:-1], "3")

    images = small_data / "monotone_images.json"
    monkeypatch.setattr(Models, "_fit", lambda *_: pytest.fail("the checkpoints are there"))
    run(capsys, monotone_images, "--result", str(images))
    mixtures = written(images)
    for s in (1, 2):
        here = mixtures[f"mnist/S={s}/seed=3"]
        assert here["nll"] == runs[f"mnist/mixture/S={s}/seed=3"]["nll"]
        assert here["gap"] == pytest.approx(-here["nll_pooled"] - here["miselbo"], abs=1e-3)


def test_path_gradients_smoke(small_data, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(
        path_gradients,
        "recipe_training",
        lambda *a, **k: made.append(recipe_training(*a, **k)) or made[-1],
    )
    result = small_data / "path_gradients.json"
    words = (path_gradients, "--result", str(result), "--components", "1", "2")
    run(capsys, *words)
    runs = written(result)
    assert set(runs) == {f"mnist/S={s}/{g}/seed=3" for s in (1, 2) for g in ("whole", "path")}
    assert [m.path_gradient for m in made] == [False, True] * 2
    for s in (1, 2):
        whole, path = (runs[f"mnist/S={s}/{g}/seed=3"] for g in ("whole", "path"))
        assert whole["nll"] == pytest.approx(path["nll"], rel=0.05), "same start, few steps"
        assert whole["nll"] != path["nll"]
    assert run(capsys, *words) == "", "nothing is run twice"
    table = _report_images.path_gradients_tables(runs, True)
    assert table.count("path minus whole") == 3


def test_big_iwae_smoke(small_data, capsys, monkeypatch):
    monkeypatch.setattr(big_iwae, "COMPONENTS", (1, 2))
    result = small_data / "big_iwae.json"
    run(capsys, big_iwae, "--result", str(result))
    runs = written(result)
    assert set(runs) == {
        f"mnist/{name}/seed=3"
        for name in ("mixture/S=1", "mixture/S=2", "iwae_layers/S=2", "iwae_units/S=2")
    }
    wanted = runs["mnist/mixture/S=2/seed=3"]["n_encoder_weights"]
    for name in ("iwae_layers", "iwae_units"):
        figures = runs[f"mnist/{name}/S=2/seed=3"]
        assert figures["n_importance_samples"] == 2
        assert wanted <= figures["n_encoder_weights"] < 1.1 * wanted
    assert run(capsys, big_iwae, "--result", str(result)) == ""


def test_image_nll_smoke_stops_and_goes_on(small_data, capsys):
    result = small_data / "image_nll.json"
    words = ("--result", str(result), "--datasets", "mnist", "--components", "1")
    assert "time is up" in run(capsys, image_nll, *words, "--minutes", "0")
    assert not result.exists()
    run(capsys, image_nll, *words)
    runs = written(result)
    assert {name.split("/")[1] for name in runs} == set(image_nll.RECIPES) - {"cifar_vanilla"}
    assert all(np.isfinite(run["nll"]) for run in runs.values())
    bits = runs["mnist/vanilla/S=1/seed=3"]
    assert bits["bits_per_dim"] == pytest.approx(bits["nll"] / 784 / np.log(2), rel=1e-4)
    assert run(capsys, image_nll, *words) == ""
    others = {"epochs": "3", "samples": "2", "precision": "bf16-mixed", "test-images": "2"}
    for option, value in others.items():
        name, word = option.replace("-", "_"), f"--{option}"
        with pytest.raises(ValueError, match=f"with {name} = .*, not {value}: use the same"):
            run(capsys, image_nll, *words, word, value)


def test_short_trainings_have_a_table_of_their_own(small_data, capsys):
    result = small_data / "image_nll_short.json"
    words = ("--result", str(result), "--datasets", "mnist", "--recipes", "vanilla")
    run(capsys, image_nll, *words, "--test-images", "2")
    _report_images.write(small_data, small_data)
    text = (small_data / "image_nll_short.md").read_text()
    runs = written(result)
    one, two = (runs[f"mnist/vanilla/S={s}/seed=3"] for s in (1, 2))
    assert f"| NLL, refined | {one['nll_refined']:.2f} | {two['nll_refined']:.2f} |" in text
    assert "| NLL, paper | 79.74 ± 0.03 | 79.15 ± 0.03 |" in text
    assert f"| NLL, less S = 1's | – | {two['nll'] - one['nll']:+.2f} |" in text
    changes = [f"{figures['nll_change_by_batch_norm']:+.2f}" for figures in (one, two)]
    assert f"released code | {' | '.join(changes)} |" in text
    bounds = [f"{figures['trainings'][0]['val_bound']:.2f}" for figures in (one, two)]
    assert f"| best MISELBO on validation images | {' | '.join(bounds)} |" in text
    assert "Tested on 2 of the 10,000 test images, evenly spaced; trained in 32-true." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "-1"), "argument --samples: '-1' is no whole number of at least 1"),
        (("--samples", "0"), "argument --samples: '0' is no whole number of at least 1"),
        (("--epochs", "0"), "argument --epochs: '0' is no whole number of at least 1"),
        (("--components", "1", "0"), "argument --components: '0' is no whole number of at least"),
        (("--warmup", "-1"), "argument --warmup: '-1' is no whole number of at least 0"),
        (("--warmup", "2.5"), "argument --warmup: '2.5' is no whole number of at least 0"),
        *(
            (("--learning-rate", rate), f"argument --learning-rate: '{rate}' is no positive and")
            for rate in ("0", "-1", "nan", "inf", "fast")
        ),
        (("--components", "77"), "no model of all of these --datasets, --recipes and --components"),
        (("--recipes", "cifar_vanilla", "--datasets", "mnist"), "cifar_vanilla is of cifar10"),
    ],
)
def test_arguments_that_ask_for_nothing_are_refused(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        image_nll.main(["--result", str(tmp_path / "image_nll.json"), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_warmup_may_be_asked_for():
    options = _image_training.parser("Doc.", image_nll.RESULT).parse_args(["--warmup", "0"])
    assert _image_training.scheme_of(options).warmup_epochs == 0


def test_one_image_has_no_standard_error(small_data, capsys):
    """Null in the JSON, which NaN is not, and no matter to the report."""
    result = small_data / "image_nll_short.json"
    words = ("--result", str(result), "--datasets", "mnist", "--recipes", "vanilla")
    run(capsys, image_nll, *words, "--test-images", "1")
    assert "NaN" not in result.read_text()
    for figures in written(result).values():
        assert figures["n_test_images"] == 1
        assert figures["nll_standard_error"] is None
        assert figures["nll_change_by_batch_norm_standard_error"] is None
    _report_images.write(small_data, small_data)
    assert "Tested on 1 of the 10,000" in (small_data / "image_nll_short.md").read_text()


def test_cifar_smoke_on_a_subset_is_called_one(small_data, capsys):
    (small_data / "CIFAR10").mkdir()
    arrays = {f"{split}_x": grey(n, 32, 3).numpy() for split, n in (("train", 20), ("test", 5))} | {
        f"{split}_y": np.zeros(n, dtype=np.int64) for split, n in (("train", 20), ("test", 5))
    }
    np.savez(small_data / "CIFAR10" / "cifar10_subset.npz", **arrays)
    result = small_data / "image_nll.json"
    words = ("--result", str(result), "--datasets", "cifar10", "--components", "2")
    with pytest.warns(UserWarning, match="no figure from it is comparable"):
        run(capsys, image_nll, *words)
    figures = written(result)["cifar10/cifar_vanilla/S=2/seed=3"]
    assert figures["data"] == "cifar10_subset"
    assert figures["n_test_images"] == 5
    assert 8 < figures["bits_per_dim"] < 20, "8 bits a colour is what knowing nothing costs"
    _report_images.write(small_data, small_data)
    text = (small_data / "image_nll.md").read_text()
    assert f"| CIFAR-10, bits a dimension | not run | {figures['bits_per_dim']:.2f} |" in text
    assert "subset of CIFAR-10" in text


def test_the_order_of_cost_and_the_papers_schemes():
    options = image_nll.parser("Doc.", image_nll.RESULT, None).parse_args([])
    options.datasets, options.recipes = image_nll.DATASETS, image_nll.RECIPES
    options.components, options.precision = None, "32-true"
    order = image_nll.cells(options)
    assert order[:5] == [("mnist", "vanilla", s) for s in (1, 2, 4, 3)] + [
        ("mnist", "hierarchical", 1)
    ]
    assert len(order) == len(set(order))
    assert order[-3:] == [("mnist", "composite", s) for s in (5, 6, 8)]
    assert {s for data, recipe, s in order if (data, recipe) == ("mnist", "vanilla")} == set(
        range(1, 11)
    )
    scheme = _image_training.scheme_of(options)
    assert (scheme.epochs, scheme.warmup_epochs, scheme.patience) == (2000, 100, 100)
    options.epochs = 40
    assert _image_training.scheme_of(options).warmup_epochs == 10


def run_of(nll, **changes):
    scheme = {"epochs": 2000, "patience": 100, "warmup_epochs": 100, "learning_rate": 5e-4}
    training = {"name": "a", "epochs": 321, "stopped_early": True, "scheme": scheme}
    return {
        "nll": nll,
        "nll_pooled": nll - 0.25,
        "nll_refined": nll - 0.5,
        "n_test_samples": 5000,
        "trainings": [training],
    } | changes


def test_the_report_has_means_intervals_and_what_was_not_run(tmp_path):
    runs = {
        f"mnist/vanilla/S=1/seed={seed}": run_of(nll, data="mnist")
        for seed, nll in enumerate((80.0, 81.0, 82.0))
    }
    runs["cifar10/cifar_vanilla/S=2/seed=0"] = run_of(9e3, data="cifar10_subset", bits_per_dim=5.5)
    (tmp_path / "image_nll.json").write_text(json.dumps({"runs": runs}))
    _report_images.write(tmp_path, tmp_path)
    text = (tmp_path / "image_nll.md").read_text()
    # Student's t at 2 degrees of freedom: 4.303 * 1 / sqrt(3) = 2.48.
    assert "| vanilla | 81.00 ± 2.48 | not run | not run | not run |" in text
    assert "| vanilla, paper | 79.74 ± 0.03 |" in text
    assert "not comparable with the paper's" in text
    assert "| vanilla, one logarithm | 80.75 ± 2.48 |" in text
    assert "| vanilla, refined | 80.50 ± 2.48 |" in text
    assert "| CIFAR-10, bits a dimension | not run | 5.50 |" in text
    assert "3 training(s) of 321 epochs (at most 2000, KL warm-up 100" in text
    assert "Fewer epochs" not in text
    assert "Fewer seeds" not in text
    assert (tmp_path / "latents.md").read_text().count("not run") > 50
    for name in _report_images.FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_the_report_says_when_epochs_were_fewer_and_pairs_the_seeds(tmp_path):
    runs = {}
    for seed, (mixture, ensemble) in enumerate(((85.0, 86.0), (95.0, 95.6))):
        for name, nll in (("mixture", mixture), ("ensemble", ensemble)):
            figures = run_of(nll, accuracy=nll / 100, jsd=0.5)
            figures |= dict.fromkeys(("accuracy_reduced", "accuracy_train_to_test"), 0.9)
            figures["trainings"][0] |= {"name": name, "epochs": 20, "stopped_early": False}
            figures["trainings"][0]["scheme"] |= {"epochs": 20, "warmup_epochs": 5}
            runs[f"mnist/{name}/S=2/seed={seed}"] = figures
    (tmp_path / "latents.json").write_text(json.dumps({"runs": runs}))
    _report_images.write(tmp_path, tmp_path)
    text = (tmp_path / "latents.md").read_text()
    assert (
        "**Fewer epochs than the paper's** (at most 2000, warm-up 100): 4 training(s) of 20" in text
    )
    assert "4 ended before early stopping" in text
    # Differences -1.0 and -0.6: mean -0.8, t interval 12.706 * 0.2 = 2.54.
    assert "| mixture minus ensemble | – | -0.80 ± 2.54 |" in text


def few(n_seeds=1, epochs=50, seconds=1000.0, **training):
    """Runs of two models for a few seeds, each trained for so many epochs."""
    runs = {}
    for name in ("S=1", "S=2"):
        for seed in range(n_seeds):
            figures = run_of(80.0, seconds=seconds)
            figures["trainings"][0] |= {"name": name} | training
            figures["trainings"][0]["scheme"] |= {"epochs": epochs}
            runs[f"mnist/{name}/seed={seed}"] = figures
    return runs


def test_few_seeds_of_short_trainings_on_a_cpu_say_why():
    def note(runs, **how):
        return _image_tables.note(runs, how.pop("smoke", False), **how)

    # Two runs a seed of 2500 s: 1.388 hours, of which no more than 1.3 are claimed.
    of_paper = note(few(2, seconds=2500.0, accelerator="cpu"), paper_runs=3)
    assert (
        "Fewer seeds than the paper's 3 runs: training and test took at least 1.3 hours a seed on "
        "a CPU, and the paper's scheme has up to 40 times as many epochs. L = 5000" in of_paper
    )
    unsaid = note(few(device="x86_64"))
    assert "Fewer seeds than three: training and test took at least 0.5 hours" in unsaid
    assert "The paper does not say of how many runs its figures are." in unsaid
    for runs in (
        few(3, accelerator="cpu"),
        few(epochs=2000, accelerator="cpu"),
        few(accelerator="cuda", device="x86_64"),
        few(device="NVIDIA H100"),
        few() | {"mnist/S=3/seed=0": few(accelerator="cuda")["mnist/S=1/seed=0"]},
    ):
        assert "Fewer seeds" not in note(runs)
    assert "Fewer seeds" not in note(few(accelerator="cpu"), smoke=True)


def test_the_report_shows_which_larger_models_are_still_to_be_run():
    runs = {"mnist/composite/S=6/seed=0": run_of(76.9), "mnist/vanilla/S=10/seed=0": run_of(77.8)}
    text = _report_image_nll.image_nll_tables(
        {k: r | {"data": "mnist"} for k, r in runs.items()}, False
    )
    open_cells = " | ".join(["not run"] * 5)
    assert f"| vanilla | {open_cells} | 77.80 |" in text
    assert "| vanilla, paper | – | – | – | – | – | 77.82 |" in text
    assert "| composite | not run | 76.90 | – | not run | – | – |" in text
    assert "| composite, one logarithm | not run | 76.65 | – | not run | – | – |" in text
    assert "| vanilla, S = 10 | 77.82 | 77.80 | 77.30 |" in text


def test_the_gap_of_images_is_split_on_the_mixtures_of_latents(small_data, capsys):
    latents_json, result = small_data / "latents.json", small_data / "inference_gap_images.json"
    words = ("--result", str(latents_json), "--datasets", "mnist")
    run(capsys, latents, *words)
    run(capsys, inference_gap_images, "--result", str(result))
    runs, trained = written(result), written(latents_json)
    assert set(runs) == {f"mnist/mixture/S={size}/seed=3" for size in (1, 4)}
    for key, figures in runs.items():
        assert figures["trainings"] == trained[key]["trainings"], "not trained again"
        for group in ("test", "training"):
            assert figures[group]["n_images"] == 8
            assert 0 < figures[group]["effective_share"] <= 1
            assert np.isfinite([figures[group][f"gap/{f}"] for f in FAMILIES]).all()
    _report_images.write(small_data, small_data)
    text = (small_data / "inference_gap_images.md").read_text()
    assert "| 4 | training images |" in text


def test_decoders_of_images_are_told_apart_on_the_mixtures_of_latents(
    small_data, capsys, monkeypatch
):
    monkeypatch.setattr(latents, "COMPONENTS", (1, 2))
    latents_json, result = small_data / "latents.json", small_data / "decoders_images.json"
    run(capsys, latents, "--result", str(latents_json), "--datasets", "mnist", "--splits", "2")
    monkeypatch.setattr(Models, "_fit", lambda *_: pytest.fail("the checkpoints are there"))
    run(capsys, decoders_images, "--result", str(result))
    runs, trained = written(result), written(latents_json)
    assert set(runs) == {
        f"mnist/{name}/seed=3" for name in ("mixture/S=1", "mixture/S=2", "ensemble/S=2")
    }
    for key, figures in runs.items():
        assert figures["nll"] == trained[key]["nll"]
        assert figures["n_refinement_steps"] == 2
        assert np.isfinite(figures["nll_refined"])
    _report_images.write(small_data, small_data)
    row = f"| mixture, S = 2 | {runs['mnist/mixture/S=2/seed=3']['nll']:.2f} |"
    assert row in (small_data / "decoders_images.md").read_text()


def test_an_images_log_joint_is_the_vaes(small_data):
    """Its bound with the encoders' posterior is MISELBO of the VAE's own terms, draw by draw."""
    torch.manual_seed(0)
    vae = make().vae.eval()
    x = torch.rand(5, 1, 28, 28).round()
    torch.manual_seed(1)
    terms = vae(x)
    torch.manual_seed(1)
    (z,), log_q_all = vae.posterior(x).sample_stratified()
    log_p = inference_gap_images.log_joint_of(vae, x)(z)
    torch.testing.assert_close(miselbo(log_p, 0 * log_p, log_q_all), miselbo(*terms))
