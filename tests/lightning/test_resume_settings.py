"""What is told where a training goes on with other settings of its optimizer or schedule."""

import warnings

import pytest
import snntorch as snn
import torch
from test_module import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

DATA = DataLoader(TensorDataset(torch.rand(16, 16), torch.arange(16) % 4), 8)


def fit(tmp_path, epochs, checkpoint=None, **settings):
    """A checkpoint of the training's end, and what is told of the one that it has gone on from."""
    net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 4))
    run = trainer(tmp_path, max_epochs=epochs)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run.fit(ep.EPLightningModule(ep.convert(net), **settings), DATA, DATA, ckpt_path=checkpoint)
    path = tmp_path / f"{epochs}.ckpt"
    run.save_checkpoint(path)
    return path, run.optimizers[0], [str(w.message) for w in found if "the checkpoint's" in str(w.message)]


def sgd(lr, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr, **options)


def scheduled(lr):
    """Its rate has come down when it goes on."""

    def both(parameters):
        optimizer = torch.optim.SGD(parameters, lr)
        down = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=100.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": down, "monitor": "val/loss"}}

    return both


def test_other_settings_of_an_optimizer_are_told_and_the_checkpoints_kept(tmp_path):
    one, *_ = fit(tmp_path, 1, optimizer=sgd(0.1))
    two, kept, (told,) = fit(tmp_path, 2, one, optimizer=sgd(0.001, momentum=0.9))
    assert "optimizer had other settings: lr was 0.1 and is 0.001; momentum was 0 and is 0.9. A training" in told
    assert "keeps the checkpoint's" in told
    assert "\n" not in told
    assert (kept.param_groups[0]["lr"], kept.param_groups[0]["momentum"]) == (0.1, 0)
    assert fit(tmp_path, 3, two, optimizer=sgd(0.1))[2] == []  # whose settings are still the first ones


SAME = {
    "another lr beside it": [{"optimizer": sgd(0.1), "lr": lr} for lr in (0.01, 0.02)],
    "a rate that has come down": [{"optimizer": scheduled(0.1)}] * 2,
    "default": [{"lr": 0.01}] * 2,
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_optimizer_is_silent(case, tmp_path):
    first, second = SAME[case]
    path, *_ = fit(tmp_path, 1, **first)
    assert fit(tmp_path, 2, path, **second)[2] == []


OTHERS = {
    "AdamW": (torch.optim.Adam, torch.optim.AdamW),
    "Adam": (sgd(0.1), torch.optim.Adam),
    "SGD": (torch.optim.Adam, sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_of_another_type_is_refused(name, tmp_path):
    first, second = OTHERS[name]
    path, *_ = fit(tmp_path, 1, optimizer=first)
    with pytest.raises(ValueError, match=rf"this training's is {name}, .* new training of its weights: EPLightningM"):
        fit(tmp_path, 2, path, optimizer=second)


def test_a_checkpoint_that_does_not_tell_its_optimizer(tmp_path):
    """One of an earlier version: its own `lr` is still compared, where that counts."""
    path, *_ = fit(tmp_path, 1, lr=0.01)
    older = torch.load(path, weights_only=True)
    del older["ep_plugin_resuming"]["optimizers"]
    torch.save(older, path)
    assert fit(tmp_path, 2, path, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.1))[2] == []
    two, kept, (told,) = fit(tmp_path, 2, path, lr=0.02)
    assert "lr was 0.01 and is 0.02" in told
    assert "keeps the checkpoint's learning rate" in told
    assert kept.param_groups[0]["lr"] == 0.01
    assert torch.load(two, weights_only=True)["ep_plugin_resuming"]["optimizers"] == []  # not those given since


@pytest.mark.parametrize(("first", "second"), [("cosine", "constant"), ("constant", "cosine")])
@pytest.mark.parametrize("own", [{}, {"optimizer": sgd(0.1)}], ids=["default", "own"])
def test_a_change_of_schedule_is_refused(first, second, own, tmp_path):
    path, *_ = fit(tmp_path, 2, schedule=first, **own)
    with pytest.raises(
        ValueError, match=rf'schedule is "{second}", .* is "{first}"; .* new training of its weights: EP'
    ):
        fit(tmp_path, 4, path, schedule=second, **own)
