"""What shows at the first input, where sizes are known: refusals, and each way out followed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from ways_out import Net, X, of, with_part, works

import ep_plugin as ep


def between(function):
    """What the second neuron receives of the first one's spikes."""
    return of(lambda net, x: net.behind(net.b(function(net, net.first(x)))))


# What is refused, what the refusal says, and the ways out.
AT_THE_FIRST_INPUT = {
    "samples in another order": (lambda net, s: s.flip(0), r"flip\(\) between neurons.*expected dimensions other than",
                                 lambda net, s: s.flip(1)),
    "the mean over the batch": (lambda net, s: s - s.mean(0, True), r"mean\(\) between neurons.*each sample",
                                lambda net, s: s - s.mean(1, True).expand(-1, 6)),
    "a dimension that is not there": (lambda net, s: s.transpose(1, 2), r"transpose\(\).* does not fit .*\[batch, 6\]",
                                      lambda net, s: s.unflatten(1, (2, 3)).transpose(1, 2).flatten(1)),
    "parts of other sizes": (lambda net, s: torch.cat([s, s.unsqueeze(2)], 1)[:, :6],
                             r"concatenation of 2 signals before module 'm'.*the same sizes along all others",
                             lambda net, s: torch.cat([s, s], 1)[:, :6]),
    "too many entries": (lambda net, s: torch.cat([s, s], 1), r"0 -> 1 does not fit .*gives 12 entries; expected 6",
                         lambda net, s: torch.cat([s[:, :3], s[:, 3:]], 1)),
    "the wrong size": (lambda net, s: s[:, :5], r"the connection 0 -> 1 does not fit layer 0.*shape \[6\]",
                       lambda net, s: s[:, :6]),
}  # fmt: skip


def test_parts_of_a_sum_are_not_stretched():
    def of_mean(size):
        return of(lambda net, x: net.behind((s := net.first(x)) - s.mean(1, True).expand(-1, size)))()

    with pytest.raises(ValueError, match=r"0 -> 1 gives the shape \[1\]; expected \[6\].*not stretched.*expand"):
        ep.convert(of_mean(-1))(X)
    works(of_mean(6))


@pytest.mark.parametrize("case", AT_THE_FIRST_INPUT)
def test_between_neurons(case):
    refused, message, way = AT_THE_FIRST_INPUT[case]
    model = ep.convert(between(refused)())
    with pytest.raises(ValueError, match=message):
        model(X)
    works(between(way)())


def test_an_input_that_does_not_fit_the_stem():
    net = Net(Net.step)
    with pytest.raises(ValueError, match=r"shape \[4, 7\]; expected \[batch, 8\]"):
        ep.convert(net)(torch.rand(4, 7))
    works(net, torch.rand(4, 8))
    wrong = Net(lambda net, x: net.step(x[:, 1:] * 2))
    with pytest.raises(ValueError, match=r"shape \[4, 8\] does not fit the modules before the first neuron"):
        ep.convert(wrong)(X)
    works(wrong, torch.rand(4, 9))


def joined():
    """Two paths of images, side by side, whose sizes go with those of the input."""

    def run(net, x):
        s = net.n(net.part[0](x))[0]
        h = torch.cat([s.flatten(1), F.adaptive_avg_pool2d(s, 1).flatten(1)], 1)
        return net.m(F.adaptive_avg_pool1d(h, 6))[0]

    return with_part(nn.ModuleList([nn.Conv2d(1, 2, 3)]), run)()


def test_parts_of_a_concatenation_keep_their_places():
    """Inputs of one shape, or a model that is converted for each."""
    small, large = torch.rand(2, 1, 5, 5), torch.rand(2, 1, 7, 7)
    model = ep.convert(joined())
    model(small)
    with pytest.raises(ValueError, match="expected inputs of one shape, or a model that is converted for each"):
        model(large)
    model(small)
    works(joined(), small)
    works(joined(), large)


def test_where_a_part_lies_is_known_after_a_call():
    model = ep.convert(between(lambda net, s: torch.cat([s[:, :3], s[:, 3:]], 1))())
    connection = next(c for c in model.connections if c.source != c.target)
    with pytest.raises(ValueError, match="is not known before the network has seen an input; call it once"):
        connection.shapes((6,))
    model(X)
    assert connection.shapes((6,))[-1] == (6,)


def test_a_pad_of_more_axes_than_modules_know():
    """Before the first neuron any function may stand."""
    x = torch.rand(2, 1, 3, 3)
    works(Net(lambda net, x: net.step(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 0)).flatten(1)[:, :8])), x)
