"""Loaders and batches as Lightning has them: prediction, several sets, summaries, batches of other shapes."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from test_module import make_model, trainer
from torch.utils.data import DataLoader, TensorDataset

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(10, (12,), generator=torch.Generator().manual_seed(2))
PAIRS = TensorDataset(X, Y)
KINDS = {
    "ep": lambda: ep.EPLightningModule(make_model()[0]),
    "bptt": lambda: ep.BPTTLightningModule(make_model()[1], 3),
}


class Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"image": X[index], "label": Y[index]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data", [PAIRS, TensorDataset(X), TensorDataset(X, Y, Y), list(X)], ids=["(x, y)", "(x,)", "(x, y, z)", "x"]
)
def test_predictions_are_the_model_s_outputs(kind, data, tmp_path):
    task = KINDS[kind]()
    found = trainer(tmp_path).predict(task, DataLoader(data, 5))
    assert [len(output) for output in found] == [5, 5, 2]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found), task.eval()(X))


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_with_a_data_module_is_that_of_its_test_images(kind, tmp_path):
    data = ep.DigitsDataModule(90)
    found = trainer(tmp_path).predict(KINDS[kind](), data)
    assert [output.shape for output in found] == [(90, 10)] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_several_sets_have_lightning_s_names_and_the_first_the_plain_ones_too(kind, tmp_path):
    sets = [DataLoader(TensorDataset(X[:8], Y[:8]), 4), DataLoader(TensorDataset(X[8:], Y[8:]), 4)]
    task = KINDS[kind]()
    for stage, run in (("val", trainer(tmp_path).validate), ("test", trainer(tmp_path).test)):
        alone = [run(task, one, verbose=False)[0] for one in sets]
        assert set(alone[0]) >= {f"{stage}/loss", f"{stage}/accuracy"}
        first, second = run(task, sets, verbose=False)
        assert first == pytest.approx({f"{k}/dataloader_idx_0": v for k, v in alone[0].items()} | alone[0])
        assert second == pytest.approx({f"{k}/dataloader_idx_1": v for k, v in alone[1].items()})


def test_callbacks_watch_the_first_of_several_sets(tmp_path):
    sets = [DataLoader(TensorDataset(X[:8], Y[:8]), 4), DataLoader(TensorDataset(X[8:], Y[8:]), 4)]
    kept = ModelCheckpoint(tmp_path, monitor="val/loss")
    record = ep.RecordErrors(tmp_path / "lines.jsonl", "two sets")
    run = trainer(tmp_path, callbacks=[kept, EarlyStopping("val/accuracy"), record], enable_checkpointing=True)
    run.fit(KINDS["ep"](), DataLoader(PAIRS, 4), sets)
    assert kept.best_model_score <= run.callback_metrics["val/loss"]
    assert run.callback_metrics["val/loss"] == run.callback_metrics["val/loss/dataloader_idx_0"]
    assert len(record.path.read_text().splitlines()) == 2


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_of_an_example_of_any_size(kind, rows, tmp_path):
    """Two rows are no pair of images and classes."""
    task = KINDS[kind]()
    task.example_input_array = torch.rand(rows, 1, 8, 8)
    data = ep.DigitsDataModule(40, train_samples=40)
    trainer(tmp_path, enable_model_summary=True, max_epochs=1).fit(task, data)
    assert task.eval()(X).shape == (12, 10)


def test_a_rate_coded_module_leaves_what_is_no_pair():
    data = ep.DigitsDataModule(rate_coded=5)
    for batch in (X[:2], X, [X], (X, Y, Y), {"image": X}):
        assert data.on_after_batch_transfer(batch, 0) is batch
    spikes, y = data.on_after_batch_transfer([X, Y], 0)
    assert spikes.shape == (5, *X.shape)
    assert y is Y


OTHERS = {  # data, how the refusal describes the batch, and what makes it a pair
    "dict": (Dicts(), "a dict of 'image', 'label'", lambda batch: (batch["image"], batch["label"])),
    "weights": (TensorDataset(X, Y, Y), "a list (Tensor, Tensor, Tensor)", lambda batch: (batch[0], tuple(batch[1:]))),
    "inputs": (list(X), "a single tensor of shape [4, 1, 8, 8]", lambda x: (x, x.mean((1, 2, 3)).long())),
    "inputs in a list": (TensorDataset(X), "a list (Tensor)", lambda batch: (batch[0], Y[: len(batch[0])])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", OTHERS)
def test_other_batches_are_refused_and_made_pairs_by_one_method(case, kind, tmp_path):
    data, described, paired = OTHERS[case]
    base = type(KINDS[kind]())

    class Own(base):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return paired(batch)

    def loss(output, y):
        return F.cross_entropy(output, y[0] if isinstance(y, tuple) else y)

    model = make_model()[kind == "bptt"]
    with pytest.raises(TypeError) as refused:
        trainer(tmp_path).fit(base(model, loss=loss), DataLoader(data, 4))
    words = str(refused.value)
    assert words.startswith(f"a batch is {described}; expected (x, y)")
    assert "on_before_batch_transfer(batch, dataloader_idx)" in words
    assert "\n" not in words
    run = trainer(tmp_path, max_epochs=1, callbacks=[])
    run.fit(Own(model, loss=loss), DataLoader(data, 4), DataLoader(data, 4))
    assert run.callback_metrics["val/loss"] > 0


def test_a_dict_is_no_input_either(tmp_path):
    with pytest.raises(
        TypeError, match=r"a batch is a dict of 'image', 'label'; expected an input x, or \(x, \.\.\.\)"
    ):
        trainer(tmp_path).predict(KINDS["ep"](), DataLoader(Dicts(), 4))


def test_a_target_may_be_several_things(tmp_path):
    def weighted(output, target):
        y, weight = target
        return (F.cross_entropy(output, y, reduction="none") * weight).mean()

    data = TensorDataset(X, Y, torch.linspace(0, 2, 12))
    task = ep.EPLightningModule(make_model()[0], weighted)
    pairs = DataLoader(data, 12, collate_fn=lambda rows: (torch.stack([r[0] for r in rows]), (Y, data.tensors[2])))
    (logged,) = trainer(tmp_path).validate(task, pairs, verbose=False)
    with torch.no_grad():
        assert logged["val/loss"] == pytest.approx(weighted(task.eval()(X), (Y, data.tensors[2])).item(), rel=1e-5)


def test_frames_along_the_second_axis_are_so_many_samples(tmp_path):
    class Frames(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.neurons, self.last = torch.nn.Linear(8, 20), snn.Leaky(beta=0.9), torch.nn.Linear(20, 10)

        def forward(self, x):
            mem, record = self.neurons.init_leaky(), []
            for t in range(x.size(1)):
                spikes, mem = self.neurons(self.first(x[:, t]), mem)
                record.append(self.last(spikes))
            return torch.stack(record).mean(0)

    task = ep.EPLightningModule(ep.convert(Frames(), time_varying=True))
    pairs = DataLoader(TensorDataset(X[:, 0], Y), 5)  # rows in turn; the last batch has 2 samples
    (logged,) = trainer(tmp_path).validate(task, pairs, verbose=False)
    with torch.no_grad():
        output = task.eval()(X[:, 0])
    assert output.shape == (12, 10)
    assert logged["val/loss"] == pytest.approx(F.cross_entropy(output, Y).item(), rel=1e-4)
    assert logged["val/accuracy"] == pytest.approx((output.argmax(1) == Y).float().mean().item())
