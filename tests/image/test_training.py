"""Training with Lightning: warm-up, resumption, guards and reports, on a tiny stand-in model."""

import contextlib
import inspect
import json
import math
import shutil
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.utils import get_total_norm

from scmixvi.core import (
    MixturePosterior,
    Stage,
    jsd,
    log_mixture,
    miselbo,
    siwelbo,
)
from scmixvi.image import BoundTerms, lightning, recipes
from scmixvi.image._evaluation import eq_17_and_pooled
from scmixvi.image._settings import run_settings
from scmixvi.image.batches import ImageBatches
from scmixvi.image.callbacks import (
    SafeCheckpoints,
    TestReport,
    best_checkpoint,
    early_stopping,
    last_checkpoint,
)
from scmixvi.image.data import ImageDataModule
from scmixvi.image.lightning import MONITORED, VAETraining, recipe_training


class TinyPosterior(nn.Linear):
    """S linear encoders of 3x3 images, two latents."""

    def forward(self, x):
        loc, log_scale = super().forward(x.flatten(1)).unflatten(-1, (-1, 4)).chunk(2, -1)
        loc, scale = loc.transpose(0, 1), log_scale.transpose(0, 1).clamp(-3, 1).exp()
        conditional = Normal(loc, scale, validate_args=False)
        return MixturePosterior([Stage(lambda: Independent(conditional, 1))])


class TinyVAE(nn.Module):
    """A tiny posterior of binary images and a linear decoder."""

    def __init__(self, n_components=2, batch_norm=False):
        super().__init__()
        self.posterior = TinyPosterior(9, n_components * 4)
        self.decoder = nn.Sequential(nn.Linear(2, 9))
        if batch_norm:
            self.decoder.append(nn.BatchNorm1d(9))
        self.n_components = n_components

    def forward(self, x, n_importance_samples=1):
        (z,), log_q_all = self.posterior(x).sample_stratified(n_importance_samples)
        logits = self.decoder(z.flatten(0, 2)).unflatten(0, z.shape[:3])
        log_lik = Bernoulli(logits=logits, validate_args=False).log_prob(x.flatten(1)).sum(-1)
        log_prior = Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)
        return BoundTerms(log_lik, log_prior, log_q_all)

    def nll_estimates(self, x, n_importance_samples, n_refinement_steps):
        assert n_refinement_steps == 0, "it has no posterior to refine"
        log_lik, log_prior, log_q_all, _ = self(x, n_importance_samples)
        strata = (log_lik + log_prior - log_mixture(log_q_all)).logsumexp(0)
        return eq_17_and_pooled(math.log(len(log_lik)) - strata)

    def sample(self, n):
        return self.decoder(torch.randn(n, 2)).sigmoid().view(n, 1, 3, 3)


def images(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 3, 3), generator=generator, dtype=torch.uint8)


def batches(n=40, binarise=True):
    return ImageBatches(images(n), 10, shuffle=True, binarise=binarise)


def held_out():
    return ImageBatches((images(20, seed=2) > 127).float(), 10)


def trainer(folder, **settings):
    defaults = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "plugins": [SafeCheckpoints()],
        "callbacks": [best_checkpoint(str(folder)), last_checkpoint(str(folder))],
    }
    return L.Trainer(**defaults | settings)


def training(seed=0, **settings):
    torch.manual_seed(seed)
    defaults = {"warmup_epochs": 2, "learning_rate": 0.01}
    return VAETraining(TinyVAE(), **defaults | settings)


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_the_validation_bound_rises(tmp_path):
    module = training(warmup_epochs=0, learning_rate=0.05)
    fit = trainer(tmp_path, max_epochs=15)
    before = fit.validate(module, held_out(), verbose=False)[0]["val_bound"]
    fit.fit(module, batches(), held_out())
    assert float(fit.callback_metrics["val_bound"]) > before + 0.3


def test_an_objective_has_one_name_in_every_process():
    """A partial's own text has an address, and would be of another training after a restart."""
    bound = partial(miselbo, beta=0.5)
    assert training(objective=bound, warmup_epochs=0).settings["objective"] == "miselbo(beta=0.5)"

    def scaled(*terms, inner, beta=1.0):
        return inner(*terms, beta=beta)

    named = training(objective=partial(scaled, inner=miselbo)).settings["objective"]
    assert named == "scaled(inner=miselbo)"

    class Bound:
        def __call__(self, log_lik, log_prior, log_q_all, log_weights=None, beta=1.0):
            return miselbo(log_lik, log_prior, log_q_all, log_weights, beta)

    assert training(objective=Bound()).settings["objective"] == "Bound"


def test_the_loss_is_minus_the_mean_objective():
    module = training(warmup_epochs=0, n_importance_samples=3)
    x = next(iter(held_out()))
    torch.manual_seed(5)
    bound = module.bound(x)
    torch.manual_seed(5)
    torch.testing.assert_close(bound, miselbo(*module.vae(x, 3)), rtol=0, atol=0)


def test_kl_warm_up_draws_once_until_the_kl_weight_is_one(tmp_path):
    seen = []

    def spy(log_lik, log_prior, log_q_all, log_weights=None, beta=1.0):
        seen.append((torch.is_grad_enabled(), log_lik.shape[0], beta))
        return miselbo(log_lik, log_prior, log_q_all, log_weights, beta)

    module = training(objective=spy, n_importance_samples=3, warmup_epochs=4)
    trainer(tmp_path, max_epochs=6).fit(module, batches(), held_out())
    steps = [(n, beta) for training_step, n, beta in seen if training_step]
    expected = [(1, 0.0), (1, 0.25), (1, 0.5), (1, 0.75), (3, 1.0), (3, 1.0)]
    assert steps[::4] == expected
    assert len(steps) == 24
    assert {(n, beta) for training_step, n, beta in seen if not training_step} == {(3, 1.0)}


def test_an_objective_that_does_not_say_what_it_takes_is_refused():
    for objective in (torch.logsumexp, 3):
        with pytest.raises(ValueError, match="cannot be read: pass a function that calls it"):
            training(objective=objective, warmup_epochs=0)


def test_an_objective_that_takes_anything_takes_a_kl_weight():
    class Bound(nn.Module):
        def forward(self, *terms, beta=1.0):
            return miselbo(*terms, beta=beta)

    module = training(objective=Bound(), warmup_epochs=4)
    assert module.bound(torch.zeros(3, 1, 3, 3), 0.5).isfinite().all()


def test_an_objective_without_a_kl_weight_cannot_warm_up():
    with pytest.raises(ValueError, match="siwelbo takes no KL weight"):
        training(objective=siwelbo)


def test_siwelbo_trains_without_warm_up(tmp_path):
    module = training(objective=siwelbo, n_importance_samples=2, warmup_epochs=0)
    before = weights(module)
    trainer(tmp_path, max_epochs=1).fit(module, batches(), held_out())
    assert all(not torch.equal(before[name], after) for name, after in weights(module).items())


def test_the_defaults_of_a_training():
    wanted = {"warmup_epochs": 100, "learning_rate": 5e-4, "n_test_samples": 5000}
    for what in (VAETraining, recipe_training):
        found = inspect.signature(what).parameters
        assert {name: found[name].default for name in wanted} == wanted
    assert inspect.signature(ImageDataModule).parameters["batch_size"].default == 100


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"n_importance_samples": 0}, r"\(L\) must be a whole number of at least 1"),
    ({"n_importance_samples": 1.5}, r"\(L\) must be a whole number of at least 1, but it is 1.5"),
    ({"objective": jsd}, "the objective must take log_lik, .* as .*miselbo does, but jsd does not"),
    ({"n_test_samples": 0}, r"n_test_samples \(L\) must be a whole .* but it is 0"),
    ({"n_test_samples": -3}, r"n_test_samples \(L\) must be a whole .* but it is -3"),
    ({"n_test_refinement_steps": -1}, "refinement_steps must be a whole number of at least 0"),
    ({"warmup_epochs": -1}, "warmup_epochs must be a whole number of at least 0, but it is -1"),
    ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ({"learning_rate": math.nan}, "learning_rate must be positive"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        training(**settings)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("limit", [2, 4, 1.0])
def test_an_epoch_that_was_cut_short_is_over_for_what_goes_on(tmp_path, limit, every):
    """The next epoch has a new order, in a resumed run as in a whole one."""
    settings = {"limit_train_batches": limit, "check_val_every_n_epoch": every}
    whole = training()
    trainer(tmp_path / "whole", max_epochs=4, **settings).fit(whole, batches(), held_out())
    half = training()
    first = trainer(
        tmp_path / "half", max_epochs=2, callbacks=[last_checkpoint(tmp_path)], **settings
    )
    first.fit(half, batches(), held_out())
    resumed = training(seed=5)
    trainer(tmp_path / "rest", max_epochs=4, **settings).fit(
        resumed, batches(), held_out(), ckpt_path=tmp_path / "last.ckpt"
    )
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_gradients_of_batches_before_a_checkpoint_count_in_the_step_after_it(tmp_path, accumulated):
    settings = {"accumulate_grad_batches": accumulated, "val_check_interval": 3}
    whole = training()
    trainer(tmp_path / "whole", max_epochs=2, **settings).fit(whole, batches(), held_out())

    class Kill(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:  # the first after a validation
                raise ZeroDivisionError

    callbacks = [last_checkpoint(str(tmp_path)), Kill()]
    half = trainer(tmp_path / "half", max_epochs=2, callbacks=callbacks, **settings)
    with pytest.raises(ZeroDivisionError):
        half.fit(training(), batches(), held_out())
    resumed = training(seed=5)
    trainer(tmp_path / "rest", max_epochs=2, **settings).fit(
        resumed, batches(), held_out(), ckpt_path=tmp_path / "last.ckpt"
    )
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_all_weights_frozen_leave_nothing_to_train(tmp_path):
    module = training()
    module.vae.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of the model is left to train: all are frozen"):
        trainer(tmp_path, max_epochs=1).fit(module, batches(), held_out())


@pytest.mark.parametrize("value", [0.5, None])
def test_what_clips_gradients_is_a_setting(tmp_path, value):
    settings = [
        run_settings(trainer(tmp_path, gradient_clip_val=value, gradient_clip_algorithm=by))
        for by in (None, "norm", "value")
    ]
    found = [s["gradient_clip_algorithm"] for s in settings]
    assert found == (["norm", "norm", "value"] if value else [None] * 3)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_of_half_precision_are_refused_before_they_change(tmp_path, precision):
    module = training()
    kept = weights(module)
    with pytest.raises(ValueError, match=f"precision {precision} leaves weights of a type"):
        trainer(tmp_path, max_epochs=1, precision=precision).fit(module, batches(), held_out())
    torch.testing.assert_close(weights(module), kept, rtol=0, atol=0)
    assert all(weight.dtype is torch.float32 for weight in weights(module).values())


class Interruption(L.Callback):
    """Ends a run after some steps, as a time limit does or as a crash does."""

    def __init__(self, after, crash):
        self.after, self.crash = after, crash

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after:
            if self.crash:
                raise SystemError("power cut")
            trainer.should_stop = True


@pytest.mark.parametrize("crash", [True, False])
@pytest.mark.parametrize("after", [8, 9, 10, 12, 15])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, after, crash):
    settings = {"n_importance_samples": 2, "warmup_epochs": 3}
    whole = training(**settings)
    trainer(tmp_path / "whole", max_epochs=6).fit(whole, batches(), held_out())

    run = trainer(tmp_path / "parts", max_epochs=6)
    run.callbacks[:0] = [Interruption(after, crash), early_stopping()]
    with contextlib.suppress(SystemError):
        run.fit(training(**settings), batches(), held_out())
    assert run.global_step == after

    resumed = training(seed=123, **settings)
    run = trainer(tmp_path / "parts", max_epochs=6)
    run.callbacks.insert(0, early_stopping())
    run.fit(resumed, batches(), held_out(), ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert run.global_step == 24
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_the_epoch_of_the_highest_bound_and_the_last_are_kept(tmp_path):
    module, bounds = training(), [-9.0, -7.0, -8.0]
    module.validation_step = lambda x, batch_idx: module.log(
        MONITORED, bounds[module.current_epoch], batch_size=len(x)
    )
    trainer(tmp_path, max_epochs=3).fit(module, batches(), held_out())
    assert sorted(path.name for path in tmp_path.glob("*")) == ["best.ckpt", "last.ckpt"]
    best, last = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    assert (best["epoch"], last["epoch"]) == (1, 2)
    torch.testing.assert_close(last["state_dict"], module.state_dict(), rtol=0, atol=0)


def test_a_moved_training_knows_its_best_epoch(tmp_path):
    first = trainer(tmp_path / "here", max_epochs=1)
    first.fit(training(), batches(), held_out())
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.copytree(tmp_path / "here", tmp_path / "in_part")
    (tmp_path / "in_part" / "best.ckpt").unlink()

    def best_after(folder):
        run = trainer(tmp_path / folder, max_epochs=1)
        run.fit(training(), batches(), held_out(), ckpt_path=tmp_path / folder / "last.ckpt")
        return run.checkpoint_callbacks[0]

    moved = best_after("there")
    assert moved.best_model_path == str(tmp_path / "there" / "best.ckpt")
    assert list(moved.best_k_models) == [moved.best_model_path]
    assert moved.best_model_score == first.checkpoint_callbacks[0].best_model_score
    with pytest.warns(UserWarning, match="dirpath has changed"):
        assert best_after("in_part").best_model_score is None


def test_training_stops_when_the_validation_bound_stands_still(tmp_path):
    def still(log_lik, log_prior, log_q_all, log_weights=None, beta=1.0):
        return log_lik.mean((0, 1)) * 0.0

    def stopping(patience):
        settings = [early_stopping(patience), last_checkpoint(str(tmp_path))]
        return trainer(tmp_path, max_epochs=50, callbacks=settings)

    run = stopping(patience=3)
    run.fit(training(objective=still), batches(), held_out())
    assert run.current_epoch == 4
    run = stopping(patience=5)
    run.fit(training(objective=still), batches(), held_out(), ckpt_path=tmp_path / "last.ckpt")
    assert run.current_epoch == 6


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    states = []

    def breaks(log_lik, log_prior, log_q_all, log_weights=None, beta=1.0):
        states.append(weights(module))
        bound = miselbo(log_lik, log_prior, log_q_all, log_weights, beta)
        return bound * math.inf if len(states) == 3 else bound

    module = training(objective=breaks)
    with pytest.raises(FloatingPointError, match=r"gradient of step 2 \(epoch 0\) is not finite"):
        trainer(tmp_path, max_epochs=1).fit(module, batches(), held_out())
    assert not torch.equal(states[1]["vae.posterior.weight"], states[2]["vae.posterior.weight"])
    torch.testing.assert_close(weights(module), states[2], rtol=0, atol=0)


def test_where_asking_would_wait_the_epoch_ends_before_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning, "_answers_at_once", lambda device: False)
    n_steps = 0

    def breaks(log_lik, log_prior, log_q_all, log_weights=None, beta=1.0):
        nonlocal n_steps
        n_steps += torch.is_grad_enabled()
        bound = miselbo(log_lik, log_prior, log_q_all, log_weights, beta)
        return bound * math.inf if n_steps == 6 else bound

    with pytest.raises(FloatingPointError, match="a gradient of epoch 1 is not finite"):
        trainer(tmp_path, max_epochs=3).fit(training(objective=breaks), batches(), held_out())
    assert n_steps == 8, "two whole epochs"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(("precision", "clip", "fused"), [
    ("bf16-mixed", 1e-3, False),
    ("bf16-mixed", None, True),
    ("32-true", 1e-3, True),
])  # fmt: skip
def test_clipping_and_mixed_precision_go_together(tmp_path, precision, clip, fused):
    norms = []

    class Norms(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            norms.append(get_total_norm([p.grad for p in module.parameters()]))

    settings = {"precision": precision, "gradient_clip_val": clip, "callbacks": [Norms()]}
    run = trainer(tmp_path, max_epochs=1, **settings)
    run.fit(training(), batches(), held_out())
    assert run.optimizers[0].defaults["fused"] == fused
    assert [bool(norm < 2e-3) for norm in norms] == [clip is not None] * 4


def test_frozen_parts_keep_weights_and_batch_statistics(tmp_path):
    torch.manual_seed(0)
    vae = TinyVAE(batch_norm=True)
    vae.decoder.requires_grad_(False)
    module = VAETraining(vae, warmup_epochs=0)
    decoder = {k: v.clone() for k, v in vae.decoder.state_dict().items()}
    encoder = vae.posterior.weight.detach().clone()
    trainer(tmp_path, max_epochs=2).fit(module, batches(), held_out())
    torch.testing.assert_close(vae.decoder.state_dict(), decoder, rtol=0, atol=0)
    assert not torch.equal(vae.posterior.weight, encoder)


def test_a_resumed_run_takes_its_own_learning_rate(tmp_path):
    trainer(tmp_path, max_epochs=1).fit(training(), batches(), held_out())
    run = trainer(tmp_path, max_epochs=2)
    resumed = training(learning_rate=1e-4)
    run.fit(resumed, batches(), held_out(), ckpt_path=tmp_path / "last.ckpt")
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-4
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["settings"]["learning_rate"] == 1e-4
    assert resumed.trained["epochs"] == 2


@pytest.mark.parametrize(("change", "difference"), [
    ({"warmup_epochs": 1}, "warmup_epochs is 2 in it and 1 here"),
    ({"n_importance_samples": 2}, "n_importance_samples is 1 in it and 2 here"),
])  # fmt: skip
def test_a_training_by_other_settings_is_refused_before_anything_changes(
    tmp_path, change, difference
):
    trainer(tmp_path, max_epochs=1).fit(training(), batches(), held_out())
    other = training(seed=1, **change)
    before = weights(other)
    with pytest.raises(ValueError, match=f"of another training: {difference}"):
        trainer(tmp_path, max_epochs=2).fit(
            other, batches(), held_out(), ckpt_path=tmp_path / "last.ckpt"
        )
    torch.testing.assert_close(weights(other), before, rtol=0, atol=0)


def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(tmp_path):
    trainer(tmp_path, max_epochs=1).fit(training(), batches(), held_out())
    other = VAETraining(TinyVAE(n_components=3), warmup_epochs=2)
    before = weights(other)
    with pytest.raises(ValueError, match=r"'vae.posterior.weight' has shape \(8, 9\) in it and"):
        trainer(tmp_path, max_epochs=2).fit(
            other, batches(), held_out(), ckpt_path=tmp_path / "last.ckpt"
        )
    torch.testing.assert_close(weights(other), before, rtol=0, atol=0)


def test_the_report_holds_the_figures_and_what_made_them(tmp_path):
    module = training(n_test_samples=7)
    report = TestReport(n_images=4, name="digits")
    run = trainer(tmp_path, max_epochs=1, callbacks=[report, early_stopping(4)])
    run.fit(module, batches(), held_out())
    run.test(module, held_out(), verbose=False)
    record = json.loads((tmp_path / "digits.json").read_text())
    assert module.test_nll.shape == (20,)
    assert record["test_nll_nats"] == pytest.approx(float(module.test_nll.mean()), abs=1e-4)
    pooled = float(module.test_nll_pooled.mean())
    assert record["test_nll_pooled_nats"] == pytest.approx(pooled, abs=1e-4)
    assert record["precision"] == record["test_precision"] == "32-true"
    assert record["patience"] == 4
    error = float(module.test_nll.std()) / math.sqrt(20)
    assert record["test_nll_standard_error"] == pytest.approx(error, abs=1e-4)
    bits = float(module.test_nll.mean()) / (9 * math.log(2))
    assert record["test_bits_per_dim"] == pytest.approx(bits, abs=1e-4)
    assert record["n_test_images"] == 20
    assert record["n_test_samples"] == 7
    assert record["n_test_refinement_steps"] == 0
    assert record["objective"] == "miselbo"
    assert (record["epochs"], record["fit_epochs"], record["steps"]) == (1, 1, 4)
    assert record["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert record["fit_seconds"]["clock"] > 0
    assert record["test_seconds"]["processors"] > 0
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_test_images_can_have_posteriors_of_their_own(tmp_path):
    """Lightning tests in inference mode."""
    torch.manual_seed(0)
    vae = recipes.mlp(2, image_size=(1, 3, 3), n_latent=2, encoder_hidden=(5,), decoder_hidden=(5,))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(4.0)  # latents matter, and the encoders are wrong about them
    module = VAETraining(vae, n_test_samples=5)
    run = trainer(tmp_path, callbacks=[TestReport(n_images=1, name="digits")])
    run.test(module, held_out(), verbose=False)
    before = module.test_nll.mean()
    module.n_test_refinement_steps = 50
    run.test(module, held_out(), verbose=False)
    assert module.test_nll.mean() < before - 0.1
    assert json.loads((tmp_path / "digits.json").read_text())["n_test_refinement_steps"] == 50


def test_a_validation_before_training_is_no_part_of_it(tmp_path):
    report = TestReport()
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=2, callbacks=[report])
    run.fit(training(), batches(), held_out())
    assert report.state_dict()["clock"] > 0


def test_one_image_has_no_standard_error(tmp_path):
    run = trainer(tmp_path, callbacks=[TestReport(n_images=0)])
    run.test(training(), ImageBatches(held_out().pixels[:1], 1), verbose=False)
    record = json.loads((tmp_path / "test.json").read_text(), parse_constant=pytest.fail)
    assert record["test_nll_standard_error"] is None


def test_the_clock_goes_on_after_an_interruption(tmp_path):
    report = TestReport()
    report.load_state_dict({"clock": 100.0, "processors": 200.0})
    run = trainer(tmp_path, max_epochs=1, callbacks=[report])
    run.fit(training(), batches(), held_out())
    assert 100.0 < report.state_dict()["clock"] < 190.0
    assert 200.0 < report.state_dict()["processors"] < 290.0
