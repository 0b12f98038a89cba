"""Encoders that learn from resampled cells: the decoder stays, held-out cells gain."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from scvi.model import SCVI

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._training.refinement import ENCODER_PARTS, encoders_alone, resampled

SHORT = {**QUIET, "batch_size": 32}
N_HELD_OUT = 200


def trained(n_components=2, n_epochs=3, n_cells=80, **kwargs):
    """A model of a few cells with batches, and its data."""
    adata = make_adata(n_cells)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    model = MixtureSCVI(adata, n_components=n_components, n_hidden=32, n_latent=3, **kwargs)
    model.train(n_epochs, latent_key=None, **SHORT)
    return model


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"mixture_weights": "learned"},
        {"mixture_weights": "amortized"},
        {"encoder_sharing": "trunk"},
        {"estimator": "s2a", "n_drawn": 1},
        {"encoder_sharing": "trunk", "estimator": "s2s", "n_drawn": 1},
        {"n_importance_samples": 3},
        {"use_observed_lib_size": False},
        {"gene_likelihood": "poisson"},
        {"latent_distribution": "ln"},
    ],
)
def test_the_posterior_alone_is_trained(kwargs):
    model = trained(**kwargs)
    before = weights(model.module)
    model.refine_encoders(2, **SHORT)
    after = weights(model.module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learnable = {name for name, _ in model.module.named_parameters()}
    unused = "l_encoder" if model.module.use_observed_lib_size else "none"
    expected = {n for n in learnable if n.startswith(ENCODER_PARTS) and not n.startswith(unused)}
    assert changed == expected
    assert all(p.requires_grad for p in model.module.parameters())
    assert not model.module.training
    assert "_training_plan_cls" not in vars(model)
    means = model.get_latent_representation()
    sampled = model.module.latent_distribution == "ln"
    np.testing.assert_allclose(model.adata.obsm["X_mix"], means, atol=0.03 if sampled else 0)


def test_held_out_cells_gain():
    """With few cells, much held out, and encoders that have learned these by heart."""
    adata = make_adata(300, n_genes=60)
    MixtureSCVI.setup_anndata(adata)
    torch.manual_seed(0)
    model = MixtureSCVI(adata, n_components=2, n_latent=5, dropout_rate=0.0)
    rng = np.random.default_rng(0).permutation(300)
    split = [np.sort(part) for part in np.split(rng, [300 - N_HELD_OUT, 300])]
    indexing = {"datasplitter_kwargs": {"external_indexing": [*split, np.array([], int)]}}
    model.train(150, latent_key=None, **SHORT, **indexing)

    def bound():
        torch.manual_seed(1)
        found = [model.get_elbo(indices=split[1], batch_size=N_HELD_OUT) for _ in range(20)]
        return float(np.mean([float(f) for f in found]))

    before = bound()
    with encoders_alone(model.module):
        model.train(100, latent_key=None, **SHORT, **indexing)
    longer = bound()
    model.refine_encoders(100, latent_key=None, **SHORT)
    assert bound() > max(before, longer) + 0.1


def test_resampled_counts_are_old_or_new_in_every_share():
    """Draws of a normal likelihood never repeat, so that what was drawn anew is seen."""
    model = trained(gene_likelihood="normal", n_cells=300)
    (batch,) = model._make_data_loader(adata=model.adata, batch_size=300)
    torch.manual_seed(0)
    found = resampled(model.module, batch)
    share = (found["X"] != batch["X"]).float().mean(1)
    assert kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert share.std() > 0.2
    assert all(torch.equal(found[key], batch[key]) for key in batch if key != "X")
    drawn, old = found["X"].mean(0), batch["X"].mean(0)
    assert torch.corrcoef(torch.stack([drawn, old]))[0, 1] > 0.9


def test_a_cell_is_never_left_without_counts(monkeypatch):
    model = trained()
    (batch,) = model._make_data_loader(adata=model.adata, batch_size=80)
    decode = model.module.generative

    def nothing(**inputs):
        px = decode(**inputs)["px"]
        px.sample = lambda: torch.zeros_like(px.mu)
        return {"px": px}

    monkeypatch.setattr(model.module, "generative", nothing)
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.ones(*size, device=device))
    assert torch.equal(resampled(model.module, batch)["X"], batch["X"])


def test_sparse_minibatches_are_refined_too():
    model = trained()
    before = weights(model.module)
    model.refine_encoders(1, load_sparse_tensor=True, **SHORT)
    name = "z_encoder.mean_encoder.weight"
    assert not torch.equal(before[name], model.module.state_dict()[name])


def test_held_out_cells_stay_held_out():
    model = trained()
    model.train(1, train_size=0.7, validation_size=0.2, latent_key=None, **SHORT)
    assert len(model.test_indices) == 8
    before = [model.train_indices, model.validation_indices, model.test_indices]
    model.refine_encoders(1, **SHORT)
    after = [model.train_indices, model.validation_indices, model.test_indices]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    model.refine_encoders(1, datasplitter_kwargs={"drop_last": True}, **SHORT)
    assert np.array_equal(model.train_indices, before[0])
    model.refine_encoders(1, train_size=0.5, validation_size=0.5, **SHORT)
    assert len(model.train_indices) == 40


def test_its_history_is_its_own_and_is_saved(tmp_path):
    model = trained(n_epochs=4)
    assert model.refinement_history is None
    model.refine_encoders(2, **SHORT)
    model.refine_encoders(1, **SHORT)
    assert len(model.history["elbo_train"]) == 4
    assert len(model.refinement_history["elbo_train"]) == 3
    model.save(tmp_path / "model")
    loaded = MixtureSCVI.load(tmp_path / "model", model.adata)
    assert len(loaded.refinement_history["elbo_train"]) == 3
    loaded.refine_encoders(1, **SHORT)
    assert np.array_equal(loaded.train_indices, model.train_indices)


def test_by_default_a_quarter_of_the_epochs(monkeypatch):
    model = trained()
    asked = []
    monkeypatch.setattr(MixtureSCVI, "train", lambda _, **kwargs: asked.append(kwargs))
    model.refine_encoders()
    assert asked[0]["max_epochs"] == 100


def test_an_scvi_is_refined_and_handed_back():
    adata = make_adata()
    SCVI.setup_anndata(adata)
    scvi_model = SCVI(adata, n_hidden=32, n_latent=3)
    scvi_model.train(2, **SHORT)
    model = MixtureSCVI.from_scvi_model(scvi_model, n_components=1)
    model.refine_encoders(1, **SHORT)
    back = model.to_scvi().module.state_dict()
    for name, value in scvi_model.module.state_dict().items():
        if not name.startswith(ENCODER_PARTS):
            assert torch.equal(back[name], value), name
    name = "z_encoder.mean_encoder.weight"
    assert not torch.equal(back[name], scvi_model.module.state_dict()[name])


def test_what_cannot_be_refined_says_so():
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="call train"):
        MixtureSCVI(adata).refine_encoders()
    model = trained()
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    before = weights(model.module)
    with pytest.raises(ValueError, match="encoder weights"):
        model.refine_encoders(1, **SHORT)
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    assert len(model.history["elbo_train"]) == 3
    model = trained()
    model.minify_adata()
    with pytest.raises(ValueError, match="minified"):
        model.refine_encoders(1)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_a_query_model_refines_what_it_may_train(encode_covariates):
    """Encoders of a query change where they see its batch, or not at all: then it is said."""
    options = {"use_batch_norm": "none", "use_layer_norm": "both"}
    reference = trained(encode_covariates=encode_covariates, **options)
    query = make_adata(seed=3)
    query.obs["batch"] = "new"
    model = MixtureSCVI.load_query_data(query, reference)
    exact = {**SHORT, "plan_kwargs": {"weight_decay": 0.0}}
    model.train(1, latent_key=None, **exact)
    before = weights(model.module)
    if not encode_covariates:
        with pytest.raises(ValueError, match="unfrozen=True"):
            model.refine_encoders(1, latent_key=None, **exact)
        return
    model.refine_encoders(1, latent_key=None, **exact)
    after = model.module.state_dict()
    changed = {name: before[name] != after[name] for name in before}
    assert {name for name, where in changed.items() if where.any()} == {
        f"z_encoder{s}.encoder.fc_layers.Layer 0.0.weight" for s in ("", "_1")
    }
    assert changed["z_encoder.encoder.fc_layers.Layer 0.0.weight"].any(0).sum() == 1


@pytest.mark.parametrize("estimator", ["s2a", "s2s"])
def test_a_step_of_refinement_costs_what_one_of_training_does(estimator, monkeypatch):
    """It decodes the components that it draws, and "s2s" encodes by no others."""
    model = trained(5, encoder_sharing="trunk", estimator=estimator, n_drawn=2)
    module, decoded, encoded = model.module, [], []
    encode, generative = module._encode, module.generative

    def counted_encode(x, covariates, drawn):
        encoded.append(None if drawn is None else len(drawn))
        return encode(x, covariates, drawn)

    def counted_generative(z, *args, **kwargs):
        decoded.append(len(z) if z.dim() == 3 else 1)
        return generative(z, *args, **kwargs)

    monkeypatch.setattr(module, "_encode", counted_encode)
    monkeypatch.setattr(module, "generative", counted_generative)
    model.refine_encoders(1, latent_key=None, check_val_every_n_epoch=None, **SHORT)
    # one draw to resample the cells, then the components of the step
    steps = len(decoded) // 2
    assert decoded == [1, 2] * steps
    assert encoded == [2 if estimator == "s2s" else None] * 2 * steps
    assert not module.training


def test_a_model_without_counts_is_refused():
    model = trained(gene_likelihood="normal")
    before = weights(model.module)
    with pytest.raises(ValueError, match="gene_likelihood='normal' has none"):
        model.refine_encoders(1, **SHORT)
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
