"""Training: scvi-tools' plan with less between the steps."""

import math
from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan
from scvi.train._trainingplans import _compute_kl_weight
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler

from scmixvi.core.optimizers import spare_driver

# Steps that are kept before they are summed, so that memory does not grow with an epoch's steps.
STEPS_KEPT = 64


class MixtureTrainingPlan(TrainingPlan):
    """:class:`scvi.train.TrainingPlan`, logging once an epoch and stepping with fused Adam.

    scvi-tools hands some ten values to Lightning in every step, which for a small model takes as
    long as the model. Here the sums over an epoch are kept and handed over with its last batch:
    `model.history` has the same keys and, to rounding, the same values. Logging by steps
    (`on_step`), several devices and validation are left to scvi-tools' way.

    A loss that is not finite stops the training with a ValueError: on a CPU with the weights of
    the step before, on other devices, where asking in every step would make them wait, at the end
    of the epoch.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Without a module's tests for what Lightning sets twenty times a step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def kl_weight(self) -> float | torch.Tensor:
        """As scvi-tools', but a number: its tensor is copied to the device in every step.

        A compiled module gets the tensor while the weight rises, for it is compiled again for
        every other number.
        """
        weight = _compute_kl_weight(
            self.current_epoch,
            self.global_step,
            self.n_epochs_kl_warmup,
            self.n_steps_kl_warmup,
            self.max_kl_weight,
            self.min_kl_weight,
        )
        return super().kl_weight if self._is_compiled and weight != 1 else weight

    @property
    def _is_compiled(self) -> bool:
        return hasattr(self.module, "_orig_mod")

    def on_train_start(self) -> None:
        """Raise ValueError before the first step if the last minibatch would have one cell."""
        super().on_train_start()
        batches = getattr(self.trainer.train_dataloader, "sampler", None)
        if type(batches) is not BatchSampler or batches.drop_last:
            return  # a sampler of another class may leave no cell alone
        if not isinstance(batches.sampler, Sized):
            return
        reached = self.trainer.num_training_batches == len(batches)
        if reached and len(batches.sampler) % batches.batch_size == 1:
            self._check_one_cell()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """As scvi-tools' step; raises ValueError before a loss that is not finite does harm."""
        if batch[REGISTRY_KEYS.X_KEY].shape[0] == 1:
            self._check_one_cell()
        loss = super().training_step(batch, batch_idx)
        if loss.device.type == "cpu":
            self._check_finite(loss)
        return loss

    def _check_one_cell(self) -> None:
        if any(isinstance(m, nn.BatchNorm1d) and m.training for m in self.module.modules()):
            raise ValueError(
                "a minibatch has one cell, and batch normalisation needs two or more: pass another "
                "batch_size to train, datasplitter_kwargs={'drop_last': True} to leave out the "
                "cells that fill no minibatch, or make the model with use_batch_norm='none'."
            )

    def _check_finite(self, loss: torch.Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the training loss is {loss.item():g} in epoch {self.current_epoch} (step "
                f"{self.global_step}): the model diverged. Train a new one with a lower learning "
                "rate, plan_kwargs={'lr': 1e-4}, or with gradients clipped, gradient_clip_val=10; "
                "if it happens in the first step, look for values in the data that are not finite."
            )

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's steps."""
        self._steps: list[LossOutput] = []

    def on_train_epoch_end(self) -> None:
        """Log an epoch that ended before its last batch."""
        if self._steps:
            self._log_epoch(self.train_metrics)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log as Lightning does, but not what the sums over the epoch will give, nor in vain."""
        if name == "train_loss" and self._logs_once_an_epoch:
            return
        if name == "kl_weight" and self._is_between_logs:
            return
        super().log(name, value, *args, **kwargs)

    def compute_and_log_metrics(
        self, loss_output: LossOutput, metrics: dict[str, Any], mode: str
    ) -> None:
        """Keep a training step's sums; log them with the last batch of the epoch."""
        if mode == "train" and self.use_sync_dist:
            loss_output = self._log_scalars(loss_output)
        if mode != "train" or not self._logs_once_an_epoch:
            super().compute_and_log_metrics(loss_output, metrics, mode)
            return
        self._steps.append(_without_graph(loss_output, copied=self._is_compiled))
        if self.trainer.is_last_batch:
            self._log_epoch(metrics)
        elif len(self._steps) == STEPS_KEPT:
            self._steps = [_pooled(self._steps)]

    def _log_scalars(self, loss_output: LossOutput) -> LossOutput:
        """Log a training step's scalar extras, and return the rest.

        scvi-tools logs in inference mode, whose tensors cannot be averaged over devices.
        """
        for key, value in _scalars(loss_output.extra_metrics or {}).items():
            self.log(
                f"{key}_train",
                value,
                on_step=self.on_step,
                on_epoch=self.on_epoch,
                batch_size=loss_output.n_obs_minibatch,
                sync_dist=True,
            )
        return replace(loss_output, extra_metrics={})

    def prepare_scib_autotune(self, loss_outputs: dict[str, Any], stage: str) -> None:
        """As scvi-tools, which takes any extra metric to mean that latents are among them."""
        if "z" in loss_outputs:
            super().prepare_scib_autotune(loss_outputs, stage)

    @property
    def _is_between_logs(self) -> bool:
        every = self.trainer.log_every_n_steps
        if self.trainer.is_last_batch:  # callbacks find it at the end of every epoch
            return False
        return every == 0 or (self.global_step + 1) % every != 0

    @property
    def _logs_once_an_epoch(self) -> bool:
        return self.on_epoch is True and self.on_step is False and not self.use_sync_dist

    def _log_epoch(self, metrics: dict[str, Any]) -> None:
        total, self._steps = _pooled(self._steps), []
        self._check_finite(total.loss)
        super().log(
            "train_loss",
            total.loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=total.n_obs_minibatch,
        )
        super().compute_and_log_metrics(total, metrics, "train")

    def _optimizer_creator_fn(self, optimizer_cls: type[Optimizer]) -> Callable[..., Optimizer]:
        """Create scvi-tools' optimiser in its fused form where there is one."""
        stock = super()._optimizer_creator_fn(optimizer_cls)
        if hasattr(self, "fused_optimizer") or not self._may_fuse():
            return stock  # from 1.5 on scvi-tools decides

        def create(params: Any) -> Optimizer:
            params = list(params)
            if not all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params):
                return stock(params)
            optimizer = optimizer_cls(
                params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
            )
            return spare_driver(optimizer)

        return create

    def _may_fuse(self) -> bool:
        """False under a gradient scaler: Lightning cannot clip before a fused step unscales."""
        plugin = getattr(self._trainer, "precision_plugin", None)
        return getattr(plugin, "scaler", None) is None


def _without_graph(loss_output: LossOutput, copied: bool) -> LossOutput:
    """A step's loss, sums and scalar extras, without what they were computed from.

    Copies, where the next step of a compiled module may write into the memory of this one's.
    """

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().clone() if copied else tensor.detach()

    extra = _scalars(loss_output.extra_metrics or {})
    return LossOutput(
        loss=kept(loss_output.loss),
        reconstruction_loss=kept(loss_output.reconstruction_loss_sum),
        kl_local=kept(loss_output.kl_local_sum),
        kl_global=kept(loss_output.kl_global_sum),
        n_obs_minibatch=loss_output.n_obs_minibatch,
        extra_metrics={name: kept(value) for name, value in extra.items()},
    )


def _scalars(extra: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {k: torch.as_tensor(v) for k, v in extra.items()}
    return {k: v for k, v in found.items() if v.dim() == 0}


def _pooled(steps: list[LossOutput]) -> LossOutput:
    """One output for many steps: sums over cells, means over cells of what is a mean."""
    n_obs = [step.n_obs_minibatch for step in steps]
    shares = torch.tensor(n_obs, device=steps[0].loss.device) / sum(n_obs)
    return LossOutput(
        loss=(shares * torch.stack([s.loss for s in steps])).sum(),
        reconstruction_loss=torch.stack([s.reconstruction_loss_sum for s in steps]).sum(),
        kl_local=torch.stack([s.kl_local_sum for s in steps]).sum(),
        kl_global=(shares * torch.stack([s.kl_global_sum for s in steps])).sum(),
        n_obs_minibatch=sum(n_obs),
        extra_metrics={
            key: (shares * torch.stack([s.extra_metrics[key] for s in steps])).sum()
            for key in steps[0].extra_metrics
        },
    )
