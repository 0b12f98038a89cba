"""Two processes train to the same bound as one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import numpy as np, scvi, torch
sys.path.insert(0, {tests!r})
from counts import make_adata
from scmixvi import MixtureSCVI

torch.set_num_threads(1)
scvi.settings.seed = {seed}
adata = make_adata(n_cells=256)
MixtureSCVI.setup_anndata(adata)
model = MixtureSCVI(adata, n_hidden=16, n_latent=3, n_components=3)
model.train(
    40, train_size=1.0, batch_size={batch_size}, accelerator="cpu", devices={devices},
    strategy={strategy!r}, enable_progress_bar=False,
)
if model.trainer.is_global_zero:
    print("BOUND", np.mean([float(model.get_elbo()) for _ in range(50)]), adata.obsm["X_mix"].shape)
"""


def bound_of(tmp_path, devices=1, strategy="auto", batch_size=64, seed=0):
    script = tmp_path / f"train{devices}_{seed}.py"
    tests = str(Path(__file__).parents[1])
    script.write_text(
        SCRIPT.format(
            tests=tests, devices=devices, strategy=strategy, batch_size=batch_size, seed=seed
        )
    )
    finished = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    line = next(row for row in finished.stdout.splitlines() if row.startswith("BOUND"))
    assert line.endswith("(256, 3)")
    return float(line.split()[1])


@pytest.mark.slow
def test_two_processes_train_to_the_bound_of_one(tmp_path):
    """A global batch of 64 either way: no further from one process than its seeds are apart."""
    one = [bound_of(tmp_path, seed=seed) for seed in range(3)]
    two = bound_of(tmp_path, 2, "ddp_find_unused_parameters_true", 32)
    assert two == pytest.approx(sum(one) / 3, abs=max(one) - min(one))
