r"""Decoder or posterior, of images: where the mixture's lower NLL comes from (not in the paper).

An importance-sampled NLL falls with a better model, and with better encoders, whose draws it is
made of. What :mod:`scmixvi.experiments.decoders` does for cells is done here for the MLP: after
gradient steps every image has a posterior of its own (`ImageVAE.nll(n_refinement_steps=...)`), so
that the NLL depends less on the encoders.

The mixtures are those of :mod:`scmixvi.experiments.latents`, S = 1 to 5. As a control stands the
ensemble of four, whose decoder is that of S = 1: all that it gains is its posterior's, and what the
mixture of four gains beyond it the decoder's.
Checkpoints are those of `latents`, so what was trained there is not trained again.

    python -m scmixvi.experiments.decoders_images --seed 0 --epochs 50 --learning-rate 1e-3 \
        --samples 500
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scmixvi.experiments import latents
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import Models
from scmixvi.image import ImageVAE

RESULT = Path(__file__).parent / "results" / "decoders_images.json"
ENSEMBLE_OF = 4


def figures(
    models: Models, name: str, trained: Callable[[], tuple[ImageVAE, list]]
) -> dict[str, Any]:
    """Train or load one model, and test it by its own draws and by refined posteriors."""
    vae, trainings = trained()
    return {
        **_image_tests.nll(models, name, vae),
        **_image_tests.refined_nll(models, name, vae),
        "trainings": trainings,
    }


def jobs(models: Models, dataset: str, sizes: dict[str, Any], smoke: bool) -> latents.Jobs:
    """Name to job for every mixture of one data set, and the ensemble."""
    builds = [(latents.mixture, "mixture", s) for s in latents.COMPONENTS]
    builds.append((latents.separate, "ensemble", 2 if smoke else ENSEMBLE_OF))
    return {
        f"{dataset}/{kind}/S={s}": partial(
            figures, models, f"{kind}_S{s}", partial(build, models, s, sizes)
        )
        for build, kind, s in builds
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Test what is not yet in the JSON."""
    latents.run_on_mixtures(__doc__, RESULT, argv, jobs, lambda models: models.settings)


if __name__ == "__main__":
    main()
