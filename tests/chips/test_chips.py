"""Limits of chips: each is what it says, they compose, and what is trained under them learns."""

import copy
from itertools import pairwise
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import ep_plugin as ep
from ep_plugin import chips
from ep_plugin.linear.modules import FixedNormalization
from ep_plugin.linear.separate import SeparateFeedback
from ep_plugin.models import convolutional_2c2fc, vgg

pytestmark = pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")


def leaky():
    return snn.Leaky(beta=0.9, init_hidden=True)


def dense(*sizes):
    torch.manual_seed(0)
    *hidden, last = (nn.Linear(a, b) for a, b in pairwise(sizes))
    return nn.Sequential(*(m for layer in hidden for m in (layer, leaky())), last)


def convolutional(pooling="average"):
    torch.manual_seed(0)
    return convolutional_2c2fc((3, 4), hidden=12, gain=2.0, pooling=pooling, shape=(1, 16, 16))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantized_weights_are_levels_and_the_gradient_passes_straight(bits, dtype):
    torch.manual_seed(0)
    layer = chips.quantize_weights(nn.Linear(40, 30, dtype=dtype), bits)
    full, rounded = layer.parametrizations.weight.original, layer.weight
    levels = rounded / (full.abs().max() / (2 ** (bits - 1) - 1))
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert levels.abs().max().round() == 2 ** (bits - 1) - 1
    assert (rounded - full).abs().max() <= full.abs().max() / (2**bits - 2) * 1.0001
    sent = torch.randn_like(full)
    rounded.backward(sent)
    torch.testing.assert_close(full.grad, sent)


def test_quantized_weights_feed_back_as_they_are():
    """Up and down pass the same rounded numbers; the rest of the parametrizations comes before."""
    net = chips.quantize_weights(vgg((1, 8, 8), (4, 4, 8), 12), 4)
    model = ep.convert(net)
    connection = model.connections[1]
    weight, *_ = connection.tensors()
    step = weight.abs().max() / 7
    torch.testing.assert_close(weight / step, (weight / step).round(), atol=1e-4, rtol=0)
    assert weight.unique().numel() <= 15


def test_weights_that_are_all_zero_stay_so():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert chips.quantize_weights(layer, 8).weight.abs().max() == 0


@pytest.mark.parametrize(("bits", "error"), [(1, ValueError), (17, ValueError), (0, ValueError), (2.5, TypeError)])
def test_bits_out_of_range(bits, error):
    with pytest.raises(error, match="bits"):
        chips.quantize_weights(nn.Linear(3, 2), bits)


def test_quantizing_twice_is_refused():
    with pytest.raises(ValueError, match="'0' are quantized already"):
        chips.quantize_weights(chips.quantize_weights(dense(4, 3, 2)))


def adjoint_of(connection, shape, y):
    bound = connection.bound(connection.tensors(), shape)
    return bound.adjoint(y)


@pytest.mark.parametrize("net", [dense(6, 5, 4, 3), convolutional("average"), convolutional("max")])
def test_separate_feedback_passes_its_own_weights(net):
    """Down goes the adjoint of the feedback module, up nothing has changed."""
    x = torch.rand(2, *((6,) if isinstance(net[0], nn.Linear) else (1, 16, 16)))
    tied, separate = ep.convert(net), ep.convert(net, feedback_weights="separate")
    shapes = tied.system(x).shapes
    for own, same in zip(separate.connections, tied.connections, strict=True):
        if not own.is_linear:
            continue
        state = torch.rand(2, *shapes[own.source])
        up, of_tied = (c.bound(c.tensors(), shapes[c.source]) for c in (own, same))
        torch.testing.assert_close(up.affine(state), of_tied.affine(state))
        copied = copy.deepcopy(same)
        feedback = next(m.feedback for m in own.modules() if isinstance(m, SeparateFeedback))
        weighted = next(m for m in copied.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        weighted.weight = feedback.weight
        y = torch.randn(2, *up.shape)
        torch.testing.assert_close(up.adjoint(y), adjoint_of(copied, shapes[own.source], y))
        assert not torch.allclose(up.adjoint(y), of_tied.adjoint(y))
    assert all(80 < angle < 100 for name, angle in chips.feedback_angles(separate).items() if "0" in name)


def test_both_weights_learn_by_the_same_contrast():
    model = ep.convert(convolutional(), feedback_weights="separate")
    F.cross_entropy(model(torch.rand(4, 1, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    for module in model.modules():
        if isinstance(module, SeparateFeedback):
            torch.testing.assert_close(module.module.weight.grad, module.feedback.weight.grad)
            assert module.module.weight.grad is not module.feedback.weight.grad


def test_feedback_that_agrees_is_tied():
    """With both weights equal, the step is that of the tied network."""
    net = convolutional("max").double()
    x, y = torch.rand(4, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    tied, separate = ep.convert(net), ep.convert(net, feedback_weights="separate")
    with torch.no_grad():
        for module in separate.modules():
            if isinstance(module, SeparateFeedback):
                module.feedback.weight.copy_(module.module.weight)
    assert all(angle < 1e-4 for angle in chips.feedback_angles(separate).values())
    found = []
    for model in (tied, separate):
        net.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_weight_decay_turns_the_feedback_to_the_transpose():
    model = ep.convert(dense(64, 24, 24, 10), feedback_weights="separate")
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=2.0)
    x, y = torch.rand(16, 64), torch.arange(16) % 10
    (before,) = chips.feedback_angles(model).values()
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    (after,) = chips.feedback_angles(model).values()
    assert after < before / 2


def test_separate_feedback_refuses_what_it_cannot_separate():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), leaky(), nn.ConvTranspose2d(2, 2, 3), leaky(), nn.Flatten(), nn.Linear(128, 3)
    )
    with pytest.raises(ValueError, match=r'feedback_weights="separate": a ConvTranspose2d .*"tied"'):
        ep.convert(net, feedback_weights="separate")
    with pytest.raises(ValueError, match="feedback_weights is 'own'"):
        ep.convert(dense(4, 3, 2), feedback_weights="own")


def test_read_noise_has_its_size_up_and_down_and_comes_off():
    torch.manual_seed(0)
    model = ep.convert(dense(6, 300, 300, 3))
    x = torch.rand(40, 6)
    quiet = model.system(x)
    assert quiet.bound
    chips.add_read_noise(chips.add_read_noise(model, 0.5), 0.1)  # the second in place of the first
    noisy = model.system(x)
    assert ((noisy.values.drives[0] / quiet.values.drives[0] - 1).std() - 0.1).abs() < 0.01
    state = torch.rand(40, 300)
    for way in ("linear", "adjoint"):
        plain, read = (getattr(s.bound[0], way)(state) for s in (quiet, noisy))
        assert ((read / plain - 1).std() - 0.1).abs() < 0.01
        assert not torch.equal(read, getattr(noisy.bound[0], way)(state))
    chips.add_read_noise(model, 0)
    assert torch.equal(model.system(x).bound[0].linear(state), quiet.bound[0].linear(state))


def test_mismatch_is_fixed_per_neuron_saved_and_of_its_size():
    x = torch.rand(2, 1, 16, 16)
    net = convolutional()
    model, other = (chips.add_mismatch(ep.convert(net), x, 0.2, seed) for seed in (1, 2))
    assert model.layers[0].threshold.shape == (1, *model.system(x).shapes[0])
    logs = torch.cat([layer.threshold.log().flatten() for layer in model.layers])
    assert (logs.std() - 0.2).abs() < 0.03
    assert not torch.equal(model.layers[0].threshold, other.layers[0].threshold)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))
    assert net[2].threshold.numel() == 1  # the original's own is left alone


def test_mismatch_refuses_thresholds_that_are_trained():
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9, learn_threshold=True, init_hidden=True), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="layer 0 are trained"):
        chips.add_mismatch(ep.convert(net), torch.rand(2, 4), 0.1)


def test_budget_counts_by_hand():
    """6 -> 5 -> 4 neurons: fan-ins 6 + 4 and 5; synapses of both ways 30 + 20 + 20."""
    model, x = ep.convert(dense(6, 5, 4, 3)), torch.rand(2, 6)
    assert chips.check_budget(model, x, neurons=9, synapses=70, fan_in=10, bits=32) == []
    assert chips.check_budget(model, x, neurons=8, synapses=69, fan_in=9, bits=8) == [
        "the network has 9 neurons; the limit is 8",
        "the network has 70 synapses; the limit is 69",
        "layer 0: a neuron has 10 synapses; the limit is 9",
        "stem.0: weights of 32 bits; the limit is 8 (ep_plugin.chips.quantize_weights)",
        "connections.0.module.0: weights of 32 bits; the limit is 8 (ep_plugin.chips.quantize_weights)",
    ]
    chips.quantize_weights(model, 8)
    assert chips.check_budget(model, x, bits=8) == []


def test_budget_of_convolutions():
    """The middle of a 3x3 convolution after a 3x3 convolution: 9 of the input, 2 * 9 of above; behind 9 below."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), leaky(), nn.Conv2d(1, 2, 3, padding=1), leaky(), nn.Flatten())
    model = ep.convert(net.append(nn.Linear(2 * 36, 3)))
    x = torch.rand(2, 1, 6, 6)
    assert chips.check_budget(model, x, fan_in=27) == []
    assert chips.check_budget(model, x, fan_in=26) == ["layer 0: a neuron has 27 synapses; the limit is 26"]


def learned(model, data, epochs=4):
    """The share of test images that are right after a short training."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.2)
    for _ in range(epochs):
        for batch, labels in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
    with torch.no_grad():
        return torch.cat([model(a).argmax(1) == b for a, b in data.test_dataloader()]).float().mean().item()


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_all_together_learns_digits_as_none_of_them_does(pooling):
    """8-bit weights, own feedback, fixed spikes, 5 % mismatch and noise."""
    data = ep.DigitsDataModule()
    data.setup()
    x, _ = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    net = ep.models.small_convolutional(pooling=pooling)
    limited = ep.convert(
        chips.quantize_weights(copy.deepcopy(net), 8),
        feedback_weights="separate",
        encoder=ep.AdaptiveDelta(event_weight="fixed"),
    )
    chips.add_read_noise(chips.add_mismatch(limited, x, 0.05), 0.05)
    free = learned(ep.convert(net), data)
    assert free > 0.85
    assert learned(limited, data) > free - 0.03


def test_what_is_separate_is_written_out_with_its_own_feedback():
    model = ep.convert(dense(6, 5, 4, 3), feedback_weights="separate").eval()
    x = torch.rand(3, 6)
    plain = ep.to_snntorch(model, num_steps=4)
    assert not [m for m in plain.modules() if isinstance(m, SeparateFeedback)]
    assert plain(x).shape == (3, 3)
    with_feedback = ep.to_snntorch(model, num_steps=200, feedback=True, input_shape=(6,))
    torch.testing.assert_close(with_feedback(x), model.variant(encoder="graded")(x), atol=0.05, rtol=0)


def test_operations_of_separate_feedback_are_those_of_tied():
    x, y = torch.rand(3, 6), torch.tensor([0, 1, 2])
    net = dense(6, 5, 4, 3)
    tied, separate = (ep.count_operations(ep.convert(net, feedback_weights=f), x, y) for f in ("tied", "separate"))
    assert tied.inference.neuron_updates == separate.inference.neuron_updates
    assert separate.inference.synaptic_operations > 0


def test_the_monitor_logs_angles_and_wants_some(tmp_path):
    logger = CSVLogger(tmp_path)
    options = {"max_steps": 12, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    monitor = ep.FeedbackMonitor(every_n_batches=5)
    model = ep.convert(ep.models.small_convolutional(), feedback_weights="separate")
    run = L.Trainer(callbacks=[monitor], logger=logger, log_every_n_steps=1, default_root_dir=tmp_path, **options)
    run.fit(ep.EPLightningModule(model), ep.DigitsDataModule())
    logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")["feedback_angle/connections.0.module.1"].dropna()
    assert len(logged) == 3
    assert 80 < logged.iloc[0] < 100
    assert logged.iloc[-1] < logged.iloc[0]
    run = L.Trainer(callbacks=[ep.FeedbackMonitor()], logger=logger, default_root_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="feedback has no weights of its own"):
        run.fit(ep.EPLightningModule(ep.convert(ep.models.small_convolutional())), ep.DigitsDataModule())


def noisy_and_separate():
    model = ep.convert(dense(6, 5, 4, 3), feedback_weights="separate").eval()
    return model, chips.add_read_noise(copy.deepcopy(model), 0.3)


def test_nir_has_the_feedback_of_its_own_and_no_noise():
    """Before, its transpose was written in the place of the feedback, in silence."""
    plain, noisy = noisy_and_separate()
    expected = plain.connections[0].module[0].feedback.weight.detach().T * plain.settings.between(1)[0]
    for model in (plain, noisy):
        nodes = ep.to_nir(model, (6,)).nodes
        (back,) = (node for name, node in nodes.items() if "feedback" in name)
        torch.testing.assert_close(torch.from_numpy(back.weight), expected, rtol=1e-5, atol=1e-8)


def test_noise_is_not_written_out_nor_counted():
    plain, noisy = noisy_and_separate()
    x, y = torch.rand(3, 6), torch.tensor([0, 1, 2])
    for feedback in (False, True):
        nets = [ep.to_snntorch(m, 8, feedback=feedback, input_shape=(6,)) for m in (plain, noisy)]
        assert not [m for m in nets[1].modules() if type(m).__module__.startswith("ep_plugin")]
        torch.testing.assert_close(nets[0](x), nets[1](x))
    silent = chips.add_read_noise(noisy, 1e-12)
    counts = [ep.count_operations(m, x, y).training for m in (plain, silent)]
    assert counts[0].synaptic_operations == counts[1].synaptic_operations
    assert counts[0].dense == counts[1].dense
    assert chips.check_budget(silent, x, synapses=70, fan_in=10) == []


def test_feedback_weights_are_compared_with_no_gradient():
    model, _ = noisy_and_separate()
    x, y = torch.rand(8, 6), torch.arange(8) % 3
    found = ep.gradient_agreement(model.variant(encoder="graded"), x, y, F.cross_entropy)
    assert len(found) == 6
    assert not [own.name for own in found if ".feedback." in own.name]


def test_read_noise_knows_how_many_axes_a_sample_has():
    x = torch.rand(6, 5, 4)
    net = nn.Sequential(nn.Linear(4, 6), ep.ConvergentLeaky(), nn.Linear(6, 6), ep.ConvergentLeaky(), nn.Linear(6, 3))
    model = ep.convert(net, example_input=x)
    for std in (0.05, 0.0, 0.05):
        assert chips.add_read_noise(model, std)(x).shape == (6, 5, 3)


def test_a_normalization_behind_separate_feedback_counts_once(float64):
    """Where both ways have the same weights, its gradient is that of tied ones."""
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var.uniform_(0.5, 1.5)
    conv = nn.Conv2d(2, 3, 3)
    separate = SeparateFeedback(conv)
    with torch.no_grad():
        separate.feedback.weight.copy_(conv.weight)
    stem = nn.Sequential(nn.Linear(6, 32), nn.Unflatten(1, (2, 4, 4)))
    readout = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

    def gradients(module):
        model = ep.ConvergentNetwork(
            stem,
            [ep.Layer(), ep.Layer()],
            [ep.Connection(nn.Sequential(module, FixedNormalization(norm)), 0, 1)],
            readout,
            encoder="graded",
            relaxation=ep.Relaxation(100),
            estimator=ep.EquilibriumPropagation(1e-5, 100),
        )
        x, y = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
        return torch.autograd.grad(F.cross_entropy(model(x), y), [norm.weight, norm.bias, conv.weight])

    for found, expected in zip(gradients(separate), gradients(conv), strict=True):
        torch.testing.assert_close(found, expected)


def test_transposed_convolutions_are_rounded_and_what_nothing_rounds_is_told():
    net = nn.Sequential(
        *(nn.Linear(6, 8), nn.Unflatten(1, (2, 2, 2)), leaky(), nn.ConvTranspose2d(2, 2, 3), leaky()),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )
    x = torch.rand(4, 6)
    fine = chips.check_budget(ep.convert(copy.deepcopy(net)), x, bits=2)
    assert sum("weights of 32 bits; the limit is 2" in told for told in fine) == 2
    model = ep.convert(chips.quantize_weights(net, 2))
    assert chips.check_budget(model, x, bits=2) == []
    assert len(net[3].weight.unique()) <= 3
    loop = snn.RLeaky(beta=0.9, V=torch.rand(5), all_to_all=False, init_hidden=True)
    recurrent = ep.convert(chips.quantize_weights(nn.Sequential(nn.Linear(6, 5), loop, nn.Linear(5, 3)), 4))
    (told,) = chips.check_budget(recurrent, x, bits=4)
    assert told.startswith("connections.0.")
    assert told.endswith("weights of 32 bits, which nothing rounds; the limit is 4")


def test_questions_leave_running_statistics_as_they_are():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), leaky(), nn.Flatten(), nn.Linear(72, 3))
    model, x = ep.convert(net), torch.rand(4, 1, 8, 8)
    before = {name: b.clone() for name, b in model.named_buffers()}
    chips.check_budget(model, x, neurons=10)
    chips.add_mismatch(model, x, 0.0)
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], b) for name, b in before.items() if "running" in name or "tracked" in name)
