"""What an image VAE makes of images that it has encoded."""

import tiny_images
import torch


def test_reconstructions_average_the_decoder_under_the_posterior():
    """Over many of them, and over all components by their weights; never under the prior."""
    model = tiny_images.combination(2, None, "normal", "mlp", 3).eval()
    x = tiny_images.all_images((1, 3, 2))[[5, 42]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        zs, _ = model.posterior(x).sample_stratified(2000)
        expected = model.decoder(*zs).mean.mean((0, 1))
        found = model.reconstruct(x.repeat(4000, 1, 1, 1)).unflatten(0, (4000, 2))
        from_the_prior = model.decoder(*model.prior().sample(4000)).mean.mean(0)
    error = found.std(0) / 4000**0.5
    assert ((found.mean(0) - expected).abs() < 6 * error).all()
    assert ((expected - from_the_prior).abs() > 12 * error).any((1, 2, 3)).all()
