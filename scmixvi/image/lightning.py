"""Training of image VAEs with Lightning: one module, whatever the model and the bound."""

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from scmixvi._messages import check_whole
from scmixvi.core import check_estimator, linear_warmup, miselbo
from scmixvi.core.modes import rest_frozen
from scmixvi.core.optimizers import spare_driver
from scmixvi.image._checks import check_precision
from scmixvi.image._evaluation import bits_per_dim
from scmixvi.image._settings import check_training, name_of, run_settings
from scmixvi.image.checkpoints import (
    begun_epochs,
    build_vae,
    check_fit,
    check_origin,
    check_settings,
    plain,
)
from scmixvi.image.vae import ImageVAE

MONITORED = "val_bound"
"""Name of the validation bound at full KL weight, in nats an image; higher is better."""

TRAINER_DEFAULTS = {"devices": 1, "num_sanity_val_steps": 0, "enable_model_summary": False}
"""Settings of Lightning's Trainer, of the command line and the experiments."""


class VAETraining(L.LightningModule):
    r"""Maximise a bound on log p(x) by Adam, with a KL weight that rises over the first epochs.

    While the weight beta is below 1 the bound is taken with L = 1 (Eq. 15), because a KL weight
    inside the logarithm over L > 1 samples bounds nothing; from then on with L samples. Validation
    always uses the full KL weight and L samples, so its values can be compared across epochs.

    A gradient that is not finite stops the training: on a CPU before the weights are touched, on
    other devices, which would have to wait for the answer in every step, at the end of the epoch,
    before its checkpoint is written. It is not skipped: a run that silently drops steps is no
    longer the run that its configuration describes, and the last checkpoint is there to go back
    to. (float16 with its gradient scaler, which expects such gradients and skips them itself, is
    the exception.)

    Parts whose parameters are all frozen (`requires_grad_(False)`) stay in evaluation mode, as in
    :meth:`scmixvi.image.ImageVAE.train`.

    Parameters
    ----------
    vae
        The model.
    objective
        Called with the terms of the bound, returns `[B]` in nats: `scmixvi.core.miselbo`,
        `scmixvi.core.siwelbo`, or your own. It must take `beta` if there is a warm-up.
    n_importance_samples
        L, samples a component.
    warmup_epochs
        Epochs over which the KL weight rises from 0 to 1; 0 for none.
    learning_rate
        Of Adam.
    n_test_samples
        L of the test log-likelihood (Eq. 17).
    n_test_refinement_steps
        Gradient steps of every test image's own posterior before that, see
        :meth:`~scmixvi.image.ImageVAE.nll`.
    origin
        How the model was made: `recipe`, `n_components` and `sizes`, kept in checkpoints for
        :func:`scmixvi.image.checkpoints.load_vae`. None for a model put together by hand.
    estimator, n_drawn
        Of the training loss, as :class:`~scmixvi.image.ImageVAE` takes them: "all", or draw from
        `n_drawn` components ("s2a", "s2s"). Validation draws from all.
    path_gradient
        Whether encoders get their gradient through the draws alone, see
        :class:`~scmixvi.image.ImageVAE`. None is with "s2a" alone, where it is right: for
        `miselbo` with L = 1.

    Raises
    ------
    ValueError
        If a number is out of range or not whole, the estimator is unknown, the objective does not
        take the terms of a bound, or does not say what it takes (what is built in or scripted), or
        takes no `beta` though there is a warm-up, path gradients are asked
        for with another objective than `miselbo` or with L > 1, or `origin` holds more than plain
        values.
    """

    def __init__(
        self,
        vae: ImageVAE,
        objective: Callable[..., Tensor] = miselbo,
        n_importance_samples: int = 1,
        warmup_epochs: int = 100,
        learning_rate: float = 5e-4,
        n_test_samples: int = 5000,
        origin: dict[str, Any] | None = None,
        estimator: Literal["all", "s2a", "s2s"] = "all",
        n_drawn: int = 2,
        path_gradient: bool | None = None,
        n_test_refinement_steps: int = 0,
    ) -> None:
        super().__init__()
        check_whole("n_test_refinement_steps", n_test_refinement_steps, least=0)
        check_training(
            objective,
            warmup_epochs,
            learning_rate,
            n_importance_samples=n_importance_samples,
            n_test_samples=n_test_samples,
        )
        check_estimator(estimator, n_drawn, vae.n_components)
        is_right = objective is miselbo and n_importance_samples == 1
        if path_gradient and not is_right:
            raise ValueError(
                "path gradients are right for the objective miselbo with n_importance_samples = 1 "
                "alone: pass those, or path_gradient=False."
            )
        chosen = estimator == "s2a" and is_right if path_gradient is None else path_gradient
        self.path_gradient = chosen
        self.estimator, self.n_drawn = estimator, n_drawn
        self.vae, self.objective = vae, objective
        self.n_importance_samples, self.n_test_samples = n_importance_samples, n_test_samples
        self.n_test_refinement_steps = n_test_refinement_steps
        self.warmup_epochs, self.learning_rate = warmup_epochs, learning_rate
        self.origin = plain(origin)
        self.compile_mode: str | None = None
        self.test_nll = self.test_nll_pooled = torch.empty(0)
        self._finite: Tensor | None = None
        self._to_restore: dict[str, Tensor] | None = None
        self._gradients: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the training goes by, as plain values: kept in checkpoints and reports.

        Where a trainer has taken it up, with `run_settings`.
        """
        some = self.estimator != "all"
        allowed = getattr(self.vae.posterior, "allows_path_gradients", False)
        alone = self.estimator == "s2s" and self.n_drawn < self.vae.n_components
        run = {} if self._trainer is None else run_settings(self._trainer)
        return plain(
            {
                "objective": name_of(self.objective),
                "n_importance_samples": self.n_importance_samples,
                "estimator": self.estimator,
                "n_drawn": self.n_drawn if some else None,
                "path_gradient": bool(self.path_gradient and allowed and not alone),
                "warmup_epochs": self.warmup_epochs,
                "learning_rate": self.learning_rate,
                "compile": self.compile_mode,
            }
            | run
        )

    @property
    def trained(self) -> dict[str, Any]:
        """How the weights came about: origin, settings, `epochs`, `steps`; a checkpoint's, if any.

        What a checkpoint does not say is left out.
        """
        if self._loaded is not None:
            return self._loaded
        progress = {"epochs": self.trainer.current_epoch, "steps": self.trainer.global_step}
        return (self.origin or {}) | self.settings | progress

    def bound(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """Return the bound of images `[B, C, H, W]`, `[B]` in nats; with L = 1 if beta < 1.

        In training mode by the estimator, otherwise by all components.
        """
        n_samples = self.n_importance_samples if beta == 1 else 1
        some: tuple[Any, ...] = ()
        if self.training and (self.path_gradient or self.estimator != "all"):
            some = self.estimator, self.n_drawn, self.path_gradient
        terms = self.vae(x, n_samples, *some)
        return self.objective(*terms) if beta == 1 else self.objective(*terms, beta=beta)

    def setup(self, stage: str) -> None:
        """Raise ValueError for a precision in which it cannot run, before weights change."""
        check_precision(self.trainer.precision)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch: minus the mean bound, in nats an image."""
        loss = -self.bound(x, linear_warmup(self.current_epoch, self.warmup_epochs)).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the mean bound at full KL weight."""
        self.log(MONITORED, self.bound(x).mean(), batch_size=len(x), prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        """Set the random state of training aside: validation must not change what follows.

        Raises FloatingPointError as the end of an epoch does.
        """
        self.on_train_epoch_end()
        self._set_aside = _random_state(self.device)

    def on_validation_epoch_end(self) -> None:
        """Take it up again."""
        _set_random_state(self._set_aside, self.device)

    def on_test_start(self) -> None:
        """Forget the images of an earlier test."""
        self._test_batches: list[Tensor] = []

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the mean negative log-likelihood, Eq. 17 and pooled, and its bits a dimension."""
        nll, pooled = self.vae.nll_estimates(
            x, self.n_test_samples, n_refinement_steps=self.n_test_refinement_steps
        )
        self._test_batches.append(torch.stack([nll, pooled]).cpu())
        figures = {
            "test_nll": nll,
            "test_nll_pooled": pooled,
            "test_bits_per_dim": bits_per_dim(nll, x[0].numel()),
        }
        self.log_dict({k: v.mean() for k, v in figures.items()}, batch_size=len(x))

    def on_test_epoch_end(self) -> None:
        """Keep the negative log-likelihood of every test image, `[n]` in nats.

        By Eq. 17 it is `test_nll`, by the pooled estimate from the same draws `test_nll_pooled`.
        """
        self.test_nll, self.test_nll_pooled = torch.cat(self._test_batches, dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the parameters that are not frozen, fused where Lightning can clip for it."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ValueError(
                "no weight of the model is left to train: all are frozen (requires_grad_(False)). "
                "Unfreeze a part, or test the model as it is."
            )
        clips = self._trainer is not None and bool(self._trainer.gradient_clip_val)
        is_mixed = clips and isinstance(self.trainer.precision_plugin, MixedPrecision)
        return spare_driver(torch.optim.Adam(trained, lr=self.learning_rate, fused=not is_mixed))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise FloatingPointError if the gradient is not finite; not on a GPU, see above."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        finite = is_gradient_finite(self)
        self._finite = finite if self._finite is None else self._finite & finite
        if _answers_at_once(finite.device):
            self._check_gradients(
                f"the gradient of step {self.global_step} (epoch {self.current_epoch})",
                "with the weights of the step before",
            )

    def on_train_epoch_end(self) -> None:
        """Raise FloatingPointError if a gradient since the last validation was not finite."""
        loader: Any = self.trainer.train_dataloader
        if self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and hasattr(loader, "end"):
            loader.end()  # where an epoch has fewer batches than there are
        self._check_gradients(f"a gradient of epoch {self.current_epoch}", "before its checkpoint")

    def _check_gradients(self, which: str, state: str) -> None:
        finite, self._finite = self._finite, None
        if finite is not None and not bool(finite):
            raise FloatingPointError(
                f"{which} is not finite; training stopped {state}. Go on from the last checkpoint "
                "with a lower learning rate, or with full float32 precision."
            )

    def train(self, mode: bool = True) -> "VAETraining":
        """Set the mode of every part but those that are frozen, which stay in evaluation mode."""
        super().train(mode)
        if mode:
            rest_frozen(self.vae)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the random generators, the origin of the model, and the settings.

        And the gradients that several batches add up to a step, of which some have come.
        """
        checkpoint["random"] = _random_state(self.device)
        if self._trainer is not None and self.trainer.accumulate_grad_batches > 1:
            found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint["gradients"] = found
        checkpoint["origin"], checkpoint["settings"] = self.origin, self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check, before any weight changes, that the model is the same; keep the random state.

        So must the settings be where a training goes on.
        """
        check_origin(checkpoint.get("origin"), self.origin)
        check_fit(checkpoint["state_dict"], self.state_dict())
        if self._trainer is not None and self._trainer.state.fn == "fit":
            check_settings(checkpoint.get("settings", {}), self.settings)
        self._to_restore = checkpoint.get("random")
        self._gradients = checkpoint.get("gradients", {})
        self._loaded = (checkpoint.get("origin") or self.origin or {}) | {
            **checkpoint.get("settings", {}),
            "epochs": begun_epochs(checkpoint),
            "steps": checkpoint.get("global_step", 0),
        }

    def on_train_start(self) -> None:
        """Set frozen parts apart; go on with the random numbers of an interrupted run.

        The learning rate is that of this training, not that in the checkpoint.
        """
        self.train()
        self._loaded = self._finite = None
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate
        if self._to_restore is not None:
            _set_random_state(self._to_restore, self.device)
            self._to_restore = None
        for name, gradient in self._gradients.items():
            self.get_parameter(name).grad = gradient.to(self.device)
        self._gradients = {}


def recipe_training(
    recipe: str = "mlp",
    n_components: int = 1,
    sizes: dict[str, Any] | None = None,
    objective: Callable[..., Tensor] = miselbo,
    n_importance_samples: int = 1,
    warmup_epochs: int = 100,
    learning_rate: float = 5e-4,
    n_test_samples: int = 5000,
    estimator: Literal["all", "s2a", "s2s"] = "all",
    n_drawn: int = 2,
    path_gradient: bool | None = None,
    n_test_refinement_steps: int = 0,
) -> VAETraining:
    """Training of one of the paper's models, by name.

    Parameters
    ----------
    recipe
        Name of a function in `scmixvi.image.recipes`.
    n_components
        S.
    sizes
        Further arguments of the recipe, plain values that a checkpoint can hold; None for the
        paper's.
    objective, n_importance_samples, warmup_epochs, learning_rate, n_test_samples
        See :class:`VAETraining`.
    estimator, n_drawn, path_gradient, n_test_refinement_steps
        See :class:`VAETraining`.

    Raises
    ------
    ValueError
        If the recipe or a size is unknown (the known ones are listed), a value is out of range,
        or a size is no plain value: its model could not be built again from a checkpoint.
    """
    origin = plain({"recipe": recipe, "n_components": n_components, "sizes": sizes or {}})
    return VAETraining(
        build_vae(**origin),
        objective,
        n_importance_samples,
        warmup_epochs,
        learning_rate,
        n_test_samples,
        origin,
        estimator,
        n_drawn,
        path_gradient,
        n_test_refinement_steps,
    )


def is_gradient_finite(module: nn.Module) -> Tensor:
    """Whether the gradient of a module's parameters is finite: `[]`, on their device."""
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).isfinite()


def _answers_at_once(device: torch.device) -> bool:
    """Whether asking a tensor there for its value waits for nothing."""
    return device.type == "cpu"


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
