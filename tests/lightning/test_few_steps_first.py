"""Short phases first, then the model's own."""

import lightning as L
import pytest

import ep_plugin as ep
from ep_plugin.lightning.callbacks import FewStepsFirst
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Watch(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        self.seen.append((module.model.relaxation.steps, module.model.gradient.steps))


def fit(task, tmp_path, watch):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    callbacks = [FewStepsFirst(2, free=5, nudged=3), watch]
    trainer = L.Trainer(
        max_epochs=3, enable_model_summary=False, default_root_dir=tmp_path, callbacks=callbacks, **options
    )
    trainer.fit(task, datamodule=ep.DigitsDataModule(train_samples=32))


def test_steps_an_epoch(tmp_path):
    gradient = ep.EquilibriumPropagation(0.5, 7, "positive")
    relaxation = ep.Relaxation(11, step_size=0.5)
    model = ep.convert(small_convolutional(), gradient=gradient, relaxation=relaxation)
    watch = Watch()
    fit(ep.EPLightningModule(model), tmp_path, watch)
    assert watch.seen == [(5, 3), (5, 3), (11, 7)]
    assert (model.gradient, model.relaxation) == (gradient, relaxation)


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(TypeError, match="FewStepsFirst was given a BPTTLightningModule; expected an EPLightningModule"):
        fit(ep.BPTTLightningModule(small_convolutional()), tmp_path, Watch())
    with pytest.raises(ValueError, match="epochs is 0"):
        FewStepsFirst(0)
