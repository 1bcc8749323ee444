"""Plain snnTorch and Norse nets: their loop is the one written by hand, and their rates are the settled states."""

import subprocess
import sys
from pathlib import Path

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

import ep_plugin as ep
from ep_plugin.models import CenteredWeight

BOTH = pytest.mark.parametrize("deploy", [ep.to_snntorch, ep.to_norse])


def leaky(threshold=1.0):
    return snn.Leaky(beta=0.5, threshold=threshold, init_hidden=True)


def convert(net, **settings):
    """With so weak a feedback that the settled states are those of a forward pass."""
    return ep.convert(ep.initialize_(net, 2.0), **{"feedback": 1e-5, "encoder": "graded"} | settings).eval()


def convolutional(pool=nn.AvgPool2d):
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), pool(2), leaky(0.9)),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), pool(2), leaky(1.1), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(16, 8), leaky(torch.linspace(0.8, 1.2, 8)), nn.Linear(8, 5), nn.Tanh()),
    )
    for norm in (net[1], net[5]):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.8, 1.2)
        nn.init.uniform_(norm.bias, -0.1, 0.3)
    return net, torch.rand(6, 1, 10, 10)


class Skip(nn.Module):
    """A skip, a sum behind which a shared layer follows, the input beside spikes, and two layers that are read."""

    def __init__(self):
        super().__init__()
        self.fc0, self.fc1, self.fc2, self.again = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(12, 9)
        self.lif0, self.lif1, self.lif2 = leaky(), leaky(0.7), leaky(1.3)
        self.out = nn.Linear(9, 4)

    def forward(self, x):
        a = self.lif0(self.fc0(x))
        b = self.lif1(self.fc1(a) + 0.5 * self.again(x))
        c = self.lif2(self.fc2(a + b))
        return self.out(c) + 0.5 * torch.tanh(self.out(b))


class Dense(nn.Module):
    """A concatenation."""

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.lif0, self.lif1, self.lif2, self.fc = leaky(), leaky(), leaky(), nn.Linear(64, 5)

    def forward(self, x):
        a = self.lif0(self.conv0(x))
        b = self.lif1(self.conv1(a))
        return self.fc(self.lif2(self.conv2(torch.cat([a, b], 1))).flatten(1))


def pooled_by_maximum():
    return convolutional(nn.MaxPool2d)


def skip():
    return Skip(), torch.rand(6, 12)


def dense():
    return Dense(), torch.rand(6, 1, 8, 8)


def rectified():
    net = nn.Sequential(
        *(nn.Linear(6, 9), leaky(), nn.Linear(9, 9), nn.ReLU6(), nn.Linear(9, 7), leaky(), nn.Linear(7, 3)),
    )
    return net, torch.rand(6, 6)


NETS = [convolutional, pooled_by_maximum, skip, dense, rectified]


@BOTH
@pytest.mark.parametrize("make", NETS)
def test_rates_are_the_settled_states(make, deploy):
    """After n steps a rate is off by about 1 / n."""
    net, x = make()
    model = convert(net)
    settled, equilibrium = model(x, return_equilibrium=True)
    output, spikes = deploy(model, 200, spikes=True)(x)
    assert len(spikes) == len(model.layers)
    for fired, state in zip(spikes, equilibrium.states, strict=True):
        assert (fired.mean(0) - state).abs().mean() < 0.01
    assert (output - settled).abs().max() < 0.05
    assert (output - settled).norm() < 0.02 * settled.norm()
    assert settled.std() > 0.05  # something fires


def test_the_loop_is_the_one_written_by_hand():
    net, x = convolutional()
    model = convert(net)
    output, spikes = ep.to_snntorch(model, 7, spikes=True)(x)
    conv0, norm0, pool, lif0, conv1, norm1, _, lif1, _, flat, fc, lif2, out, tanh = net.eval()
    thresholds = [lif.threshold for lif in (lif0, lif1, lif2)]
    drive = pool(norm0(conv0(x)))
    membranes, fired, count = [None] * 3, [[], [], []], 0.0
    for _ in range(7):
        sent = drive
        for l, (weights, threshold) in enumerate(
            zip([lambda x: x, lambda s: pool(norm1(conv1(s))), lambda s: fc(flat(s))], thresholds, strict=True)
        ):
            current = weights(sent)
            v = (threshold / 2 if membranes[l] is None else membranes[l]) + current
            sent = (v > threshold).float()
            membranes[l] = v - sent * threshold
            fired[l].append(sent)
        count = count + sent
    for l in range(3):
        assert torch.equal(spikes[l], torch.stack(fired[l]))
    torch.testing.assert_close(output, tanh(out(count / 7)))
    assert 0.01 < spikes[0].mean() < 0.95


@pytest.mark.parametrize("make", NETS)
def test_both_libraries_fire_the_same_spikes(make):
    net, x = make()
    model = convert(net)
    model(x)
    for a, b in zip(ep.to_snntorch(model, 9, spikes=True)(x)[1], ep.to_norse(model, 9, spikes=True)(x)[1], strict=True):
        assert torch.equal(a, b)


@BOTH
def test_relu6_fires_up_to_its_maximum(deploy):
    net, x = skip()
    model = convert(net, activation="relu6")
    settled, equilibrium = model(3 * x, return_equilibrium=True)
    assert max(s.max() for s in equilibrium.states) > 1.5
    assert (deploy(model, 200)(3 * x) - settled).norm() < 0.05 * settled.norm()


WITHOUT_THE_PACKAGE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["ep_plugin"] = None  # cannot be imported
import torch
for k in range(5):
    net = torch.load(f"net{k}.pt", weights_only=False)
    x, output = torch.load(f"values{k}.pt")
    print(torch.equal(net(x), output))
    net.load_state_dict({k: torch.zeros_like(v) for k, v in net.state_dict().items()})
"""


@BOTH
def test_files_need_nothing_of_this_package(deploy, tmp_path):
    for k, make in enumerate(NETS):
        net, x = make()
        parametrized = next(m for m in net.modules() if isinstance(m, nn.Linear))
        parametrize.register_parametrization(parametrized, "weight", CenteredWeight())
        model = convert(net)
        model(x)
        plain = deploy(model, 4)
        torch.save(plain, tmp_path / f"net{k}.pt")
        torch.save((x, plain(x).detach()), tmp_path / f"values{k}.pt")
        assert "ep_plugin" not in plain.code
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 5


@BOTH
def test_exports(deploy):
    net, x = convolutional()
    plain = deploy(convert(net), 3)
    exported = torch.export.export(plain, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), plain(x))


def test_modules_are_ordinary_ones_in_evaluation():
    plain = ep.to_snntorch(convert(convolutional()[0]), 3)
    kinds = [type(m) for m in plain.modules()]
    assert kinds.count(nn.BatchNorm2d) == 2
    assert kinds.count(nn.AvgPool2d) == 2
    neurons = [m for m in plain.modules() if isinstance(m, snn.Leaky)]
    assert [m.beta.item() for m in neurons] == [1.0, 1.0, 1.0]
    assert [m.reset_mechanism for m in neurons] == ["subtract"] * 3
    assert neurons[1].threshold.item() == pytest.approx(1.1)
    assert not any(m.training for m in plain.modules())


def test_weights_are_copies_and_the_model_stays_as_it_is():
    net = nn.Sequential(nn.Linear(6, 6), leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 2))
    net[4] = net[2]  # tied
    parametrize.register_parametrization(net[2], "weight", CenteredWeight())
    model, x = convert(net), torch.rand(3, 6)
    before, output = {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    plain = ep.to_snntorch(model, 5)
    first = plain(x)
    assert len({p.data_ptr() for p in plain.parameters()}) == 6  # the tied weight and bias once
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1.0)
    assert torch.equal(model(x), output)
    assert parametrize.is_parametrized(net[2])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(ep.to_snntorch(model, 5)(x), first)


@BOTH
def test_other_batches_and_devices(deploy):
    net, x = skip()
    plain = deploy(convert(net), 6)
    output = plain(x)
    torch.testing.assert_close(torch.cat([plain(x[:1]), plain(x[1:])]), output)
    meta = plain.to("meta")(x.to("meta"))
    assert meta.shape == output.shape
    assert meta.is_meta


@BOTH
def test_frames_one_a_step(deploy):
    net, x = skip()
    model, plain = convert(net), deploy(convert(net, time_varying=True), 5)
    torch.testing.assert_close(plain(x.expand(5, *x.shape)), deploy(model, 5)(x))
    other = plain(torch.rand(5, *x.shape))
    assert not torch.allclose(other, plain(x.expand(5, *x.shape)))
    for frames in (4, 6):
        with pytest.raises(RuntimeError, match="split"):
            plain(torch.rand(frames, *x.shape))


def test_a_float64_network_becomes_a_float32_net():
    net, x = skip()
    model = convert(net)
    output = ep.to_snntorch(model, 6)(x)
    torch.testing.assert_close(ep.to_snntorch(model.double(), 6)(x), output)


@BOTH
def test_another_activation_is_refused(deploy):
    net, x = skip()
    with pytest.raises(ValueError, match=r"layer 0 .* hard sigmoid .* activation=\"hard_sigmoid\""):
        deploy(convert(net, activation="sigmoid"))
    deploy(convert(net, activation="hard_sigmoid"), 2)(x)


@BOTH
def test_recurrent_weights_are_refused(deploy):
    recurrent = [nn.Linear(6, 5), snn.RLeaky(0.5, linear_features=5, init_hidden=True), nn.Linear(5, 2)]
    with pytest.raises(ValueError, match=r"connection 0 -> 0 .* feedback=True; .*snn.Leaky in place of snn.RLeaky"):
        deploy(convert(nn.Sequential(*recurrent)))
    model = convert(nn.Sequential(*recurrent))
    assert deploy(model, 2, feedback=True)(torch.rand(3, 6)).shape == (3, 2)
    recurrent[1] = leaky()
    assert deploy(convert(nn.Sequential(*recurrent)), 2)(torch.rand(3, 6)).shape == (3, 2)


def test_a_strong_feedback_is_warned_of():
    net, x = skip()
    model = convert(net, feedback=0.5)
    with pytest.warns(UserWarning, match="feedback is 0.5, and a forward loop has none") as caught:
        plain = ep.to_snntorch(model, 50)
    assert Path(caught[0].filename) == Path(__file__)
    assert (plain(x) - model(x)).norm() > 0.02 * model(x).norm()
    ep.to_snntorch(model.variant(feedback=0.02), 200)  # without a warning


@BOTH
def test_sizes_of_a_concatenation_that_are_not_known(deploy):
    net, x = dense()
    model = convert(net)
    with pytest.raises(ValueError, match=r"cat.* cannot be written out: the sizes .* call it once \(model\(x\)\)"):
        deploy(model)
    model(x)
    assert deploy(model, 2)(x).shape == (6, 5)


@BOTH
def test_wrong_arguments(deploy):
    net, _ = skip()
    with pytest.raises(TypeError, match="a Skip was given; expected a ConvergentNetwork"):
        deploy(net)
    with pytest.raises(ValueError, match="num_steps is 0"):
        deploy(convert(net), 0)
    with pytest.raises(TypeError, match=r"num_steps is 2\.5"):
        deploy(convert(net), 2.5)


def lateral():
    return nn.Sequential(
        *(nn.Linear(12, 9), snn.RLeaky(0.5, linear_features=9, init_hidden=True), nn.Linear(9, 7), leaky()),
        nn.Linear(7, 4),
    ), torch.rand(6, 12)


def strided():
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), leaky(0.9), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), leaky()),
        *(nn.AvgPool2d(2), nn.Conv2d(6, 4, 2), nn.AvgPool2d(2, 1), leaky(1.1)),
        *(nn.Flatten(), nn.Linear(4, 6), leaky(), nn.Linear(6, 4)),
    )
    return net, torch.rand(6, 1, 15, 15)


@BOTH
@pytest.mark.parametrize("make", [convolutional, strided, skip, lateral])
def test_with_the_feedback_the_rates_are_those_of_any_network(make, deploy):
    net, x = make()
    model = convert(net, feedback=0.3, relaxation=ep.Relaxation(100))
    if make is lateral:
        with torch.no_grad():
            net[1].recurrent.weight.mul_(0.3)
    settled, equilibrium = model(x, return_equilibrium=True)
    with torch.no_grad():
        output, spikes = deploy(model, 160, spikes=True, feedback=True, input_shape=x.shape[1:])(x)
    for fired, state in zip(spikes, equilibrium.states, strict=True):
        assert (fired[40:].mean(0) - state).abs().mean() < 0.015
    error = (output - settled).norm()
    assert error < 0.04 * settled.norm()
    if make is skip:
        with pytest.warns(UserWarning, match="feedback=True"):
            alone = deploy(model, 160)
        assert (alone(x) - settled).norm() > 3 * error  # it matters


def test_a_feedback_needs_nothing_of_this_package(tmp_path):
    net, x = convolutional()
    plain = ep.to_snntorch(convert(net), 4, feedback=True, input_shape=(1, 10, 10))
    assert "ep_plugin" not in plain.code
    assert not any(type(m).__module__.startswith("ep_plugin") for m in plain.modules())
    assert any(isinstance(m, nn.ConvTranspose2d) for m in plain.modules())
    torch.save(plain, tmp_path / "net.pt")
    assert b"ep_plugin" not in (tmp_path / "net.pt").read_bytes()
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), plain(x))


def test_a_feedback_that_cannot_be_written_out():
    net, x = pooled_by_maximum()
    model = convert(net)
    with pytest.raises(ValueError, match=r"feedback of the connection 0 -> 1 .*MaxPool.* leave feedback=True out"):
        ep.to_snntorch(model, 4, feedback=True, input_shape=(1, 10, 10))
    assert ep.to_snntorch(model, 4)(x).shape == (6, 5)
    with pytest.raises(ValueError, match=r"shape of an input cannot be told .*input_shape=\(1, 28, 28\)"):
        ep.to_snntorch(convert(convolutional()[0]), 4, feedback=True)
    with pytest.raises(TypeError, match=r"feedback is 0\.1; expected True or False"):
        ep.to_norse(model, 4, feedback=0.1)


class Methods(nn.Module):
    """Methods of tensors before the first neuron, between neurons and behind the last one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 3)
        self.one, self.two = (snn.Leaky(0.9, init_hidden=True) for _ in range(2))

    def forward(self, x):
        h = self.one(self.first(x.flip(-1)))
        h = self.two(self.second(h.mean((2, 3))))
        return self.last(h).flip(1).sum(1, keepdim=True)


@pytest.mark.parametrize("deploy", [ep.to_snntorch, ep.to_norse])
def test_methods_of_tensors_are_written_out(deploy):
    torch.manual_seed(0)
    model, x = ep.convert(Methods(), encoder="graded").eval(), torch.rand(4, 1, 6, 6)
    torch.testing.assert_close(deploy(model, num_steps=400)(x), model(x), atol=5e-3, rtol=0)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.lif, self.last = nn.Linear(8, 6), snn.Leaky(0.9, init_hidden=True), nn.Linear(6, 3)

    def forward(self, x):
        bright = torch.where(condition=x > 0.5, input=x, other=torch.mul(input=x, other=0.5))
        return self.last(self.lif(self.first(bright)))


def test_functions_whose_arguments_have_names_are_written_out():
    torch.manual_seed(0)
    model, x = ep.convert(Keywords(), encoder="graded").eval(), torch.rand(4, 8)
    torch.testing.assert_close(ep.to_snntorch(model, num_steps=400)(x), model(x), atol=5e-3, rtol=0)


class AfterSum(nn.Module):
    """A module behind a sum of spikes: two connections with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(n, m) for n, m in ((8, 6), (6, 6), (6, 5), (5, 3)))
        self.one, self.two, self.three = (snn.Leaky(0.9, init_hidden=True) for _ in range(3))

    def forward(self, x):
        one = self.one(self.first(x))
        return self.last(self.three(self.third(one + self.two(self.second(one)))))


def settled_and_written_out(net, x, deploy):
    model = ep.convert(net, encoder="graded").eval()
    torch.testing.assert_close(deploy(model, 100)(x), model(x), atol=1e-2, rtol=0)


def pruned(module):
    return prune.l1_unstructured(module, "weight", 0.5)


def pruned_for_good(module):
    return prune.remove(pruned(module), "weight")


HOOKED = [
    (pruned, pruned_for_good),
    (weight_norm, lambda module: remove_weight_norm(weight_norm(module))),
    (spectral_norm, lambda module: remove_spectral_norm(spectral_norm(module))),
]


def with_a_part_changed(part, change):
    torch.manual_seed(0)
    net = AfterSum().eval()
    change(getattr(net, part))
    return net


@BOTH
@pytest.mark.parametrize(("change", "settled"), HOOKED)
@pytest.mark.parametrize("part", ["first", "third", "last"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_hooks_make_are_written_out_as_they_are(part, change, settled, deploy):
    net, other = with_a_part_changed(part, change), with_a_part_changed(part, settled)
    x = torch.rand(4, 8)
    for options in ({}, {"feedback": True, "input_shape": (8,)}):
        plain, expected = (deploy(ep.convert(n), 6, **options) for n in (net, other))
        assert torch.equal(plain(x), expected(x))
        assert plain.state_dict().keys() == expected.state_dict().keys()
        assert not any(m._forward_pre_hooks for m in plain.modules())
    assert getattr(net, part)._forward_pre_hooks


def test_a_weight_that_was_trained_after_pruning_is_written_out():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Linear(8, 6), leaky(), pruned(nn.Linear(6, 5)), leaky(), nn.Linear(5, 3)),
        torch.rand(4, 8),
    )
    ep.convert(net)(x)
    with torch.no_grad():
        net[2].weight_orig.mul_(-1)
    expected = net[2].weight_orig * net[2].weight_mask
    plain = ep.to_snntorch(ep.convert(net).eval(), 4)
    assert any(torch.equal(m.weight, expected) for m in plain.modules() if isinstance(m, nn.Linear))
    with pytest.raises(ValueError, match=r"weight a hook makes.*prune.remove\(module, 'weight'\)"):
        ep.convert(net, feedback_weights="separate")
    prune.remove(net[2], "weight")
    ep.convert(net, feedback_weights="separate")


@BOTH
def test_a_parametrized_weight_behind_a_sum_is_written_out(deploy):
    torch.manual_seed(0)
    net = AfterSum()
    parametrize.register_parametrization(net.third, "weight", CenteredWeight())
    settled_and_written_out(net, torch.rand(4, 8), deploy)


class View(nn.Module):
    """Flattens by view(-1, n), in the loop or in a module."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x.view(-1, self.size)


class Flattening(nn.Module):
    def __init__(self, first, size, inline):
        super().__init__()
        self.first, self.second, self.last = first, nn.Linear(size, 6), nn.Linear(6, 3)
        self.one, self.two, self.view, self.inline = snn.Leaky(0.9), snn.Leaky(0.9), View(size), inline

    def forward(self, x):
        a, b = self.one.reset_mem(), self.two.reset_mem()
        for _ in range(5):
            s, a = self.one(self.first(x), a)
            s = s.view(-1, self.view.size) if self.inline else self.view(s)
            s, b = self.two(self.second(s), b)
            out = self.last(s)
        return out


@BOTH
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("image", [True, False])
def test_view_between_neurons_is_written_out(image, inline, deploy):
    torch.manual_seed(0)
    first, size, x = (
        (nn.Conv2d(1, 4, 2), 36, torch.rand(4, 1, 4, 4)) if image else (nn.Linear(8, 12), 12, torch.rand(4, 8))
    )
    settled_and_written_out(Flattening(first, size, inline), x, deploy)
