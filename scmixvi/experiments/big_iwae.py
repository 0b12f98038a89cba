"""Big IWAE against mixture (Table 7, appendix D of the paper), MLP VAE on MNIST.

mixture
    S = 1, 2, 3 encoders of two hidden layers of 300, without gates, L = 1;
iwae_layers
    one encoder with N layers of 300 between its hidden layers, trained with L = S;
iwae_units
    one encoder with two hidden layers of n, trained with L = S.

N and n are the smallest with which the one encoder has at least the weights of the S. All decoders
are gated, as the paper's totals show. At S = 1 the three are one model. While the KL weight rises,
every model is trained with L = 1, for a KL weight inside the logarithm bounds nothing.

The test log-likelihood is Eq. 17 for the mixture, and Eq. 18, the average of S estimates with L
samples each, for the IWAE.

    python -m scmixvi.experiments.big_iwae --seed 0 --epochs 100
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scmixvi.experiments import _common
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import (
    Deadline,
    Models,
    chosen_device,
    parser,
    scheme_of,
    until_deadline,
)
from scmixvi.image import ImageVAE
from scmixvi.image.baselines import matching_layers, matching_units
from scmixvi.image.lightning import VAETraining, recipe_training

RESULT = Path(__file__).parent / "results" / "big_iwae.json"
MODELS = ("mixture", "iwae_layers", "iwae_units")
COMPONENTS = (1, 2, 3)
SMOKE_SIZES = {"n_latent": 4, "decoder_hidden": (16,)}


def sizes(name: str, n: int, n_units: int = 300) -> dict[str, Any]:
    """Arguments of the recipe `mlp` for a model of Table 7.

    Parameters
    ----------
    name
        One of `MODELS`.
    n
        S of the mixture; of the mixture that an IWAE is compared with.
    n_units
        Units of the mixture's hidden layers.
    """
    hidden = {
        "mixture": (n_units,) * 2,
        "iwae_layers": (n_units,) * (1 + matching_layers(n, n_units)),
        "iwae_units": (matching_units(n, n_units),) * 2,
    }[name]
    return {"encoder_hidden": hidden, "encoder_gated": False}


def parameter_counts(vae: ImageVAE) -> dict[str, int]:
    """Parameters as Table 7 counts them: encoders without biases, the decoder with them."""
    encoder = sum(p.numel() for key, p in vae.posterior.named_parameters() if "weight" in key)
    decoder = sum(p.numel() for p in vae.decoder.parameters())
    return {
        "n_encoder_weights": encoder,
        "n_parameters_of_table_7": encoder + decoder,
        "n_parameters": sum(p.numel() for p in vae.parameters()),
    }


def figures(
    models: Models, name: str, n: int, n_units: int, others: dict[str, Any]
) -> dict[str, Any]:
    """Train and test one model; `others` are further sizes of the recipe."""
    n_samples = 1 if name == "mixture" else n
    chosen = sizes(name, n, n_units)

    def make() -> VAETraining:
        return recipe_training(
            "mlp",
            n if name == "mixture" else 1,
            chosen | others,
            n_importance_samples=n_samples,
            warmup_epochs=models.scheme.warmup_epochs,
            learning_rate=models.scheme.learning_rate,
        )

    vae, record = models.trained(f"{name}_S{n}", make)
    return {
        "encoder_hidden": list(chosen["encoder_hidden"]),
        "n_importance_samples": n_samples,
        **parameter_counts(vae),
        **_image_tests.nll(models, f"{name}_S{n}", vae, n_repeats=n_samples),
        "trainings": [record],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test what is not yet in the JSON."""
    options = parser(__doc__, RESULT).parse_args(argv)
    n_units, others = (16, SMOKE_SIZES) if options.smoke else (300, {})
    with until_deadline():
        models = Models("mnist", options, scheme_of(options), Deadline(options.minutes))
        jobs = {
            f"mnist/{name}/S={s}": partial(figures, models, name, s, n_units, others)
            for s in COMPONENTS
            for name in MODELS
            if s > 1 or name == "mixture"
        }
        _common.run_missing(options, jobs, chosen_device(), models.settings)


if __name__ == "__main__":
    main()
