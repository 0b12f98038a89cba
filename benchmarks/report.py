"""Tables of the readme and the documentation from the JSON of the benchmarks.

    python -m benchmarks.report        # rewrites benchmarks/results/*.md and the readme's tables

A block of the readme between `<!-- NAME -->` and `<!-- end -->` is replaced by the table NAME.
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import RESULTS
from benchmarks import _report_bounds as bounds
from benchmarks import _report_times as times

README = Path(__file__).parents[1] / "README.md"
TABLES: dict[str, Callable[[], str]] = {
    "representation_scores": bounds.representation_scores,
    "batch_norm_bounds": bounds.batch_norm_bounds,
    "gains": bounds.gains,
    "gaps": bounds.gaps,
    "scores_of_four": bounds.scores_of_four,
    "demo": bounds.demo,
    "epochs": times.epochs,
    "epoch_ratios": times.epoch_ratios,
    "epoch_parts": times.epoch_parts,
    "queries": times.queries,
    "many_components": bounds.many_components,
    "same_bounds": bounds.same_bounds,
    "refinement_steps": bounds.refinement_steps,
    "likelihoods": times.likelihoods,
    "products": times.products,
    "image_mlp_products": times.image_mlp_products,
    "memory": times.memory,
    "thinning": times.thinning,
    "image_steps": times.image_steps,
    "mlp_mnist": times.mlp_mnist,
    "scale": times.scale,
    "inference": times.inference,
    "importance": times.importance,
}


def with_tables(text: str) -> str:
    """The readme with its tables as the JSON has them."""

    def block(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]]()}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    """Write every table."""
    for name, table in TABLES.items():
        (RESULTS / f"{name}.md").write_text(table())
    README.write_text(with_tables(README.read_text()))


if __name__ == "__main__":
    main()
