"""The loss of a minibatch, worked out from scvi's distributions, and what is logged beside it."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scmixvi.core import miselbo
from scmixvi.singlecell._parts.inference import SCORES_KEY, UNTRANSFORMED_KEY

OPTIONS = {
    "plain": {},
    "amortized weights": {"mixture_weights": "amortized"},
    "unobserved library": {"use_observed_lib_size": False, "batch_key": "batch"},
}


@pytest.mark.parametrize("weights", ["uniform", "learned", "amortized", (0.2, 0.3, 0.5)])
@pytest.mark.parametrize("n_samples", [1, 2])
def test_loss_is_miselbo_worked_out_from_scvis_distributions(
    make_model, first_batch, weights, n_samples
):
    model = make_model(n_components=3, n_importance_samples=n_samples, mixture_weights=weights)
    module, batch = model.module.eval(), first_batch(model)
    inference, generative, output = module(batch)
    qz, u = inference["qz"], inference[UNTRANSFORMED_KEY]
    log_lik = generative["px"].log_prob(batch["X"]).sum(-1)
    log_prior = Normal(0.0, 1.0).log_prob(u).sum(-1)
    log_ratio = log_lik + log_prior - qz.log_prob(u).squeeze(-1)
    strata = log_ratio.reshape(n_samples, 3, 60).logsumexp(0) - math.log(n_samples)
    expected = (qz.c_log_weights.exp().T * strata).sum(0)
    found = -sum(output.kl_local.values()) - output.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(output.loss, -expected.mean())
    by_component = log_lik.reshape(n_samples, 3, 60).mean(0)
    reconstruction = (qz.c_log_weights.exp().T * by_component).sum(0)
    torch.testing.assert_close(-output.reconstruction_loss["reconstruction_loss"], reconstruction)


def test_at_kl_weight_1_several_samples_weigh_the_library_inside_the_logarithm(
    make_model, first_batch
):
    model = make_model(n_components=3, n_importance_samples=2, **OPTIONS["unobserved library"])
    module, batch = model.module.eval(), first_batch(model)
    inference, generative, output = module(batch)
    log_lik = generative["px"].log_prob(batch["X"]).sum(-1).reshape(2, 3, 60)
    log_prior = Normal(0.0, 1.0).log_prob(inference[UNTRANSFORMED_KEY]).sum(-1)
    library, ql, pl = inference["library"], inference["ql"], generative["pl"]
    log_prior = log_prior + (pl.log_prob(library) - ql.log_prob(library)).sum(-1)
    bound = miselbo(log_lik, log_prior.reshape(2, 3, 60), inference[SCORES_KEY])
    torch.testing.assert_close(output.loss, -bound.mean())
    found = sum(output.kl_local.values()) + output.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(found, -bound)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("n_samples", [1, 2])
def test_kl_weight_below_1_weighs_single_sample_terms_of_z_alone(
    make_model, first_batch, n_samples, option
):
    model = make_model(n_components=3, n_importance_samples=n_samples, **OPTIONS[option])
    module, batch = model.module.eval(), first_batch(model)
    if option == "amortized weights":
        torch.nn.init.normal_(module.weight_encoder.weight)
    inference, generative, output = module(batch, loss_kwargs={"kl_weight": 0.3})
    log_lik = generative["px"].log_prob(batch["X"]).sum(-1).reshape(n_samples, 3, 60)
    log_prior = Normal(0.0, 1.0).log_prob(inference[UNTRANSFORMED_KEY]).sum(-1)
    log_prior = log_prior.reshape(n_samples, 3, 60)
    scores, log_weights = inference[SCORES_KEY], inference["qz"].c_log_weights.T
    single = [
        miselbo(torch.zeros(1, 3, 60), log_prior[k : k + 1], scores[k : k + 1], log_weights)
        for k in range(n_samples)
    ]
    kl_z = -torch.stack(single).mean(0)
    torch.testing.assert_close(output.kl_local["kl_divergence_z"], kl_z)
    kl_l = torch.zeros(60)
    if option == "unobserved library":
        kl_l = kl_divergence(inference["ql"], generative["pl"]).sum(1)
    torch.testing.assert_close(output.kl_local["kl_divergence_l"], kl_l)
    reconstruction = -(log_weights.exp() * log_lik.mean(0)).sum(0)
    torch.testing.assert_close(output.loss, (reconstruction + 0.3 * kl_z + kl_l).mean())


@pytest.mark.parametrize("weights", ["uniform", (0.2, 0.3, 0.5)])
def test_the_divergence_that_is_logged_is_the_weighted_one(make_model, first_batch, weights):
    model = make_model(n_components=3, mixture_weights=weights)
    inference, _, output = model.module.eval()(first_batch(model))
    qz, u = inference["qz"], inference[UNTRANSFORMED_KEY]
    own = Normal(qz.c_loc.movedim(1, 0), qz.c_scale.movedim(1, 0)).log_prob(u).sum(-1)
    above = own - qz.log_prob(u).squeeze(-1)
    expected = (qz.c_log_weights.exp().T * above).sum(0).mean()
    torch.testing.assert_close(output.extra_metrics["jsd"], expected)


def test_the_weights_that_are_logged_are_their_means_over_cells(make_model, first_batch):
    model = make_model(n_components=3, mixture_weights="amortized")
    module, batch = model.module.eval(), first_batch(model)
    torch.nn.init.normal_(module.weight_encoder.weight)
    inference, _, output = module(batch)
    expected = inference["qz"].c_log_weights.exp().mean(0)
    found = torch.stack([output.extra_metrics[f"weight_{s}"] for s in range(3)])
    torch.testing.assert_close(found, expected)
