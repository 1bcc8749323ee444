"""How a forward reads the steps of its input: understood with their axis, or refused."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from test_tracing import Net
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "relaxation": ep.Relaxation(60, step_size=1.0)}


class Timed(Net):
    """A net whose loop over steps is a function of it and the input."""

    def __init__(self, forward):
        super().__init__()
        self.loop = forward
        self.norm = nn.BatchNorm1d(6)
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(20))

    def step(self, current):
        return self.out(self.lif2(self.fc2(self.lif1(current)[0]))[0])

    def forward(self, x):
        return self.loop(self, x)


def refused(forward, match, **options):
    with pytest.raises(ValueError, match=match):
        ep.convert(Timed(forward), **options)


def mean(net, steps):
    return torch.stack([net.step(net.fc1(x_t)) for x_t in steps]).mean(0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_axis_of_the_steps_is_the_models(axis):
    """One step's input without it; all of them with it, and every frame counts."""
    net = Timed(lambda self, x: mean(self, (x.select(axis, t) for t in range(x.size(axis)))))
    with pytest.warns(
        ep.ConversionWarning, match="no time axis" + (rf" \(axis {axis} of the model's\)" if axis else "")
    ):
        one = ep.convert(net, **GRADED)
    assert one.time_axis == axis
    x = torch.rand(4, 8)
    every = ep.convert(net, **GRADED, time_varying=True)
    frames = torch.stack([x] * 20, axis)
    torch.testing.assert_close(every(frames), one(x))
    for t in range(12, 20):  # the gradient is that of the last half
        changed = frames.clone()
        changed.select(axis, t).zero_()
        assert not torch.equal(every(changed), every(frames))
    assert not torch.equal(every(frames), every.variant(time_axis=0)(frames.movedim(axis, 0) / 2))


def test_a_wrong_time_axis_is_refused_at_the_door():
    model = ep.convert(Timed(lambda self, x: mean(self, x.unbind(1))), time_varying=True)
    with pytest.raises(ValueError, match=r"shape \[20, 4, 9\]; expected \[batch, time, 8\]"):
        model(torch.rand(20, 4, 9))
    with pytest.raises(TypeError, match=r"time_axis is 1\.5"):
        model.variant(time_axis=1.5)


REFUSED = {
    "lone": (lambda self, x: self.step(self.fc1(x[0])), r"an index of the input: it reads \[0\] along axis 0.*loop"),
    "last": (lambda self, x: self.step(self.fc1(x[-1])), r"an index of the input: it reads \[-1\] along axis 0"),
    "every second": (lambda self, x: mean(self, (x[t] for t in range(0, x.size(0), 2))), r"it reads the steps 0, 2, 4"),
    "from the second": (lambda self, x: mean(self, (x[t] for t in range(1, x.size(0)))), r"it reads the steps 1, 2"),
    "all but one": (
        lambda self, x: mean(self, (x[t] for t in range(x.size(0) - 1))),
        "some of its input's steps only",
    ),
    "half": (lambda self, x: mean(self, (x[t] for t in range(x.size(0) // 2))), "some of its input's steps only"),
    "backwards": (lambda self, x: mean(self, reversed(x)), r"it reads the steps 36, 35"),
    "flipped": (lambda self, x: mean(self, x.flip(0)), r"an index of what 'flip' makes of the whole input.*one step"),
    "a slice": (lambda self, x: mean(self, x[3:]), r"an index of the input, slice\(3"),
    "differences": (
        lambda self, x: mean(self, (x[t] - x[max(t - 1, 0)] for t in range(x.size(0)))),
        r"'lif1' \(Leaky\) receives something that differs between steps: an index of the input",
    ),
    "two at once": (
        lambda self, x: mean(self, (x[t] + x[t + 1] for t in range(x.size(0) - 1))),
        "an index of the input",
    ),
    "the first beside each": (
        lambda self, x: mean(self, (x[t] + x[0] for t in range(x.size(0)))),
        "receives something that differs between steps",
    ),
    "the first step": (
        lambda self, x: mean(self, (x[t] if t == 0 else 2 * x[t] for t in range(x.size(0)))),
        r"'lif1' \(Leaky\) receives something that differs between steps",
    ),
    "a late step": (
        lambda self, x: mean(self, (x[t] if t < 20 else 2 * x[t] for t in range(x.size(0)))),
        r"differs between steps",
    ),
    "norms a step": (
        lambda self, x: torch.stack([self.step(self.norms[t](self.fc1(x))) for t in range(20)]),
        r"differs between steps: 'norms.0' at one step, 'norms.1' at another",
    ),
    "a norm of all": (
        lambda self, x: torch.stack([self.step(h) for h in self.norm(self.fc1(x).transpose(1, 2)).unbind(2)]),
        r"an index of what 'norm' gives that differs between the steps; apply it to one step, inside the loop",
    ),
    "weights a step": (
        lambda self, x: sum(0.9**t * self.step(self.fc1(x[t])) for t in range(x.size(0))),
        r"the output depends on a size of the input.*example_input=x",
    ),
    "steps as samples": (
        lambda self, x: torch.cat([self.step(self.fc1(x)) for _ in range(5)]),
        r"concatenation along the batch",
    ),
    "one number": (lambda self, x: torch.stack([self.step(self.fc1(x)) for _ in range(5)]).mean(), r"over one axis"),
    "a record of neurons and steps": (
        lambda self, x: torch.stack([self.step(self.fc1(x)) for _ in range(5)], 1).cumsum(1),
        r"all time steps at once.*one step",
    ),
    "filled in part": (
        lambda self, x: _filled_in_part(self, x),
        r"of which forward fills some places only.*torch.stack",
    ),
}


def _filled_in_part(net, x):
    out = torch.zeros(30, 4, 3)
    for t in range(20):
        out[t] = net.step(net.fc1(x[t]))
    return out.mean(0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_step_like_the_others_is_refused(name):
    forward, match = REFUSED[name]
    refused(forward, match)


def test_the_ways_out():
    """Inside the loop, or with an example of the input."""
    ep.convert(Timed(lambda self, x: torch.stack([self.step(self.norm(self.fc1(x_t))) for x_t in x.unbind(1)])))
    weighted = Timed(REFUSED["weights a step"][0])
    model = ep.convert(weighted, **GRADED, example_input=torch.rand(20, 4, 8))
    plain = ep.convert(Timed(lambda self, x: mean(self, x)), **GRADED)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    x = torch.rand(4, 8)
    torch.testing.assert_close(model(x), plain(x) * sum(0.9**t for t in range(20)))


def test_places_of_another_axis_than_the_first_are_functions_of_the_input():
    """Two channels to two layers: a sample stays a sample, and what is left out is told."""

    class Channels(Net):
        def forward(self, x):
            return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x[:, 0]))[0]) + self.fc1(x[:, 1]))[0])

    with pytest.warns(ep.ConversionWarning, match="of the input's axis 1 it reads only place 0"):
        model = ep.convert(net := Channels(), **GRADED | {"feedback": 1e-7})
    x = torch.rand(3, 2, 8)
    r1 = net.fc1(x[:, 0]).clamp(0, 1)
    torch.testing.assert_close(model(x), net.out((net.fc2(r1) + net.fc1(x[:, 1])).clamp(0, 1)), rtol=0, atol=1e-5)


def test_an_index_of_features_is_no_index_of_steps():
    """Behind a linear layer, which mixes features: it shows when an input comes; an example tells before."""

    class Features(Net):
        def forward(self, x):
            drive = self.fc1(x)
            spikes, _ = self.lif1(drive[:, :6].relu())
            return self.out(self.lif2(self.fc2(spikes) + drive[:, :1].expand(-1, 6))[0])

    with pytest.warns(ep.ConversionWarning, match="of the input's axis 1 it reads only place 0"):
        model = ep.convert(net := Features(), **GRADED | {"feedback": 1e-7})
    x = torch.rand(8, 8)
    reason = r"shape \[8, 8\] has no axis of steps, .* index \[0\] of axis 1 .* convert\(net, example_input=x\)"
    with pytest.raises(ValueError, match=reason):
        model(x)
    model = ep.convert(net, **GRADED | {"feedback": 1e-7}, example_input=x)
    r1 = net.fc1(x).relu().clamp(0, 1)
    torch.testing.assert_close(model(x), net.out((net.fc2(r1) + net.fc1(x)[:, :1]).clamp(0, 1)), rtol=0, atol=1e-5)


def test_an_example_makes_sizes_true():
    def forward(self, x):
        assert x.dim() == 3
        assert x.shape[2] == 8
        x = x.transpose(0, 1) if x.size(0) < x.size(1) else x
        return mean(self, x)

    refused(forward, r"Timed cannot be traced: it asks for the number of axes.*example_input=x\).*assert x.dim\(\)")
    model = ep.convert(Timed(forward), **GRADED, example_input=torch.rand(4, 20, 8))
    assert model.time_axis == 1
    assert ep.convert(Timed(forward), example_input=torch.rand(20, 4, 8)).time_axis == 0
    refused(lambda self, x: mean(self, (x[t] for t in range(10))), "first 10 of 20", example_input=torch.rand(20, 4, 8))
    one = ep.convert(Timed(lambda self, x: mean(self, x.unbind(1))), example_input=torch.rand(4, 1, 8))
    assert one.time_axis == 1
    over = Timed(lambda self, x: torch.stack([self.step(self.fc1(x_t)) for x_t in x], 1).mean(-2))
    with pytest.raises(ValueError, match=r"mean\(\) over axis -2, of which it is not known.*example_input"):
        ep.convert(over)
    ep.convert(over, example_input=torch.rand(20, 4, 8))


def test_examples_are_checked():
    net = Timed(lambda self, x: self.step(self.fc1(x)))
    for bad in ([1.0], torch.zeros(2, 8, dtype=torch.int64)):
        with pytest.raises(TypeError, match="example_input"):
            ep.convert(net, example_input=bad)
    for bad in (torch.rand(8), torch.rand(0, 8)):
        with pytest.raises(ValueError, match="example_input has the shape"):
            ep.convert(net, example_input=bad)


def test_values_decide_nothing_even_with_an_example():
    def forward(self, x):
        return self.step(self.fc1(x if x.sum() > 0 else -x))

    refused(
        forward, r"a value that depends on the input decides.*without neurons.*line \d+", example_input=torch.rand(4, 8)
    )

    class Signed(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    net = Timed(lambda self, x: self.step(self.fc1(self.signed(x))))
    net.signed, x = Signed(), torch.rand(4, 8)
    model = ep.convert(net, **GRADED)
    torch.testing.assert_close(model(-x), model(x))


def test_a_sum_over_unknown_steps_is_their_mean_and_that_is_told():
    total = Timed(lambda self, x: sum(self.step(self.fc1(x_t)) for x_t in x))
    with pytest.warns(ep.ConversionWarning, match="a sum over the input's steps.*returns the mean"):
        model = ep.convert(total, **GRADED)
    x = torch.rand(4, 8)
    known = ep.convert(total, **GRADED, example_input=torch.rand(20, 4, 8))
    torch.testing.assert_close(known(x), 20 * model(x))
    refused(lambda self, x: self.out(sum(self.lif1(self.fc1(x_t))[0] for x_t in x)), "the output depends on a size")


def test_a_module_of_ones_own_may_reduce_the_record():
    class Rates(nn.Module):
        def forward(self, record):
            return F.relu(record).mean(0)

    net = Timed(lambda self, x: self.rates(torch.stack([self.step(self.fc1(x)) for _ in range(5)])))
    net.rates = Rates()
    plain = Timed(lambda self, x: F.relu(self.step(self.fc1(x))))
    plain.load_state_dict(net.state_dict())
    x = torch.rand(4, 8)
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), ep.convert(plain, **GRADED)(x))


def test_what_is_written_and_read_again():
    """A preallocated record is read where it was written, and not the zeros that it was made of."""

    def filtered(self, x):
        out = torch.zeros(4, 5, 3)
        out[:, 0] = self.step(self.fc1(x))
        for t in range(1, 5):
            out[:, t] = 0.5 * out[:, t - 1] + self.step(self.fc1(x))
        return out[:, -1]

    net, x = Timed(filtered), torch.rand(4, 8)
    plain = Timed(lambda self, x: self.step(self.fc1(x)) * sum(0.5**t for t in range(5)))
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), ep.convert(plain, **GRADED)(x))

    def overwritten(self, x):
        h = self.fc1(x)
        h[:, 0] = 0
        return self.step(h)

    refused(overwritten, "'lif1' .* depends on a value that forward writes into.*make a new one")


def test_layer_after_layer():
    """A whole record goes from one layer to the next."""

    class Layered(Net):
        def forward(self, x):
            first = torch.stack([self.lif1(self.fc1(x_t))[0] for x_t in x.unbind(1)], 1)
            second = [self.lif2(h)[0] for h in self.fc2(first).unbind(1)]
            return self.out(torch.stack(second, 1)).mean(1)

    net, x = Layered(), torch.rand(4, 8)
    expected = ep.convert(nn.Sequential(net.fc1, net.lif1, net.fc2, net.lif2, net.out), **GRADED)(x)
    torch.testing.assert_close(ep.convert(net, **GRADED)(x), expected)


def test_integrators_over_time_are_a_record():
    """A membrane that never resets, at every step."""
    net = Timed(lambda self, x: torch.stack([self.li(self.step(self.fc1(x_t)))[1] for x_t in x]).amax(0))
    net.li = snn.Leaky(beta=0.5, reset_mechanism="none")
    with pytest.warns(ep.ConversionWarning, match="the value that each step has"):
        model = ep.convert(net, **GRADED)
    plain = Timed(lambda self, x: 2 * self.step(self.fc1(x)))
    plain.load_state_dict(net.state_dict(), strict=False)
    x = torch.rand(4, 8)
    torch.testing.assert_close(model(x), ep.convert(plain, **GRADED)(x))


def test_shapes_are_known_behind_modules_and_parameters():
    """Modules in modules, a recurrent one, weights used by hand."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.deep = nn.GRU(8, 8, batch_first=True), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

        def forward(self, x):
            return self.deep(self.rnn(x)[0][:, -1])

    def forward(self, x):
        h = torch.einsum("bi,oi->bo", self.inner(x), self.fc1.weight)
        assert h.shape == (4, 6)
        return self.step(h)

    net, x = Timed(forward), torch.rand(4, 5, 8)
    net.inner = Inner()
    net.eval()
    with pytest.raises(ValueError, match=r"compares the shape.*example_input=x.*assert h.shape"):
        ep.convert(net)
    model = ep.convert(net, **GRADED | {"feedback": 1e-7}, example_input=x).eval()
    r1 = (net.inner(x) @ net.fc1.weight.T).clamp(0, 1)
    expected = net.out(net.fc2(r1).clamp(0, 1))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    refused(lambda self, x: self.step(self.fc1(x[:, 0]).view(2, -1)), "mixes samples", example_input=x)
