"""Short phases first, then the model's own."""

import lightning as L
import pytest

import ep_plugin as ep
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Watch(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        self.seen.append((module.model.relaxation.steps, module.model.estimator.steps))


def fit(task, tmp_path, watch):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    callbacks = [ep.FewStepsFirst(2, free=5, nudged=3), watch]
    trainer = L.Trainer(
        max_epochs=3, enable_model_summary=False, default_root_dir=tmp_path, callbacks=callbacks, **options
    )
    trainer.fit(task, datamodule=ep.DigitsDataModule(train_samples=32))


def test_steps_an_epoch(tmp_path):
    for estimator in (ep.EquilibriumPropagation(0.5, 7, "positive"), ep.FullPhaseEP(0.5, 7)):
        relaxation = ep.Relaxation(11, step_size=0.5)
        model = ep.convert(small_convolutional(), estimator=estimator, relaxation=relaxation)
        watch = Watch()
        fit(ep.EPLightningModule(model), tmp_path, watch)
        assert watch.seen == [(5, 3), (5, 3), (11, 7)]
        assert (model.estimator, model.relaxation) == (estimator, relaxation)


def test_steps_that_the_package_chooses_come_back_as_such(tmp_path):
    model = ep.convert(small_convolutional(), encoder=ep.AdaptiveDelta(digits=1))
    watch = Watch()
    fit(ep.EPLightningModule(model), tmp_path, watch)
    assert watch.seen == [(5, 3), (5, 3), (None, None)]
    assert model.steps == (7, 5)


def test_phases_that_are_as_short_stay_as_they_are(tmp_path):
    short = {"relaxation": ep.Relaxation(4), "estimator": ep.EquilibriumPropagation(steps=2)}
    watch = Watch()
    fit(ep.EPLightningModule(ep.convert(small_convolutional(), **short)), tmp_path, watch)
    assert watch.seen == [(4, 2)] * 3


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(TypeError, match="FewStepsFirst was given a BPTTLightningModule; expected an EPLightningModule"):
        fit(ep.BPTTLightningModule(small_convolutional()), tmp_path, Watch())
    with pytest.raises(TypeError, match="expected an EPLightningModule whose model has EquilibriumPropagation"):
        fit(
            ep.EPLightningModule(ep.convert(small_convolutional(), estimator=ep.BackpropThroughTime())),
            tmp_path,
            Watch(),
        )
    with pytest.raises(ValueError, match="epochs is 0"):
        ep.FewStepsFirst(0)


def test_fixed_events_hold_for_the_steps_that_they_were_found_with(tmp_path):
    model = ep.convert(small_convolutional(), encoder=ep.AdaptiveDelta("fixed"))
    with pytest.raises(ValueError, match=r"events with fixed weights.*constants of every step"):
        fit(ep.EPLightningModule(model), tmp_path, Watch())


def test_an_exception_gives_the_steps_back(tmp_path):
    class Fault(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("a fault of one's own")

    task = ep.EPLightningModule(ep.convert(small_convolutional(), encoder="bernoulli"))
    before = task.model.steps
    with pytest.raises(RuntimeError, match="of one's own"):
        fit(task, tmp_path, Fault())
    assert task.model.steps == before
