"""Image recipes on a GPU: the same bound as on the CPU, training, and files that move back."""

import copy

import lightning as L
import pytest
import torch
from tiny_images import TINY_RECIPES

from scmixvi.core import miselbo
from scmixvi.image.batches import ImageBatches
from scmixvi.image.callbacks import SafeCheckpoints
from scmixvi.image.checkpoints import load_vae
from scmixvi.image.lightning import recipe_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def images(vae, n=6):
    return torch.rand(n, *vae.image_size).round()


def bound_at(vae, x, zs):
    """MISELBO at given latents, `[B]`."""
    log_lik, log_prior = vae.decoder(*zs).log_prob(x), vae.prior().log_prob(zs)
    return miselbo(log_lik, log_prior, vae.posterior(x).log_prob_all(zs))


@pytest.mark.parametrize("recipe", TINY_RECIPES)
def test_the_bound_is_that_of_the_cpu(recipe):
    vae = recipe_training(recipe, 3, TINY_RECIPES[recipe]).vae.eval()
    x = images(vae)
    with torch.no_grad():
        zs, _ = vae.posterior(x).sample_stratified(2)
        expected = bound_at(vae, x, zs)
        found = bound_at(copy.deepcopy(vae).cuda(), x.cuda(), [z.cuda() for z in zs])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("recipe", TINY_RECIPES)
def test_the_model_is_one_graph(recipe):
    torch.compiler.reset()
    vae = recipe_training(recipe, 2, TINY_RECIPES[recipe]).vae.cuda()
    vae.compile(backend="eager", fullgraph=True)
    assert all(term.isfinite().all() for term in vae(images(vae).cuda())[:3])


def test_a_training_step_does_not_wait_for_the_pixels():
    vae = recipe_training("mlp", 2, TINY_RECIPES["mlp"]).vae.cuda().train()
    x = images(vae).cuda()
    vae(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        (-miselbo(*vae(x)).mean()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match="outside the support"):
        vae.nll(0.5 * x + 0.25)


@pytest.mark.parametrize("recipe", TINY_RECIPES)
def test_trains_on_cuda_and_loads_on_the_cpu(recipe, tmp_path):
    training = recipe_training(recipe, 2, TINY_RECIPES[recipe], warmup_epochs=0, learning_rate=5e-3)
    pixels = (255 * images(training.vae, 64)).byte()
    trainer = L.Trainer(
        max_epochs=5,
        accelerator="gpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        plugins=[SafeCheckpoints()],
    )
    loader = ImageBatches(pixels.cuda(), 16, shuffle=True, binarise=False)
    with torch.no_grad():
        before = training.cuda().bound(pixels.cuda() / 255).mean()
    trainer.fit(training, loader)
    after = training.cuda().bound(pixels.cuda() / 255).mean()
    assert after > before
    trainer.save_checkpoint(tmp_path / "gpu.ckpt")
    loaded = load_vae(tmp_path / "gpu.ckpt")
    assert next(loaded.parameters()).device.type == "cpu"
    for name, weight in training.vae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", TINY_RECIPES)
def test_posteriors_are_refined_there(recipe):
    """As on the CPU: from one model, both devices climb to the same estimate within the noise."""
    vae = recipe_training(recipe, 2, TINY_RECIPES[recipe]).vae
    x, found = images(vae), []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(vae).to(device)
        nll = model.nll(x.to(device), 50, pooled=True, n_refinement_steps=30)
        assert nll.device.type == device
        found.append(nll.cpu())
    torch.testing.assert_close(*found, rtol=1e-2, atol=1.0)
