"""The training plan changes when things are logged, not what is trained or recorded."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scvi.model import SCVI
from scvi.module.base import LossOutput
from scvi.train import SaveCheckpoint, TrainingPlan

from counts import QUIET
from scmixvi import MixtureSCVI
from scmixvi.singlecell._exchange.storage import has_latents, store_latents
from scmixvi.singlecell._training.minibatches import DataSplitter
from scmixvi.singlecell._training.plan import MixtureTrainingPlan, _without_graph


def adata():
    return scvi.data.synthetic_iid(batch_size=50, n_genes=20)


def trained(plan, n_components=2, mixture_weights="uniform", **kwargs):
    """A model after a few epochs under one plan, seeded."""

    class Model(MixtureSCVI):
        _training_plan_cls = plan

    scvi.settings.seed = 0
    data = adata()
    Model.setup_anndata(data, batch_key="batch")
    model = Model(
        data,
        n_components=n_components,
        mixture_weights=mixture_weights,
        n_hidden=8,
        n_latent=3,
    )
    options = {"max_epochs": 5, "batch_size": 32, "train_size": 0.8, "latent_key": None} | kwargs
    model.train(accelerator="cpu", enable_progress_bar=False, **options)
    return model


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"check_val_every_n_epoch": 2},
        {"plan_kwargs": {"n_steps_kl_warmup": 9, "n_epochs_kl_warmup": None}},
        {"plan_kwargs": {"on_step": True}},
        {"log_every_n_steps": 3},
        {"max_steps": 8},
    ],
    ids=["default", "validation", "warmup by steps", "on_step", "log_every_n_steps", "max_steps"],
)
def test_history_is_that_of_scvi_tools(kwargs):
    ours, theirs = trained(MixtureTrainingPlan, **kwargs), trained(TrainingPlan, **kwargs)
    assert ours.history.keys() == theirs.history.keys()
    for key, expected in theirs.history.items():
        found = ours.history[key]
        assert found.index.equals(expected.index), key
        np.testing.assert_allclose(
            found.to_numpy(float), expected.to_numpy(float), rtol=1e-4, err_msg=key
        )


def test_a_compiled_module_gets_the_kl_weight_as_a_tensor():
    """A number would have it compiled again in every epoch of the warm-up."""
    model = trained(MixtureTrainingPlan, max_epochs=1)
    plan = MixtureTrainingPlan(model.module, n_epochs_kl_warmup=4, n_steps_kl_warmup=None)
    assert type(plan.kl_weight) is float
    plan.module._orig_mod = model.module.decoder
    assert isinstance(plan.kl_weight, torch.Tensor)
    assert float(plan.kl_weight) == 0.0
    plan.n_epochs_kl_warmup = 0  # with L > 1 the bound pools its draws at weight 1, known as such
    assert type(plan.kl_weight) is float
    assert plan.kl_weight == 1.0


@pytest.mark.parametrize("value", [torch.ones(2), None, [torch.ones(2)], torch.ones(2).to("meta")])
def test_batches_are_moved_unless_they_are_there(value, monkeypatch):
    data = DataSplitter(trained(MixtureTrainingPlan, max_epochs=1).adata_manager)
    moved = {"X": "moved"}
    monkeypatch.setattr(scvi.dataloaders.DataSplitter, "transfer_batch_to_device", lambda *_: moved)
    batch = {"X": torch.ones(3), "batch": value}
    there = value is None or (isinstance(value, torch.Tensor) and value.device.type == "cpu")
    found = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert found is (batch if there else moved)
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0) is moved


def test_lightning_finds_nothing_overridden_twice():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trained(MixtureTrainingPlan, max_epochs=1)
    assert not [w for w in found if "overridden" in str(w.message)]


@pytest.mark.parametrize("key", ["plan_kwargs", "plan_config"])
def test_an_unknown_option_is_refused_before_anything_changes(make_model, key):
    model = make_model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(ValueError, match=r"has no option learning_rate: .* it knows .*lr, .*on_ep"):
        model.train(1, **{key: {"learning_rate": 1e-3, "lr": 1e-3}}, **QUIET)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("key", ["plan_kwargs", "plan_config"])
@pytest.mark.parametrize("n_epochs", [0, 3])
def test_a_warmup_by_steps_alone_ends_with_them(key, n_epochs):
    """scvi-tools' 400 epochs would go first; 13 steps, of training on as well as anew."""
    model = trained(MixtureTrainingPlan, max_epochs=max(n_epochs, 1), log_every_n_steps=1)
    if n_epochs == 0:
        model.is_trained_, model.history_ = False, None
    steps = {key: {"n_steps_kl_warmup": 13}}
    model.train(6, batch_size=32, log_every_n_steps=1, enable_progress_bar=False, **steps)
    found = model.history["kl_weight"].to_numpy(float).ravel()[-6:]
    assert (np.diff(found[:4]) > 0).all()
    np.testing.assert_allclose(found[-2:], 1.0)


def test_logging_by_steps_can_be_turned_off():
    model = trained(MixtureTrainingPlan, log_every_n_steps=0)
    assert len(model.history["elbo_train"]) == 5


def test_validation_that_not_every_training_has_is_recorded_at_its_epochs(make_model):
    model = make_model()
    validated = {"train_size": 0.8, "check_val_every_n_epoch": 1}
    for n_epochs, split in ((2, {"train_size": 1.0}), (3, validated)) * 2:
        model.train(n_epochs, log_every_n_steps=1, **split, **QUIET)
    for key, epochs in (("elbo_train", range(10)), ("elbo_validation", [2, 3, 4, 7, 8, 9])):
        frame = model.history[key]
        assert list(frame.index) == list(epochs), key
        assert np.isfinite(frame.to_numpy(float)).all()
        assert frame.index.name == "epoch"


def test_validation_of_every_other_epoch_is_recorded_at_its_epochs(make_model):
    model = make_model()
    for n_epochs, every in ((3, 1), (4, 2), (4, 2)):
        model.train(n_epochs, check_val_every_n_epoch=every, **QUIET)
    assert list(model.history["elbo_train"].index) == list(range(11))
    assert list(model.history["elbo_validation"].index) == [0, 1, 2, 4, 6, 8, 10]


def test_saving_checkpoints_keeps_the_history_of_before(make_model, tmp_path):
    model = make_model()
    model.train(2, check_val_every_n_epoch=1, **QUIET)
    saving = SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation")
    options = {"callbacks": [saving], "enable_checkpointing": True, "check_val_every_n_epoch": 1}
    model.train(3, **options, **QUIET)
    for key in ("elbo_train", "elbo_validation"):
        assert list(model.history[key].index) == list(range(5)), key


def test_a_training_after_one_without_a_logger_is_recorded(make_model):
    model = make_model()
    model.train(1, logger=False, **QUIET)
    assert model.history == {}
    model.train(2, log_every_n_steps=1, **QUIET)
    model.train(1, log_every_n_steps=1, **QUIET)
    assert len(model.history["elbo_train"]) == 3
    assert (model.history["kl_weight"].to_numpy(float) == 1).all()


def test_early_stopping_and_plateau_see_the_same_numbers():
    options = {
        "early_stopping": True,
        "early_stopping_monitor": "elbo_validation",
        "early_stopping_min_delta": 1e6,
        "early_stopping_patience": 2,
        "max_epochs": 20,
        "plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1, "lr_threshold": 1e6},
    }
    ours, theirs = trained(MixtureTrainingPlan, **options), trained(TrainingPlan, **options)
    assert len(ours.history["elbo_train"]) == len(theirs.history["elbo_train"]) < 20
    for key in theirs.history:
        np.testing.assert_allclose(
            ours.history[key].to_numpy(float), theirs.history[key].to_numpy(float), rtol=1e-4
        )


def test_training_ends_at_the_same_weights():
    ours, theirs = trained(MixtureTrainingPlan), trained(TrainingPlan)
    for (name, mine), stock in zip(
        ours.module.state_dict().items(), theirs.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, stock, rtol=1e-3, atol=1e-5, msg=name)


def test_adam_is_fused_and_keeps_scvi_s_settings():
    model = trained(MixtureTrainingPlan, max_epochs=1, plan_kwargs={"lr": 3e-3, "eps": 0.02})
    (optimiser,) = model.trainer.optimizers
    assert type(optimiser) is torch.optim.Adam
    assert optimiser.defaults["fused"]
    settings = [optimiser.defaults[key] for key in ("lr", "eps", "weight_decay")]
    assert settings == [3e-3, 0.02, 1e-6]


def test_steps_are_summed_as_they_come(monkeypatch):
    """However many steps are kept, the history is the same, and no more are."""
    most: list[int] = []
    log = MixtureTrainingPlan.compute_and_log_metrics

    def watch(self, *args):
        log(self, *args)
        most.append(len(self._steps))

    monkeypatch.setattr(MixtureTrainingPlan, "compute_and_log_metrics", watch)
    whole = trained(MixtureTrainingPlan, max_epochs=2, batch_size=8)
    assert max(most) == 9  # and the tenth closes the epoch
    monkeypatch.setattr("scmixvi.singlecell._training.plan.STEPS_KEPT", 3)
    most.clear()
    summed = trained(MixtureTrainingPlan, max_epochs=2, batch_size=8)
    assert max(most) == 2
    for key, values in whole.history.items():
        np.testing.assert_allclose(
            summed.history[key].to_numpy(float), values.to_numpy(float), rtol=1e-5, err_msg=key
        )


def test_a_model_that_diverges_stops_before_its_weights_do():
    data = adata()
    MixtureSCVI.setup_anndata(data, batch_key="batch")
    model = MixtureSCVI(data, n_components=2, n_hidden=8, n_latent=3)
    with pytest.raises(ValueError, match="the model diverged. Train a new one with a lower learn"):
        model.train(20, accelerator="cpu", enable_progress_bar=False, plan_kwargs={"lr": 1e6})
    assert all(bool(p.isfinite().all()) for p in model.module.parameters())


def test_an_epoch_whose_loss_is_not_finite_is_refused_where_steps_are_not_asked(monkeypatch):
    monkeypatch.setattr(MixtureTrainingPlan, "training_step", TrainingPlan.training_step)
    with pytest.raises(ValueError, match="in epoch"):
        trained(MixtureTrainingPlan, max_epochs=20, plan_kwargs={"lr": 1e6})


def test_history_has_the_components_diversity_and_weights():
    model = trained(MixtureTrainingPlan, mixture_weights="learned", check_val_every_n_epoch=1)
    history = {key: frame.to_numpy(float)[:, 0] for key, frame in model.history.items()}
    for split in ("train", "validation"):
        assert (history[f"jsd_{split}"] > 0).all()
        assert (history[f"jsd_{split}"] < np.log(2)).all()
        weights = history[f"weight_0_{split}"] + history[f"weight_1_{split}"]
        np.testing.assert_allclose(weights, 1, rtol=1e-5)
    final = model.get_component_weights().mean(0)
    np.testing.assert_allclose(history["weight_0_validation"][-1], final[0], rtol=1e-4)
    assert final[0] != 0.5


def test_logged_diversity_is_the_model_s_own():
    model = trained(MixtureTrainingPlan, check_val_every_n_epoch=1, max_epochs=30)
    assert not any(key.startswith("weight_") for key in model.history)
    own = model.get_posterior_diversity(indices=model.validation_indices, n_samples=2000)
    logged = model.history["jsd_validation"].to_numpy(float)[-1, 0]
    outputs = [one_draw(model) for _ in range(200)]
    assert abs(logged - own.mean()) < 5 * np.std(outputs)
    assert abs(np.mean(outputs) - own.mean()) < 5 * np.std(outputs) / np.sqrt(200)


def one_draw(model):
    """What a validation pass over the held-out cells would log."""
    (batch,) = model._make_data_loader(
        adata=model.adata, indices=model.validation_indices, batch_size=100
    )
    with torch.inference_mode():
        return model.module(batch)[2].extra_metrics["jsd"].item()


def test_one_component_logs_no_diversity():
    model = trained(MixtureTrainingPlan, n_components=1)
    assert not any("jsd" in key for key in model.history)


def test_further_training_of_an_upgraded_model_is_recorded():
    scvi_model = trained(MixtureTrainingPlan, max_epochs=1).to_scvi()
    model = MixtureSCVI.from_scvi_model(scvi_model, n_components=2)
    assert model.is_trained_
    assert model.history is None
    for n_epochs in (2, 4):
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False, train_size=0.8)
        assert len(model.history["elbo_train"]) == len(model.history["jsd_train"]) == n_epochs
    assert model.is_trained_


def test_a_training_that_fails_leaves_the_model_as_it_answers():
    model = trained(MixtureTrainingPlan)
    latents = model.get_latent_representation()
    for wrong in ({"max_epoch": 3}, {"train_size": 2.0}, {"accelerator": "abacus"}):
        with pytest.raises((TypeError, ValueError)):
            model.train(1, **{"latent_key": None, **wrong})
        assert not model.module.training
        np.testing.assert_array_equal(model.get_latent_representation(), latents)
    model.minify_adata()
    with pytest.raises(ValueError, match="does not support minified data") as raised:
        model.train(1)
    assert "Train before minify_adata" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="load the model with the full data to refine them"):
        model.refine_encoders(1)
    assert not model.module.training


class Stop(Callback):
    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise RuntimeError("stopped")


def test_a_training_that_never_began_says_nothing_of_latents(make_model, caplog):
    model = make_model()
    model.train(1, **QUIET)
    caplog.set_level("WARNING", "scmixvi")
    for wrong in ({"accelerator": "foo"}, {"plan_kwargs": {"lr": -1}}, {"foo": 1}):
        with pytest.raises(Exception, match=r"foo|lr|learning"):
            model.train(1, **QUIET | wrong)
        with pytest.raises(Exception, match=r"foo|lr|learning"):
            model.refine_encoders(1, **QUIET | wrong)
        assert model.refinement_history is None
    assert "latents of before" not in caplog.text


def test_latents_of_before_are_not_passed_off_as_those_of_now(make_model, caplog):
    """A second training that ends early has moved the weights; adata has the latents of before."""
    model = make_model()
    model.train(1, **QUIET)
    before = model.adata.obsm["X_mix"].copy()
    caplog.set_level("WARNING", "scmixvi")
    with pytest.raises(RuntimeError, match="stopped"):
        model.train(5, callbacks=[Stop()], **QUIET)
    assert "obsm['X_mix'] holds the latents of before" in caplog.text
    np.testing.assert_array_equal(model.adata.obsm["X_mix"], before)
    assert np.abs(model.get_latent_representation() - before).max() > 1e-3
    caplog.clear()
    with pytest.raises(RuntimeError, match="stopped"):
        make_model().train(5, callbacks=[Stop()], **QUIET)
    assert "latents of before" not in caplog.text


def test_an_upgraded_model_counts_as_trained_after_a_training_that_fails(make_model):
    stock = make_model(SCVI)
    stock.train(1, **QUIET)
    model = MixtureSCVI.from_scvi_model(stock, 2)
    with pytest.raises(RuntimeError, match="stopped"):
        model.train(5, callbacks=[Stop()], **QUIET)
    assert model.is_trained


def test_latents_of_a_collection_lie_in_its_parts():
    """scvi-tools' adapter of a collection has no obsm of its own."""
    parts = [SimpleNamespace(obsm={}, n_obs=2), SimpleNamespace(obsm={}, n_obs=1)]
    collection = SimpleNamespace(obsm=None, adatas=parts)
    assert not has_latents(collection, "X_mix")
    store_latents(collection, "X_mix", np.zeros((3, 2)))
    assert has_latents(collection, "X_mix")
    assert not has_latents(collection, None)
    assert has_latents(SimpleNamespace(obsm={"X_mix": 0}), "X_mix")


def test_callbacks_find_the_kl_weight_at_the_end_of_every_epoch(make_model):
    """Also where an epoch has fewer steps than Lightning has between two logs."""
    found = []

    class Seen(Callback):
        def on_train_epoch_end(self, trainer, plan):
            found.append(float(trainer.callback_metrics["kl_weight"]))

    plan = {"n_epochs_kl_warmup": 4}
    make_model().train(3, plan_kwargs=plan, callbacks=[Seen()], latent_key=None, **QUIET)
    assert found == [0.0, 0.25, 0.5]


def test_what_is_kept_of_a_step_is_a_copy_where_the_next_writes_over_it():
    """A recorded CUDA graph gives its results in the same memory every time."""
    given = LossOutput(
        loss=torch.tensor(3.0),
        reconstruction_loss=torch.tensor([2.0, 4.0]),
        kl_local=torch.tensor([1.0, 1.0]),
        extra_metrics={"jsd": torch.tensor(0.5)},
    )
    kept = _without_graph(given, copied=True)
    for tensor in (given.loss, given.reconstruction_loss_sum, given.extra_metrics["jsd"]):
        tensor.fill_(-1.0)
    assert kept.loss == 3
    assert kept.reconstruction_loss_sum == 6
    assert kept.kl_local_sum == 2
    assert kept.extra_metrics["jsd"] == 0.5
