"""Early stopping follows the validation bound upwards."""

import lightning as L
import torch
from torch.utils.data import DataLoader

from scmixvi.image.callbacks import early_stopping
from scmixvi.image.lightning import MONITORED


class Scripted(L.LightningModule):
    """Has the given validation bounds, one an epoch, and learns nothing."""

    automatic_optimization = False

    def __init__(self, bounds):
        super().__init__()
        self.bounds = bounds

    def configure_optimizers(self):
        return None

    def training_step(self, batch):
        return None

    def validation_step(self, batch):
        self.log(MONITORED, self.bounds[self.current_epoch])


def test_training_stops_when_the_bound_has_not_risen_for_as_many_epochs_as_it_may(tmp_path):
    batches = DataLoader(torch.zeros(1, 1))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=9,
        callbacks=[early_stopping(patience=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    model = Scripted([-9.0, -8.0, -8.5, -7.0, -7.0, -7.5, -1.0, -1.0, -1.0])
    trainer.fit(model, batches, batches)
    assert trainer.current_epoch == 6


def test_a_rise_counts_from_min_delta_on_and_the_patience_is_100():
    assert early_stopping(min_delta=0.5).min_delta == 0.5
    assert early_stopping().patience == 100
