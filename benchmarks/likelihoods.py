"""The count likelihoods, forward and backward, against scvi-tools' own.

python -m benchmarks.likelihoods            writes results/likelihoods.json
"""

import argparse
from collections.abc import Callable

import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution

from benchmarks import RESULTS
from benchmarks._timing import interleaved, ratios, summary
from scmixvi.records import environment, write
from scmixvi.singlecell._parts.likelihoods import log_likelihood

N_CELLS, N_GENES = 128, 1200
# Mean counts a gene are log-normal(location, 1.5); gamma-distributed over cells, shape 1.
MEAN_OF_LOG_MEAN = {"71 % nonzero": 1.5, "7 % nonzero": -4.1}


def counts(location: float) -> Tensor:
    means = torch.empty(N_GENES).log_normal_(location, 1.5)
    rates = means * torch.empty(N_CELLS, N_GENES).exponential_()
    return torch.poisson(rates)


def parameters(location: float, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, inverse dispersion and zero inflation logits, as a decoder might give them."""
    shape = (n_rows, N_CELLS, N_GENES)
    mu = torch.empty(shape).log_normal_(location, 1.5)
    theta = torch.empty(N_GENES).log_normal_(0.0, 1.0)
    logits = torch.empty(shape).normal_(-2.0, 1.0)
    return mu.requires_grad_(), theta.requires_grad_(), logits.requires_grad_()


def step(
    family: str,
    parameters: tuple[Tensor, Tensor, Tensor],
    log_lik: Callable[[Distribution, Tensor], Tensor],
) -> Callable[[], object]:
    """One likelihood with the gradients of all its parameters."""
    mu, theta, logits = parameters

    def zinb() -> object:
        px = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)
        return torch.autograd.grad(log_lik(px).mean(), parameters)

    def nb() -> object:
        px = NegativeBinomial(mu=mu, theta=theta)
        return torch.autograd.grad(log_lik(px).mean(), (mu, theta))

    return {"zinb": zinb, "nb": nb}[family]


def compare(family: str, density: str, n_rows: int, rounds: int) -> dict:
    """Milliseconds of scvi-tools' likelihood and of ours, and their ratio."""
    torch.manual_seed(0)
    location = MEAN_OF_LOG_MEAN[density]
    x, given = counts(location), parameters(location, n_rows)
    seconds = interleaved(
        {
            "scvi-tools": step(family, given, lambda px: px.log_prob(x).sum(-1)),
            "scmixvi": step(family, given, lambda px: log_likelihood(px, x, given[1])),
        },
        rounds,
    )
    return {
        "family": family,
        "counts": density,
        "nonzero": round((x > 0).float().mean().item(), 3),
        "K": n_rows,
        "threads": torch.get_num_threads(),
        "milliseconds": {name: summary(s, scale=1e3) for name, s in seconds.items()},
        "ratio": ratios(seconds, "scvi-tools")["scmixvi"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for family in ("zinb", "nb"):
            for density in MEAN_OF_LOG_MEAN:
                for n_rows in (1, 4, 8):
                    rows.append(compare(family, density, n_rows, arguments.rounds))
                    print(rows[-1], flush=True)
    write(
        RESULTS / "likelihoods.json",
        {"environment": environment(), "rows": rows},
    )


if __name__ == "__main__":
    main()
