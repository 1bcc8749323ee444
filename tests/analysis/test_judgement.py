"""How many nets that learn `ep-plugin check` passes, and of how many that do not it tells something.

EP_PLUGIN_DATA=<directory that holds MNIST and FashionMNIST> pytest -m slow -s tests/analysis/test_judgement.py
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "lightning"))

from trainings import DIVERGE, FAIL, LEARN

import ep_plugin as ep
from ep_plugin.analysis.diagnosis import diagnose
from ep_plugin.lightning.losses import as_loss
from ep_plugin.loading import data_batch

FAST = ("convolution, seed 0", "max pooling, seed 0", "neurons at the end, mse", "threshold 0.3", "gain 0.5")
FAST_FAIL = ("weights of 0", "silent second layer", "high thresholds", "strong feedback, large weights")


def advice(training, model=None):
    """What is said of a net on 32 of its own images, before its training or of the trained one."""
    start, data = training.start()
    model = (start if model is None else model).eval()
    x, y = data_batch(model, data, 32)
    return diagnose(model, x, y, as_loss(training.task.get("loss", "cross_entropy"))).advice


@pytest.mark.parametrize("name", FAST)
def test_a_net_that_learns_passes(name):
    assert advice(LEARN[name]) == []


@pytest.mark.parametrize("name", FAST_FAIL)
def test_a_net_that_does_not_is_told(name):
    assert advice(FAIL[name])


def is_fixed(training):
    return isinstance(training.network.get("encoder"), ep.AdaptiveDelta) and "fixed" in repr(
        training.network["encoder"]
    )


@pytest.mark.slow
def test_nets_that_learn_pass_before_their_training(data_dir):
    told = {name: advice(t) for name, t in LEARN.items() if not is_fixed(t)}
    for name, found in told.items():
        print(f"{name:40} {found or ''}")
    print(f"{sum(not found for found in told.values())} of {len(told)} pass")
    assert len(told) >= 30
    assert not any(told.values())


@pytest.mark.slow
def test_nets_that_do_not_are_told_before_or_after_it(data_dir):
    """A learning rate is no part of a net: what it has done is seen in the weights."""
    told = {}
    families = {name.rpartition(",")[0]: name for name in DIVERGE}  # the largest rate of each
    for name, training in (FAIL | {name: DIVERGE[name] for name in families.values()}).items():
        before, result = advice(training), training.run()
        told[name] = before or result.stopped or advice(training, result.model)
        print(f"{name:45} {'before' if before else 'after' if told[name] else '-'}")
    print(f"{sum(map(bool, told.values()))} of {len(told)} are told")
    assert len(told) >= 30
    assert {name for name, found in told.items() if not found} <= UNTOLD


# Of steps that are too small a net shows nothing; of low thresholds .06 of the neurons still live.
UNTOLD = {"Adam 1e-6", "SGD 1e-4", "low thresholds, .05"}
