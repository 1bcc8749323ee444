"""States that a forward hands to its neurons: as they were returned, leaked or reset by hand, or changed otherwise."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep

pytestmark = pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")

X = torch.rand(4, 8)


class Loop(nn.Module):
    """`step(net, x, states, total)` in every step; what it returns is the total of the next one."""

    def __init__(self, step):
        super().__init__()
        self.fc, self.rec, self.out, self.back = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.lif, self.hidden = snn.Leaky(beta=1.0), snn.Leaky(beta=1.0, init_hidden=True)
        self.synaptic = snn.Synaptic(alpha=0.8, beta=1.0)
        self.recurrent = snn.RLeaky(beta=1.0, V=0.9, all_to_all=False)
        self.reads = snn.Leaky(beta=0.9, reset_mechanism="none")
        self.reads_hidden = snn.Leaky(beta=0.9, reset_mechanism="none", init_hidden=True, output=True)
        self.cell, self.integrator = norse.LIFCell(), norse.LICell()
        self.step = step

    def forward(self, x):
        self.hidden.reset_mem()
        self.reads_hidden.reset_mem()
        states, total = {}, 0
        for _ in range(5):
            total = self.step(self, x, states, total)
        return total

    def spikes(self, x, states):
        spk, states["m"] = self.lif(self.fc(x), states.get("m"))
        return spk


def membrane(change):
    """A hidden neuron whose membrane is changed by hand."""

    def step(net, x, states, total):
        spk = net.spikes(x, states)
        states["m"] = change(net, states["m"], spk)
        return total + net.out(spk)

    return step


def kept(change):
    """A neuron that keeps its membrane, which is changed by hand."""

    def step(net, x, states, total):
        spk = net.hidden(net.fc(x))
        net.hidden.mem = change(net, net.hidden.mem, spk)
        return total + net.out(spk)

    return step


def read(change):
    """A membrane that is read, and changed by hand."""

    def step(net, x, states, total):
        mem = change(net, states["n"]) if "n" in states else None
        _, states["n"] = net.reads(net.out(net.spikes(x, states)), mem)
        return states["n"]

    return step


def read_kept(net, x, states, total):
    _, mem = net.reads_hidden(net.out(net.spikes(x, states)))
    net.reads_hidden.mem = net.reads_hidden.mem * 0.5
    return mem


def synapse(change):
    def step(net, x, states, total):
        syn = change(states["y"], states["m"]) if "y" in states else None
        spk, states["y"], states["m"] = net.synaptic(net.fc(x), syn, states.get("m"))
        return total + net.out(spk)

    return step


def recurrent(change):
    def step(net, x, states, total):
        spk = change(states["s"]) if "s" in states else None
        states["s"], states["m"] = net.recurrent(net.fc(x), spk, states.get("m"))
        return total + net.out(states["s"])

    return step


def cell(change):
    def step(net, x, states, total):
        state = change(states["spk"], states["q"]) if "q" in states else None
        states["spk"], states["q"] = net.cell(net.fc(x), state)
        return total + net.out(states["spk"])

    return step


def integrator(change):
    def step(net, x, states, total):
        spk = net.spikes(x, states)
        state = change(net, spk, states["v"]) if "v" in states else None
        v, states["v"] = net.integrator(net.out(spk), state)
        return v

    return step


FALL_AWAY = {
    "as returned": membrane(lambda net, mem, spk: mem),
    "reset to zero": membrane(lambda net, mem, spk: mem * (1 - spk)),
    "reset to zero, detached": membrane(lambda net, mem, spk: (1 - spk.detach()) * mem),
    "leak and reset by subtraction": membrane(lambda net, mem, spk: 0.9 * mem - spk * net.lif.threshold),
    "both resets": membrane(lambda net, mem, spk: (0.9 * mem - spk) * (1 - spk)),
    "reset of what it keeps": kept(lambda net, mem, spk: mem * (1 - spk)),
    "reset by where": membrane(lambda net, mem, spk: torch.where(spk > 0, torch.zeros_like(spk), mem)),
    "leak of what it keeps": kept(lambda net, mem, spk: 0.5 * mem),
    "read": read(lambda net, mem: mem),
    "read, detached": read(lambda net, mem: mem.detach().clone()),
    "synapse": synapse(lambda syn, mem: syn),
    "recurrent": recurrent(lambda spk: spk),
    "Norse": cell(lambda spk, state: state),
    "Norse, reset": cell(lambda spk, state: state._replace(v=state.v * (1 - spk))),
    "Norse, put together": cell(lambda spk, s: norse.LIFFeedForwardState(v=s.v.detach(), i=s.i.detach())),
    "Norse, integrator": integrator(lambda net, spk, state: state),
}

REFUSED = {
    "a constant": (membrane(lambda net, mem, spk: (mem + 0.1) * (1 - spk)), "depends on a constant that is added"),
    "a constant between spikes": (membrane(lambda net, mem, spk: mem + 0.5 * (1 - spk)), "a constant that is added"),
    "a constant, kept": (kept(lambda net, mem, spk: mem + (1 - spk) * (spk * 2 + 1)), "a constant that is added"),
    "products of constants": (membrane(lambda net, mem, spk: mem + (1 - spk) * (2 - spk)), "a constant that is added"),
    "one that rests elsewhere": (membrane(lambda net, mem, spk: mem.sigmoid()), r"made by sigmoid\(\)"),
    "winner takes all": (
        membrane(lambda net, m, spk: m - 2 * (spk.sum(1, keepdim=True) - spk)),
        r"made by sum\(\), which is more",
    ),
    "a neighbour": (membrane(lambda net, mem, spk: mem - spk[:, [1, 0, 3, 2, 5, 4]]), r"made by getitem\(\)"),
    "weights, kept": (kept(lambda net, mem, spk: mem - net.rec(spk)), r"depends on module 'rec' \(Linear\)"),
    "winner, kept": (
        kept(lambda net, mem, spk: mem - (spk.sum(1, keepdim=True) - spk)),
        r"made by sum\(\), which is more",
    ),
    "read, leak": (read(lambda net, mem: 0.5 * mem), r"read by its membrane, and forward changes it \(mul\)"),
    "read, clamped": (read(lambda net, mem: mem.clamp(-1, 1)), r"forward changes it \(clamp\)"),
    "read, begun anew": (read(lambda net, mem: net.reads.reset_mem()), "forward begins it anew at every step"),
    "read, kept": (read_kept, r"forward changes it \(mul\)"),
    "synapse anew": (synapse(lambda syn, mem: torch.zeros(4, 6)), "a new state 'syn' at every step"),
    "synapse": (synapse(lambda syn, mem: 0.5 * syn), r"a state 'syn' that forward has changed \(mul\)"),
    "synapse and membrane": (synapse(lambda syn, mem: mem), r"'syn' that forward has changed \(another state\)"),
    "recurrent": (recurrent(lambda spk: -spk), r"a state 'spk' that forward has changed \(neg\)"),
    "Norse": (
        cell(lambda spk, state: state._replace(i=0.5 * state.i)),
        r"a state 'i' that forward has changed \(mul\)",
    ),
    "Norse, anew": (cell(lambda spk, state: None), "a new state 'i' at every step"),
    "integrator": (integrator(lambda net, spk, s: s._replace(v=s.v + net.back(spk))), r"depends on module 'back'"),
    "integrator, anew": (integrator(lambda net, spk, s: None), "a new state 'v' at every step"),
}


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("step", FALL_AWAY.values(), ids=FALL_AWAY)
def test_a_leak_or_a_reset_by_hand_falls_away(step, example):
    model = ep.convert(Loop(step), **({"example_input": X} if example else {}))
    assert model(X).shape == (4, 3)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(("step", "why"), REFUSED.values(), ids=REFUSED)
def test_a_state_that_makes_the_neuron_another_one_is_refused(step, why, example):
    with pytest.raises(ValueError, match=why):
        ep.convert(Loop(step), **({"example_input": X} if example else {}))


@pytest.mark.parametrize("beta", [0.45, 0.9])
def test_the_way_out_of_a_leak_by_hand_is_the_neurons_own(beta):
    torch.manual_seed(0)
    net = Loop(read(lambda net, mem: mem))
    net.reads = snn.Leaky(beta=beta, reset_mechanism="none")
    model = ep.convert(net, encoder="graded")
    rates = ep.convert(nn.Sequential(net.fc, snn.Leaky(beta=1.0, init_hidden=True), net.out), encoder="graded")(X)
    torch.testing.assert_close(model(X), rates / (1 - beta), rtol=1e-4, atol=1e-5)


class Own(nn.Module):
    """A neuron of one's own, whose state goes by a name of its own."""

    def __init__(self):
        super().__init__()
        self.threshold = 1.0

    def forward(self, current, extra=None, membrane=None):
        membrane = current if membrane is None else membrane + current
        spikes = (membrane >= self.threshold).to(current.dtype)
        return spikes, membrane - spikes


@pytest.mark.parametrize("by_name", [True, False])
def test_states_of_a_registered_neuron_are_looked_at_by_any_name(by_name):
    ep.register_neuron(Own, outputs=2)

    def forward(change):
        def step(net, x, states, total):
            mem = change(net, states["m"], states["spk"]) if "m" in states else None
            drive = net.fc(x)
            states["spk"], states["m"] = net.own(drive, membrane=mem) if by_name else net.own(drive, None, mem)
            return total + net.out(states["spk"])

        net = Loop(step)
        net.own = Own()
        return net

    assert ep.convert(forward(lambda net, mem, spk: mem * (1 - spk)))(X).shape == (4, 3)
    with pytest.raises(ValueError, match=r"depends on module 'rec' \(Linear\)"):
        ep.convert(forward(lambda net, mem, spk: mem - net.rec(spk)))
