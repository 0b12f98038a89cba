"""Steps of optimisers on the CPU."""

from torch.optim import Optimizer


def spare_driver(optimizer: Optimizer) -> Optimizer:
    """Have an optimiser of weights on a CPU not ask the driver for GPUs in every step.

    Parameters
    ----------
    optimizer
        One of torch's; with weights elsewhere it is left as it is.

    Returns
    -------
    The same optimiser.
    """
    weights = (p for group in optimizer.param_groups for p in group["params"])
    if all(p.device.type == "cpu" for p in weights):
        for name in ("_accelerator", "_cuda"):  # by version of torch
            setattr(optimizer, f"{name}_graph_capture_health_check", _nothing)
    return optimizer


def _nothing() -> None:
    """Do nothing."""
