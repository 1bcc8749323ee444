"""Forwards that are refused: the place, the reason, and each way out that the refusal names, followed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from ways_out import STEPS, X, of, with_part, works

import ep_plugin as ep


class Kept(nn.Module):
    """A factor that is kept in the module."""

    def forward(self, x, factor=3):
        return factor * x


def written(net, x):
    h = net.a(x)
    h[:, :2] = 0
    return net.out(net.n(h)[0])


def masked(net, x):
    h = net.a(x)
    return net.out(net.n(torch.where(torch.arange(6) < 2, 0.0, h))[0])


def rest_alone(net, x):
    h = net.a(x)
    return net.out(net.n(torch.cat([0 * h[:, :2], h[:, 2:]], 1))[0])


def filled_in_blocks(net, x):
    out = torch.zeros(4, 5, 3)
    for t in range(5):
        out[:2, t] = net.step(x)[:2]
    return out.mean(1)


def filled_half(net, x):
    out = torch.zeros(8, 4, 3)
    for t in range(5):
        out[t] = net.step(x)
    return out.mean(0)


def stacked(net, x):
    record = []
    for _ in range(5):
        record.append(net.step(x))
    return torch.stack(record).mean(0)


def two_axes(net, x):
    for t in range(5):
        s, r = net.n(net.a(x[:, t]))[0], net.m(net.a(x[t]))[0]
    return net.out(s + r)


def one_axis(net, x):
    for x_t in x:
        s, r = net.n(net.a(x_t))[0], net.m(net.a(x_t))[0]
    return net.out(s + r)


def unrolled(net, x):
    for x_t in x:
        output = net.step(x_t)
    return output


def some(net, x):
    for t in range(x.size(0) // 2):
        output = net.step(x[t])
    return output


def weighted(net, x):
    return sum(0.9**t * net.step(x_t) for t, x_t in enumerate(x))


EXAMPLE = {"example_input": X}
SIZES = r"example_input=x\)"

# What is refused, what the refusal says, and every way out of it: a net, or a net and options of `convert`.
WAYS_OUT = {
    "a change in place": (
        of(written),
        r"'n' \(Leaky\) depends on a value that forward writes into; make a new one",
        [of(masked), of(rest_alone)],
    ),
    "filled in blocks": (
        of(filled_in_blocks),
        "the output depends on .*fills in parts.*append.*torch.stack",
        [of(stacked)],
    ),
    "filled half": (
        of(filled_half),
        "the output depends on .*fills some places only; append.*torch.stack",
        [of(stacked)],
    ),
    "ones of a shape": (
        of(lambda net, x: net.out(net.n((h := net.a(x)) + torch.ones_like(h))[0])),
        r"'n' \(Leaky\) depends on a tensor that forward makes.*as a number \(h \+ 1\), or hold them as a buffer",
        [
            of(lambda net, x: net.out(net.n(net.a(x) + 1)[0])),
            of(lambda net, x: net.out(net.n(net.a(x) + net.shift)[0])),
        ],
    ),
    "zeros of a shape": (
        of(lambda net, x: net.out(net.n(torch.maximum(h := net.a(x), torch.zeros_like(h)))[0])),
        r"'n' \(Leaky\) depends on zeros that forward makes.*hold them as a buffer.*the number 0",
        [
            of(lambda net, x: net.out(net.n(torch.maximum(net.a(x), net.shift))[0])),
            of(lambda net, x: net.out(net.n(net.a(x).clamp(min=0))[0])),
        ],
    ),
    "a record in a neuron": (
        of(lambda net, x: net.behind(torch.stack([net.b(net.first(x)) for _ in range(5)]))),
        r"'m' \(Leaky\) depends on a record of all time steps.*call it inside the loop",
        [of(stacked)],
    ),
    "a neuron's spikes and state": (
        of(lambda net, x: net.out(net.m(net.b(net.n(net.a(x))))[0])),
        r"'m' \(Leaky\) depends on several values at once.*spk, mem = neuron\(x\)",
        [of(lambda net, x: net.step(x))],
    ),
    "the maximum and its place": (
        of(lambda net, x: net.behind(torch.stack([net.first(x) for _ in range(5)]).max(0))),
        r"'m' \(Leaky\) depends on several values at once; expected one of them, by an index such as \[0\]",
        [of(lambda net, x: net.behind(torch.stack([net.first(x) for _ in range(5)]).max(0)[0]))],
    ),
    "which step is the largest": (
        of(lambda net, x: torch.stack(net.steps(x)).max(0)[1]),
        r"the output depends on which step has the largest.*expected the value itself, \[0\]",
        [of(lambda net, x: torch.stack(net.steps(x)).max(0)[0])],
    ),
    "the variance over the steps": (
        of(lambda net, x: torch.stack(net.steps(x)).var(0)),
        r"the output depends on var\(\) over the steps.*expected mean, sum, max or min",
        [
            of(lambda net, x, f=f: f(torch.stack(net.steps(x)), 0))
            for f in (torch.mean, torch.sum, torch.amax, torch.amin)
        ],
    ),
    "all axes at once": (
        of(lambda net, x: torch.stack(net.steps(x)).mean()),
        r"mean\(\) of all steps and samples together; expected it over one axis, mean\(dim=0\)",
        [of(lambda net, x: torch.stack(net.steps(x)).mean(dim=0))],
    ),
    "an axis from the end": (
        of(lambda net, x: torch.stack(net.steps(x)).mean(-3)),
        r"mean\(\) over axis -3, of which it is not known.*count axes from the first, or convert\(net, example",
        [
            of(lambda net, x: torch.stack(net.steps(x)).mean(0)),
            (of(lambda net, x: torch.stack(net.steps(x)).mean(-3)), EXAMPLE),
        ],
    ),
    "a step that is not there": (
        of(lambda net, x: torch.stack(net.steps(x))[7]),
        r"step 7 of a record of 5 steps; expected one of 0\.\.4",
        [of(lambda net, x: torch.stack(net.steps(x))[4])],
    ),
    "no step": (
        of(lambda net, x: torch.stack(net.steps(x))[5:].mean(0)),
        "none of the 5 steps of a record; expected one or more",
        [of(lambda net, x: torch.stack(net.steps(x))[4:].mean(0))],
    ),
    "a record of records": (
        of(lambda net, x: torch.stack([torch.stack(net.steps(x)), torch.stack(net.steps(x))]).mean(0)),
        "what a stack makes of all time steps at once.*apply it to one step, inside the loop",
        [of(lambda net, x: torch.stack([torch.cat([y := net.step(x), y], 1) for _ in range(5)]))],
    ),
    "a function over the steps": (
        of(lambda net, x: torch.stack(net.steps(x)).cumsum(0)[-1]),
        "all time steps at once.*apply it to one step, inside the loop.*or outside of the model",
        [of(lambda net, x: torch.stack(net.steps(x)))],
    ),
    "steps as samples": (
        of(lambda net, x: torch.cat(net.steps(x))),
        "along the batch.*use torch.stack in its place",
        [of(lambda net, x: torch.stack(net.steps(x)))],
    ),
    "the steps in another order": (
        of(lambda net, x: unrolled(net, x.flip(0))),
        "what 'flip' makes of the whole input.*or outside of the model",
        [of(unrolled)],
    ),
    "one step of the input": (
        of(lambda net, x: net.step(x[0])),
        r"an index of the input.*select outside",
        [of(unrolled), of(lambda net, x: net.step(x))],
    ),
    "a slice of the input": (
        of(lambda net, x: torch.stack([net.step(x_t) for x_t in x[3:]])),
        r"an index of the input.*select outside",
        [of(unrolled)],
    ),
    "some steps of the input": (of(some), "reads some of its input's steps only.*Select outside", [of(unrolled)]),
    "steps along two axes": (
        of(two_axes),
        r"in different ways: 5 steps along axis 1 \(n\), 5 steps along axis 0 \(m\)",
        [of(one_axis)],
    ),
    "a number of steps": (
        of(weighted),
        f"the output depends on a size of the input.*{SIZES}",
        [(of(weighted), {"example_input": STEPS})],
    ),
    "both the steps and the whole": (
        of(lambda net, x: [net.n(net.a(x_t) + net.a(x.mean(0))) for x_t in x][-1][0]),
        "both step by step and as a whole; expected one of them",
        [of(unrolled), of(lambda net, x: net.step(x))],
    ),
    "an entry of a dictionary": (
        of(lambda net, x: net.step(x["image"])),
        "an entry of a dictionary, 'image'; expected one tensor as the input",
        [of(lambda net, x: net.step(x))],
    ),
    "an attribute": (
        of(lambda net, x: net.step(x.data)),
        r"'n' \(Leaky\) depends on the attribute 'data' of a value.*x\.detach\(\) for x\.data",
        [of(lambda net, x: net.step(x.detach()))],
    ),
    "a transposed attribute": (
        of(lambda net, x: net.behind(net.b(net.first(x)).unflatten(1, (2, 3)).mT.flatten(1))),
        r"the attribute 'mT' of a value.*x\.transpose\(1, 2\) for x\.mT",
        [of(lambda net, x: net.behind(net.b(net.first(x)).unflatten(1, (2, 3)).transpose(1, 2).flatten(1)))],
    ),
    "a keyword": (
        of(lambda net, x: net.out(net.n(net.a(input=x))[0])),
        r"'a' \(Linear\), which is called by keyword \(input\); expected .* by their position",
        [of(lambda net, x: net.out(net.n(net.a(x))[0]))],
    ),
    "a number beside the signal": (
        with_part(Kept, lambda net, x: net.out(net.part(net.first(x), 3))),
        r"'part' \(Kept\), which is called with 3; expected .*keep constants in the module",
        [with_part(Kept, lambda net, x: net.out(net.part(net.first(x))))],
    ),
    "samples mixed by a view": (
        (of(lambda net, x: net.step(x.view(2, 8, 2).reshape(4, 8))), EXAMPLE),
        r"view\(2, 8, 2\), which mixes samples; expected the batch's size first",
        [(of(lambda net, x: net.step(x.view(4, 8, 1).reshape(4, 8))), EXAMPLE)],
    ),
    "more than one size": (
        of(lambda net, x: net.behind(net.b(net.first(x)).view(x.size(0), x.size(1) - 6, -1).flatten(1))),
        f"it depends on more than one size of the input; write all but the batch's as numbers, or .*{SIZES}",
        [
            of(lambda net, x: net.behind(net.b(net.first(x)).view(x.size(0), 2, -1).flatten(1))),
            (of(lambda net, x: net.behind(net.b(net.first(x)).view(x.size(0), x.size(1) - 6, -1).flatten(1))), EXAMPLE),
        ],
    ),
    "channels that are always dropped": (
        of(lambda net, x: net.behind(F.dropout1d(net.b(net.first(x)), 0.5, True))),
        "it drops channels whatever the mode is; expected training=self.training",
        [of(lambda net, x: net.behind(F.dropout1d(net.b(net.first(x)), 0.5, net.training)))],
    ),
    "an empty range": (
        of(lambda net, x: net.behind(net.b(net.first(x)).clamp(1, 0))),
        r"the range from 1 to 0 is empty; expected a minimum below the maximum",
        [of(lambda net, x: net.behind(net.b(net.first(x)).clamp(0, 1)))],
    ),
}


def made(entry):
    make, options = entry if isinstance(entry, tuple) else (entry, {})
    return make(), options


@pytest.mark.parametrize("case", WAYS_OUT)
def test_each_way_out_is_one(case):
    refused, message, ways = WAYS_OUT[case]
    net, options = made(refused)
    with pytest.raises(ValueError, match=message):
        ep.convert(net, **options)
    for way in ways:
        net, options = made(way)
        works(net, **options)
