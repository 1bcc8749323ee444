"""A training that a signal stops goes on from there, bit by bit the one that was never stopped."""

import os
import signal
import time
from types import SimpleNamespace

import lightning as L
import pandas as pd
import pytest
import torch
from resumed import fit, make_task
from test_resume import assert_same

from ep_plugin.lightning.ending import stopped
from ep_plugin.lightning.stopping import Stopped, Stopping

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def heeded():
    """Ctrl-C is heard, also where the tests are a shell's background job, which inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Press(L.Callback):
    """A signal in a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("batch", [1, 7, 9], ids=lambda n: f"batch {n} of three epochs of five")
def test_it_goes_on_from_the_batch_in_which_it_was_stopped(batch, tmp_path, heeded):
    def make():
        return make_task(0.2, "cosine", encoder="bernoulli")

    expected = fit(tmp_path / "whole", make())
    stopping = Stopping()

    callbacks = [stopping, Press(batch)]
    with stopping.listening(SimpleNamespace(world_size=1)), pytest.raises(SystemExit):
        fit(tmp_path / "stopped", make(), callbacks=callbacks)
    kept = torch.load(stopping.checkpoint, weights_only=True)
    assert kept["global_step"] == batch + 1
    found = fit(tmp_path / "resumed", make(), checkpoint=stopping.checkpoint)
    assert_same(found, expected, kept["rows_before"])


def test_rows_that_stand_twice_are_put_together(tmp_path):
    """As the guide has it: of a run that was killed after the checkpoint that the next one goes on from."""

    def steps(*runs):
        tables = [pd.read_csv(tmp_path / run / "lightning_logs" / "version_0" / "metrics.csv") for run in runs]
        return pd.concat(tables).groupby(["epoch", "step"]).last()

    fit(tmp_path / "whole", make_task())
    (kept,) = (tmp_path / "whole" / "kept").glob("epoch-0-*")
    fit(tmp_path / "resumed", make_task(), checkpoint=kept)
    assert steps("resumed").isna().any().any()  # its first row is what followed the checkpoint in the epoch's end
    pd.testing.assert_frame_equal(steps("whole", "resumed"), steps("whole"), check_exact=True)


def test_when_it_stops_at_once():
    one, two = (SimpleNamespace(world_size=n) for n in (1, 2))

    def in_a_batch():
        stopping = Stopping()
        stopping.on_train_batch_start()
        return stopping

    with pytest.raises(Stopped):  # before the first batch
        Stopping()._heard(one, signal.SIGTERM)
    in_a_batch()._heard(one, signal.SIGTERM)
    with pytest.raises(Stopped):  # several processes
        in_a_batch()._heard(two, signal.SIGTERM)
    stopping = in_a_batch()
    stopping.on_validation_start()
    with pytest.raises(Stopped):
        stopping._heard(one, signal.SIGTERM)
    stopping = in_a_batch()
    stopping._heard(one, signal.SIGINT)
    with pytest.raises(Stopped):  # the second one
        stopping._heard(one, signal.SIGINT)
    assert stopping.signal == signal.SIGINT


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping().listening(SimpleNamespace(world_size=1)):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_that_was_about_to_be_replaced_is_named(tmp_path):
    """A keeper that is stopped while it writes the next one names that, which is not there."""
    started, kept = time.time() - 10, tmp_path / "epoch=0-step=2.ckpt"
    kept.write_text("")
    old = tmp_path / "of-another-run.ckpt"
    old.write_text("")
    os.utime(old, (started - 60, started - 60))
    keeper = SimpleNamespace(best_model_path=str(tmp_path / "epoch=1-step=4.ckpt"), dirpath=str(tmp_path))
    trainer = SimpleNamespace(checkpoint_callbacks=[keeper], current_epoch=1, global_step=4, ckpt_path=None)
    assert f"Checkpoint: {kept}. Resume: ep-plugin fit" in stopped(trainer, [], None, started)
    kept.unlink()
    assert "No checkpoint had been kept" in stopped(trainer, [], None, started)
