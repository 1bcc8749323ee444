"""What counts is what `net(x)` calls, and the original is as it was."""

import builtins
import collections
import functools
import random
import threading

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from test_tracing import Net
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "relaxation": ep.Relaxation(60, step_size=1.0)}


class Plain(Net):
    def forward(self, x):
        return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x))[0]))[0])


def settles_like(net, other, x=None):
    x = torch.rand(4, 8) if x is None else x
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), ep.convert(other, **GRADED)(x))


def doubled(net):
    class Doubled(Net):
        def forward(self, x):
            return Plain.forward(self, 2 * x)

    other = Doubled()
    other.load_state_dict({k: v for k, v in net.state_dict().items() if k in other.state_dict()})
    return other


class Keeping(nn.Module):
    """Keeps values of every kind on itself."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.mem1 = nn.Linear(8, 6), snn.Leaky(beta=0.5), None
        self.spikes, self.by_name, self.kept = [], {"last": [1]}, {"set"}
        self.queue = collections.deque([1, 2], maxlen=2)
        self.nested = ([], {"deep": [3]})
        self.register_buffer("mem", torch.zeros(1, 6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        spk, self.mem = self.lif(self.fc(x), self.mem)
        self.mem1, self.new = spk, spk
        self.spikes.append(spk)
        self.by_name["last"].append(spk)
        self.by_name["new"] = spk
        self.kept.add("more")
        self.queue.append(spk)
        self.nested[0].append(spk)
        self.nested[1]["deep"].clear()
        self.count += 1
        self.lif.reset_mem()
        self.train()
        self.register_forward_hook(lambda *args: None)
        return spk


class Failing(Keeping):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("no")


def everything(net):
    """All that is found on a model, in words and values."""

    def told(value):
        if isinstance(value, torch.Tensor):
            return (id(value), value.tolist())
        if isinstance(value, dict):
            return [(k, told(v)) for k, v in value.items()]
        if isinstance(value, (list, tuple, collections.deque)):
            return [type(value).__name__, *(told(v) for v in value)]
        return repr(value) if not isinstance(value, nn.Module) else id(value)

    return {name: told(vars(m)) for name, m in net.named_modules()}


@pytest.mark.parametrize("kind", [Keeping, Failing])
@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_as_it_was(kind, training):
    net = nn.Sequential(kind(), nn.Linear(6, 3))
    net.train(training)
    random.seed(1)
    torch.manual_seed(1)
    before, draws = everything(net), (random.getstate(), torch.get_rng_state())
    if kind is Failing:
        with pytest.raises(ValueError, match=r"cannot be traced: no \(line"):
            ep.convert(net)
    else:
        ep.convert(net)
    assert everything(net) == before
    assert random.getstate() == draws[0]
    assert torch.equal(torch.get_rng_state(), draws[1])
    if kind is Keeping:
        net(torch.rand(2, 8))
        torch.save(net.state_dict(), collections.namedtuple("_", "write flush")(lambda data: None, lambda: None))


def test_an_instances_own_forward():
    net = Plain()
    net.forward = lambda x: Plain.forward(net, 2 * x)
    settles_like(net, doubled(net))


def test_hooks_are_called():
    net = Plain()
    expected = doubled(net)
    net.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    settles_like(net, expected)
    net = Plain()
    before = ep.convert(net, **GRADED)(x := torch.rand(4, 8))
    net.register_forward_hook(lambda module, args, output: 3 * output)
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), 3 * before)


def test_hooks_of_neurons_and_sequences_are_called():
    net = Plain()
    for neuron in (net.lif1, net.lif2):
        neuron.init_hidden = True
    sequence = nn.Sequential(net.fc1, net.lif1, net.fc2, net.lif2, net.out)
    before, x = ep.convert(sequence, **GRADED)(torch.ones(4, 8)), torch.ones(4, 8)
    sequence.register_forward_hook(lambda module, args, output: 3 * output)
    torch.testing.assert_close(ep.convert(sequence, **GRADED)(x), 3 * before)
    net.lif2.register_forward_hook(lambda module, args, output: 0 * output)
    torch.testing.assert_close(ep.convert(sequence, **GRADED)(x), 3 * net.out.bias.expand(4, 3))


def test_a_neurons_own_forward_is_refused():
    net = Plain()
    net.lif1.forward = functools.partial(net.lif1.forward, mem=None)
    with pytest.raises(ValueError, match=r"the neuron 'lif1' has a forward of its own.*remove it"):
        ep.convert(net)
    del net.lif1.forward
    ep.convert(net)


class Counted(Net):
    def forward(self, x, num_steps):
        return torch.stack([Plain.forward(self, x) for _ in range(num_steps)]).mean(0)


class Keyword(Counted):
    def forward(self, x, *, num_steps=5):
        return super().forward(x, num_steps)


def test_arguments():
    net = Counted()
    with pytest.raises(ValueError, match=r"the argument 'num_steps' of forward.*default.*partial.*num_steps="):
        ep.convert(net)
    plain = Plain()
    plain.load_state_dict(net.state_dict())
    net.forward = functools.partial(net.forward, num_steps=5)
    settles_like(net, plain)
    keyword = Keyword()
    keyword.load_state_dict(net.state_dict())
    settles_like(keyword, plain)

    class Defaults(Net):
        def forward(self, x, mem=None, *rest, scale=1.0, **others):
            return Plain.forward(self, x * scale)

    other = Defaults()
    other.load_state_dict(net.state_dict())
    settles_like(other, plain)


def test_wrappers_are_taken_off():
    net = Plain()
    for wrapped in (nn.DataParallel(net), torch.compile(net), nn.DataParallel(torch.compile(net))):
        settles_like(wrapped, net)
    inside = Plain()
    inside.load_state_dict(net.state_dict())
    inside.fc1, inside.out = torch.compile(inside.fc1), nn.DataParallel(inside.out)
    settles_like(inside, net)
    inside.compile()
    settles_like(inside, net)


def test_scripted_modules_are_refused():
    class Scaled(nn.Module):
        def forward(self, x):
            return 2 * x

    net = Plain()
    net.scaled = torch.jit.script(Scaled())
    with pytest.raises(ValueError, match=r"module 'scaled' is a ScriptModule.*convert the module that it was made of"):
        ep.convert(net)
    with pytest.raises(ValueError, match="the model is a ScriptModule"):
        ep.convert(torch.jit.script(Scaled()))
    net.scaled = Scaled()
    ep.convert(net)


def test_modules_outside_of_the_model_are_refused():
    class Listed(Net):
        def __init__(self, listed):
            super().__init__()
            self.listed = listed([nn.Linear(8, 6)])

        def forward(self, x):
            return self.out(self.lif1(self.listed[0](x))[0])

    with pytest.raises(ValueError, match=r"a Linear that is not among the model's modules.*nn.ModuleList"):
        ep.convert(Listed(list))
    ep.convert(Listed(nn.ModuleList))


def test_a_forward_that_changes_its_weights_is_refused():
    class Clamped(Net):
        def forward(self, x):
            self.fc1.weight.data.clamp_(min=0)
            return Plain.forward(self, x)

    net = Clamped()
    before = net.fc1.weight.clone()
    with pytest.raises(ValueError, match=r"changes the model's parameters in place.*after each step of the optimizer"):
        ep.convert(net)
    assert torch.equal(net.fc1.weight, before)


def test_what_has_no_gradient_in_the_original_is_told():
    class Frozen(Net):
        def forward(self, x):
            with torch.no_grad():
                h = self.fc1(x)
            return self.out(self.lif1(h)[0])

    with pytest.warns(ep.ConversionWarning, match=r"fc1 is called under torch.no_grad\(\), and is trained here"):
        ep.convert(Frozen())


class Reread(Net):
    """Changes a value in place between two uses."""

    def __init__(self, change):
        super().__init__()
        self.change, self.relu = change, nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.fc1(x) - 0.5
        s1, _ = self.lif1(h)
        self.change(self, h)
        s2, _ = self.lif2(2 * h)
        return self.out(s1 + s2)


def _added(net, h):
    h += 0.1


CHANGES = {
    "+=": (_added, lambda h: h + 0.1),
    "mul_": (lambda net, h: h.mul_(0.5), lambda h: h * 0.5),
    "relu_": (lambda net, h: h.relu_(), torch.relu),
    "F.relu": (lambda net, h: F.relu(h, inplace=True), torch.relu),
    "F.relu, by position": (lambda net, h: F.relu(h, True), torch.relu),
    "a module": (lambda net, h: net.relu(h), torch.relu),
    "torch.relu_": (lambda net, h: torch.relu_(h), torch.relu),
    "clamp_": (lambda net, h: h.clamp_(max=0.2), lambda h: h.clamp(max=0.2)),
    "nothing": (lambda net, h: h.mul(3), lambda h: h),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_value_changed_in_place_is_another_one_from_then_on(name):
    """And the old one for those who took it before."""
    change, expected = CHANGES[name]
    net, x = Reread(change), torch.rand(4, 8)
    model = ep.convert(net, **GRADED | {"feedback": 1e-7})
    h = net.fc1(x) - 0.5
    r1, r2 = h.clamp(0, 1), (2 * expected(h)).clamp(0, 1)
    torch.testing.assert_close(model(x), net.out(r1 + r2), rtol=0, atol=1e-5)


def test_what_a_model_keeps_for_its_next_call():
    """Membranes are the neurons' business; spikes that come back, and sums that grow, are not."""

    class Keeps(Net):
        def __init__(self, kept):
            super().__init__()
            self.kept, self.mem, self.last = kept, None, None

        def forward(self, x):
            h = self.fc1(x)
            if self.kept == "spikes" and self.last is not None:
                h = h + self.fc2(self.last)
            spk, self.mem = self.lif1(h, self.mem)
            self.last = spk
            out = self.out(spk)
            if self.kept == "sum":
                self.total = getattr(self, "total", 0) + out
                return self.total
            return out

    ep.convert(Keeps("membrane"))
    with pytest.raises(
        ValueError, match=r"'lif1' \(Leaky\) receives something else the second time.*in the step before"
    ):
        ep.convert(Keeps("spikes"))
    with pytest.raises(ValueError, match=r"what Keeps returns differs from one call to the next.*sum it up outside"):
        ep.convert(Keeps("sum"))


def test_what_neurons_keep_is_read_as_theirs():
    class Attribute(Net):
        def __init__(self, reset):
            super().__init__()
            self.lif2 = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=reset)

        def forward(self, x):
            spk, _ = self.lif1(self.fc1(x))
            self.lif2(self.fc2(spk))
            return self.out(self.lif2.mem)

    with pytest.raises(ValueError, match=r"'lif2' \(Leaky\) is read by its membrane.*reset_mechanism='none'"):
        ep.convert(Attribute("subtract"))
    net, x = Attribute("none"), torch.rand(4, 8)
    model = ep.convert(net, **GRADED | {"feedback": 1e-7})
    expected = net.out(2 * net.fc2(net.fc1(x).clamp(0, 1)))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)


def test_threads_convert_at_the_same_time():
    """Tracing replaces functions of Python and PyTorch, so that one at a time may do it."""

    def work():
        for _ in range(6):
            try:
                ep.convert(Looped())
            except ValueError as error:
                refused.append(error)

    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.out = nn.Linear(8, 6), snn.Leaky(beta=0.5), nn.Linear(6, 3)

        def forward(self, x):
            mem, record = self.lif.init_leaky(), []
            for _ in range(15):
                spk, mem = self.lif(self.fc(x), mem)
                record.append(self.out(spk))
            return torch.stack(record).mean(0)

    refused, before = [], builtins.isinstance
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    assert builtins.isinstance is before
