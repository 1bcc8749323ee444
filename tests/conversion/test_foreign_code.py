"""Forwards that hand values to code which a trace cannot enter: autograd functions, checkpoints, TorchScript, NumPy."""

import copy
import runpy

import pytest
import snntorch as snn
import torch
from snntorch import spikegen, surrogate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ep_plugin.conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 10 * x.abs()) ** 2


class WithoutContext(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clamp(0, 1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


spike = Spike.apply  # as it is often written
FAST_SIGMOID = surrogate.fast_sigmoid()


class Spiking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return spike(x)


class Net(nn.Module):
    """A net with something before the first neuron, between two, and after the last."""

    def __init__(self, before=lambda x: x, between=lambda x: x, after=lambda x: x):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.l2 = nn.Linear(6, 6), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc3 = nn.Linear(6, 3)
        self.functions = (before, between, after)
        self.spiking = Spiking()

    def forward(self, x: Tensor) -> Tensor:
        before, between, after = self.functions
        x = self.l2(between(self.fc2(self.l1(before(self.fc1(x))))))
        return after(self.fc3(x))


def scripted() -> torch.jit.ScriptFunction:
    def twice(x: Tensor) -> Tensor:
        return x * 2

    return torch.jit.script(twice)


FOREIGN = {
    "a spike function": (spike, "autograd function Spike"),
    "a function without ctx": (WithoutContext.apply, "autograd function WithoutContext"),
    "snnTorch's surrogate": (FAST_SIGMOID, "autograd function FastSigmoid"),
    "a checkpoint": (lambda x: checkpoint(torch.relu, x, use_reentrant=False), "calls torch.utils.checkpoint"),
    "a reentrant checkpoint": (lambda x: checkpoint(torch.relu, x, use_reentrant=True), "calls torch.utils.checkpoint"),
    "TorchScript": (lambda x: scripted()(x), "takes real tensors only"),
    "NumPy": (lambda x: torch.from_numpy(x.cpu().numpy()), "takes real tensors only"),
    "a legacy constructor": (lambda x: torch.FloatTensor(x), "takes real tensors only"),
    "a gradient hook": (lambda x: x.register_hook(lambda grad: grad * 0) and x, "a hook on the gradient"),
}


@pytest.mark.parametrize("place", ["before", "between", "after"])
@pytest.mark.parametrize("kind", list(FOREIGN))
def test_foreign_code_is_refused_with_the_reason(kind, place):
    """Autograd functions, checkpoints and TorchScript crashed the interpreter: values said to C code that they were
    tensors."""
    function, reason = FOREIGN[kind]
    with pytest.raises(ValueError, match=reason) as error:
        convert(Net(**{place: function}))
    assert "\n" not in str(error.value)
    assert "(line " in str(error.value)


def test_a_module_without_neurons_may_call_an_autograd_function():
    net = Net()
    net.functions = (lambda x: x, lambda x: x, net.spiking)
    model = convert(net)
    model(torch.rand(4, 8)).sum().backward()
    assert net.fc3.weight.grad.abs().sum() > 0


def test_a_function_without_its_checkpoint_converts():
    model = convert(Net(before=torch.relu))
    assert isinstance(model.stem[1], nn.ReLU)


def test_values_of_a_trace_are_tensors_to_a_forward_and_copied_as_such():
    def asked(x):
        assert isinstance(x, Tensor)
        assert isinstance(x, (int, torch.Tensor))
        assert not isinstance(x, nn.Parameter)
        return copy.deepcopy(copy.copy(x))

    net = Net(before=asked)
    model = convert(net)
    assert [type(m) for m in model.stem] == [nn.Linear]
    assert isinstance(3, int)


def test_a_hook_that_asks_for_the_gradient_first_is_seen():
    def hooked(x):
        if x.requires_grad:
            x.register_hook(lambda grad: grad.clamp(-1, 1))
        return x

    with pytest.raises(ValueError, match="a hook on the gradient"):
        convert(Net(between=hooked))


class Encoding(nn.Module):
    def __init__(self, encode):
        super().__init__()
        self.encode, self.fc, self.lif = encode, nn.Linear(8, 6), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        x, mem, count = self.encode(x), self.lif.init_leaky(), 0
        for t in range(5):
            spk, mem = self.lif(self.fc(x[t]), mem)
            count = count + spk
        return count


@pytest.mark.parametrize(
    ("encode", "reason", "not_said"),
    [
        (lambda x: spikegen.latency(x, num_steps=5, normalize=True, linear=True), "spikegen.latency", "random draw"),
        (lambda x: spikegen.rate(x, num_steps=5), "random draw", "cannot be read"),
    ],
)
def test_only_encoders_that_draw_are_said_to_draw(encode, reason, not_said):
    with pytest.raises(ValueError, match=reason) as error:
        convert(Encoding(encode))
    assert not_said not in str(error.value).split(" (line ")[0]


def test_a_detach_between_neurons_is_refused_as_what_it_is():
    """It is linear; what it does is to stop the gradient."""
    with pytest.raises(ValueError, match="stops the gradient"):
        convert(Net(between=lambda x: x.detach()))
    net = Net()
    for module in (net.fc1, net.fc2):
        module.requires_grad_(False)
    convert(net)(torch.rand(4, 8)).sum().backward()
    assert net.fc1.weight.grad is None
    assert net.fc3.weight.grad is not None


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(8, 6), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem, record = self.lif.init_leaky(), []
        for t in range(x.size(0)):
            spk, mem = self.lif(self.fc(x[t]), mem)
            record.append(spk)
        record = torch.stack(record)
        half = record.size(0) // 2
        return record[half:].mean(0) - 0.5 * record[:half].mean(0)


def test_a_record_may_be_cut_at_a_size():
    """It raised an error of the package's own that is no ValueError."""
    net, x = Halves(), torch.rand(4, 8)
    rate = convert(nn.Sequential(net.fc, snn.Leaky(beta=0.9)))(x)
    torch.testing.assert_close(convert(net)(x), 0.5 * rate, rtol=0, atol=1e-4)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize(("name", "place"), [("", "the model"), ("l1", "module 'l1'"), ("fc2", "module 'fc2'")])
def test_backward_hooks_are_refused_where_no_gradient_passes(register, name, place):
    """They were left out without a word."""
    net = Net()
    getattr(net.get_submodule(name), register)(lambda module, *grads: None)
    with pytest.raises(ValueError, match=f"{place}.* has a backward hook"):
        convert(net)


def test_backward_hooks_count_where_a_gradient_passes_and_on_parameters():
    net, called = Net(), []
    net.fc3.register_full_backward_hook(lambda module, *grads: called.append(module))
    net.fc2.weight.register_hook(lambda grad: grad * 0)
    convert(net)(torch.rand(4, 8)).sum().backward()
    assert called == [net.fc3]
    assert net.fc2.weight.grad.abs().sum() == 0


def test_backward_hooks_in_a_sequence_are_refused_too():
    def lif():
        return snn.Leaky(beta=0.9, init_hidden=True)

    net = nn.Sequential(nn.Linear(8, 6), lif(), nn.Linear(6, 6), lif(), nn.Linear(6, 3))
    handle = net[1].register_full_backward_hook(lambda module, *grads: None)
    with pytest.raises(ValueError, match=r"module '1' \(Leaky\) has a backward hook"):
        convert(net)
    handle.remove()
    convert(net)


def test_forward_hooks_of_neurons_in_a_sequence_count():
    """They were left out without a word, and counted in a class."""

    def lif():
        return snn.Leaky(beta=1.0, reset_mechanism="subtract", init_hidden=True)

    net = nn.Sequential(nn.Linear(8, 6), lif(), nn.Linear(6, 3), lif())
    net[1].register_forward_pre_hook(lambda module, args: (0.5 * args[0],))
    net[3].register_forward_hook(lambda module, args, out: 0.5 * out)
    for module in (net[0], net[2]):
        nn.init.uniform_(module.weight, 0, 0.4)
    x = torch.rand(4, 8)
    with torch.no_grad():
        rate = sum(net(x) for _ in range(400)) / 400
        found = convert(net, encoder="graded", feedback=1e-6)(x)
    torch.testing.assert_close(found, rate, rtol=0, atol=0.02)


def test_the_users_own_line_is_named_in_a_folder_that_is_called_as_a_library(tmp_path):
    folder = tmp_path / "ep_plugin" / "torch"
    folder.mkdir(parents=True)
    (folder / "net.py").write_text("def forward(x):\n    return x if x.sum() > 0 else -x\n")
    names = runpy.run_path(str(folder / "net.py"))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True)

        def forward(self, x):
            return names["forward"](self.lif(self.fc(x)))

    with pytest.raises(ValueError, match=r"line 2: return x if x\.sum\(\) > 0 else -x"):
        convert(Own())
