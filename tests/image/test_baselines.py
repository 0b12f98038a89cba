"""The ensemble shares one target and learns only its posteriors; the big IWAE matches weights."""

import pytest
import torch

from laws import assert_draw_law, assert_permutation_invariant
from scmixvi.core import component_elbos, log_mixture, miselbo
from scmixvi.image import recipes
from scmixvi.image.baselines import (
    EnsemblePosterior,
    encoder_weights,
    ensemble,
    ensemble_member,
    matching_layers,
    matching_units,
)
from scmixvi.image.lightning import VAETraining

SIZES = {"image_size": (1, 4, 4), "n_latent": 3}
MLP = SIZES | {"encoder_hidden": (8,), "decoder_hidden": (8,)}
CONV = SIZES | {"channels": (2,) * 5, "n_hidden": 8, "n_features": 4, "n_layers": 2}
MAKERS = {
    "mlp": lambda: recipes.mlp(**MLP),
    "hierarchical": lambda: recipes.hierarchical(**CONV),
    "vamp": lambda: recipes.vamp(n_pseudo_inputs=3, **CONV),
}


def joined(name, n_members):
    first = MAKERS[name]().eval()
    members = [ensemble_member(first, MAKERS[name]().posterior) for _ in range(n_members - 1)]
    return first, ensemble([first, *members]).eval()


def images(n=5):
    return (torch.rand(n, 1, 4, 4) > 0.5).float()


@pytest.mark.parametrize("name", MAKERS)
def test_an_ensemble_is_the_uniform_mixture_of_its_members(name):
    first, whole = joined(name, 3)
    x = images()
    posterior = whole.posterior(x)
    assert_draw_law(posterior, 2, tolerance=1e-4)
    zs, log_q_all = posterior.sample_stratified(2)
    apart = [member(x).log_prob_all(zs) for member in whole.posterior.posteriors]
    torch.testing.assert_close(log_q_all, torch.cat(apart, dim=2), rtol=1e-4, atol=1e-4)
    terms = whole(x, 2)
    assert_permutation_invariant(*terms[:3])
    assert whole.n_components == 3
    assert whole.encode(x, "params").shape == (5, 2 * 3 * 3)


def test_training_a_member_leaves_batch_statistics_of_the_target_alone():
    first = recipes.vanilla(**CONV)
    member = ensemble_member(first, recipes.vanilla(**CONV).posterior)
    kept = {name: value.clone() for name, value in first.decoder.state_dict().items()}
    first.train()
    member.train()
    (-miselbo(*member(images()))).mean().backward()
    torch.testing.assert_close(first.decoder.state_dict(), kept, rtol=0, atol=0)
    assert member.posterior.training


def test_only_the_frozen_part_of_a_decoder_rests():
    model = recipes.vanilla(**CONV)
    model.decoder.network.layers.requires_grad_(False)
    model.train()
    modes = {m.training for m in model.decoder.network.layers.modules()}
    assert (modes, model.decoder.network.head.training) == ({False}, True)
    assert not model.eval().training


def test_images_of_an_ensemble_may_have_their_size_as_a_list():
    sizes = MLP | {"image_size": [1, 4, 4]}
    first = recipes.mlp(**sizes)
    whole = ensemble([first, ensemble_member(first, recipes.mlp(**sizes).posterior)])
    assert whole.nll(images(), 3).shape == (5,)


def test_an_ensemble_of_one_model_repeated_is_that_model():
    first = MAKERS["mlp"]()
    twin = ensemble_member(first, first.posterior)
    terms = ensemble([first, twin])(images(), 1)
    torch.testing.assert_close(
        miselbo(*terms), component_elbos(*terms[:3]).mean(0), rtol=1e-5, atol=1e-5
    )
    own = terms.log_q_all.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    torch.testing.assert_close(log_mixture(terms.log_q_all), own)


@pytest.mark.parametrize("name", MAKERS)
def test_training_a_member_moves_its_posterior_alone(name):
    first = MAKERS[name]()
    target = {k: v.clone() for k, v in first.state_dict().items()}
    member = ensemble_member(first, MAKERS[name]().posterior)
    before = [p.clone() for p in member.posterior.parameters()]
    training = VAETraining(member, warmup_epochs=0).train()
    optimizer = training.configure_optimizers()
    for _ in range(2):
        (-training.bound(images())).mean().backward()
        optimizer.step()
    torch.testing.assert_close(dict(first.state_dict()), target, rtol=0, atol=0)
    after = member.posterior.parameters()
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved)


def test_what_a_member_shares_is_put_into_evaluation_mode():
    first = MAKERS["mlp"]()
    member = ensemble_member(first, MAKERS["mlp"]().posterior)
    assert not member.decoder.training
    assert not member.prior.training


def iaf():
    return recipes.iaf(n_flow_hidden=4, **CONV)


def test_members_share_the_trained_flow_which_stays_as_it_is():
    first, posterior = iaf(), iaf().posterior
    posterior.flows = first.posterior.flows
    member = ensemble_member(first, posterior)
    before = {name: p.clone() for name, p in posterior.named_parameters()}
    training = VAETraining(member, warmup_epochs=0).train()
    optimizer = training.configure_optimizers()
    (-training.bound(images())).mean().backward()
    optimizer.step()
    moved = {name for name, p in posterior.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("flows")}
    whole = ensemble([first, member]).eval()
    x = images()
    zs, log_q_all = whole.posterior(x).sample_stratified(2)
    apart = [part(x).log_prob_all(zs) for part in (first.posterior, posterior)]
    torch.testing.assert_close(log_q_all, torch.cat(apart, 2), rtol=1e-3, atol=1e-3)


def test_a_member_with_a_flow_of_its_own_is_refused_before_anything_is_frozen():
    first = iaf()
    with pytest.raises(ValueError, match=r"posterior\.flows = trained\.posterior\.flows"):
        ensemble_member(first, iaf().posterior)
    assert all(p.requires_grad for p in first.parameters())


def test_an_ensemble_takes_the_memory_of_all_its_members():
    first, whole = joined("hierarchical", 3)
    assert whole.posterior.floats_per_row == 3 * first.posterior.floats_per_row


def test_members_with_another_target_are_refused():
    with pytest.raises(ValueError, match="must share one prior and one decoder"):
        ensemble([MAKERS["mlp"](), MAKERS["mlp"]()])
    with pytest.raises(ValueError, match="at least one member"):
        ensemble([])


def test_posteriors_that_do_not_fit_together_are_refused():
    first = MAKERS["mlp"]()
    wider = recipes.mlp(**MLP | {"n_latent": 4})
    weighted = recipes.mlp(2, weights=[0.3, 0.7], **MLP)
    for others in ([first, wider], [weighted, weighted]):
        with pytest.raises(ValueError, match="must have the same n_components"):
            EnsemblePosterior([other.posterior for other in others])
    flows = [iaf(), iaf()]
    with pytest.raises(ValueError, match="must share one flow"):
        EnsemblePosterior([vae.posterior for vae in flows])(images())


def test_an_ensemble_draws_from_some_components_but_scores_under_all():
    _, whole = joined("mlp", 3)
    assert whole(images(), 1, "s2a", 2).log_q_all.shape == (1, 2, 3, 5)
    with pytest.raises(ValueError, match="use the estimator 's2a'"):
        whole(images(), 1, "s2s", 2)


# Table 7: S, then what the paper prints for the mixture and for IWAEs with more units or layers.
TABLE_7 = [(1, 349_200, 300, 349_200, 1, 349_200), (2, 698_400, 509, 698_857, 5, 709_200),
           (3, 1_047_600, 679, 1_047_697, 9, 1_069_200)]  # fmt: skip


@pytest.mark.parametrize(("s", "mixture", "units", "wide", "layers", "deep"), TABLE_7)
def test_the_matched_sizes_are_those_of_table_7(s, mixture, units, wide, layers, deep):
    assert s * encoder_weights(300) == mixture
    assert matching_units(s) == units
    assert encoder_weights(units) == wide
    assert matching_layers(s) == layers
    assert encoder_weights(300, layers) == deep
