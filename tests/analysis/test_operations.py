"""Counts of operations against counts made by hand, layer by layer."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.analysis.energy import LOIHI
from ep_plugin.analysis.synapses import Synapses


def leaky(threshold=1.0):
    return snn.Leaky(beta=0.5, threshold=threshold, init_hidden=True)


def chain(*between, inputs=12):
    return nn.Sequential(nn.Linear(inputs, 9), leaky(), *between, leaky(), nn.Linear(7, 4)), torch.rand(5, inputs)


def images(*between, last=7, size=8):
    x = torch.rand(5, 1, size, size)
    first = nn.Conv2d(1, 4, 3)
    wide = nn.Sequential(first, *between, nn.Flatten())(x).shape[1]
    net = nn.Sequential(
        first, leaky(), *between, leaky(), nn.Flatten(), nn.Linear(wide, last), leaky(), nn.Linear(last, 4)
    )
    return net, x


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc0, self.fc1, self.fc2, self.over = nn.Linear(12, 9), nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(9, 7)
        self.lif0, self.lif1, self.lif2, self.out = leaky(), leaky(), leaky(), nn.Linear(7, 4)

    def forward(self, x):
        a = self.lif0(self.fc0(x))
        return self.out(self.lif2(self.fc2(self.lif1(self.fc1(a))) + self.over(a)))


class TwoDriven(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc0, self.fc1, self.again = nn.Linear(12, 9), nn.Linear(9, 7), nn.Linear(12, 7)
        self.lif0, self.lif1, self.out = leaky(), leaky(), nn.Linear(7, 4)

    def forward(self, x):
        return self.out(self.lif1(self.fc1(self.lif0(self.fc0(x))) + self.again(x)))


def pruned():
    net, x = chain(nn.Linear(9, 7))
    with torch.no_grad():
        net[2].weight[:, ::2] = 0
    return net, x


NETS = {
    "linear": lambda: chain(nn.Linear(9, 7)),
    "pruned": pruned,
    "padded": lambda: images(nn.Conv2d(4, 5, 3, padding=1)),
    "strided": lambda: images(nn.Conv2d(4, 5, 3, stride=2, padding=1)),
    "grouped": lambda: images(nn.Conv2d(4, 6, 3, groups=2)),
    "dilated": lambda: images(nn.Conv2d(4, 5, 3, dilation=2, padding=2)),
    "pooled": lambda: images(nn.Conv2d(4, 5, 3), nn.AvgPool2d(2)),
    "pooled before": lambda: images(nn.AvgPool2d(2), nn.Conv2d(4, 5, 2)),
    "pooled and flat": lambda: images(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
    "skip": lambda: (Skip(), torch.rand(5, 12)),
    "recurrent": lambda: (
        nn.Sequential(nn.Linear(12, 9), snn.RLeaky(0.5, linear_features=9, init_hidden=True), nn.Linear(9, 4)),
        torch.rand(5, 12),
    ),
    "two driven": lambda: (TwoDriven(), torch.rand(5, 12)),
}
ENCODERS = ["adaptive_delta", "predictive_sigma_delta", "graded"]


def convert(net, **settings):
    return ep.convert(ep.initialize_(net, 2.0), **settings).eval()


def matrix(connection, shape):
    """Which synapses there are, `[out, in]`."""
    units = torch.eye(torch.Size(shape).numel()).view(-1, *shape)
    with torch.no_grad():
        columns = connection.module(units) - connection.module(torch.zeros_like(units[:1]))
    return (columns.flatten(1).T.abs() > 1e-7).double()


def sent(trajectory, l):
    """How often each neuron has sent, `[steps, B, n]`: spikes, or changes of graded states."""
    if trajectory.spikes is not None:
        return trajectory.spikes[l].flatten(2).abs().double()
    traces = trajectory.traces[l].flatten(2)
    return (torch.diff(traces, dim=0, prepend=torch.zeros_like(traces[:1])) != 0).double()


def by_hand(model, shapes, trajectory, samples):
    """Events and synapses that they reach up and down, a sample, of each layer."""
    found = []
    for l in range(len(model.layers)):
        events, up, down = sent(trajectory, l).sum((0, 1)), 0.0, 0.0
        for c in model.connections:
            there = matrix(c, shapes[c.source])
            up += (events @ there.sum(0)).item() if c.source == l else 0
            down += (events @ there.sum(1)).item() if c.target == l else 0
        found.append((events.sum().item() / samples, up / samples, down / samples))
    return found


def rows(counts, phase):
    return {row.name: row for row in counts.rows if row.phase == phase}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", NETS)
def test_free_and_nudged_phase_by_hand(name, encoder):
    net, x = NETS[name]()
    model, y = (
        convert(net, encoder=encoder, estimator=ep.EquilibriumPropagation(nudging="symmetric")),
        torch.arange(5) % 4,
    )
    equilibrium = model.free_phase(x, record=True)
    nudged = model.nudged_phase(x, y, F.cross_entropy, record=True)
    shapes = [tuple(s.shape[1:]) for s in equilibrium.states]
    counts = ep.count_operations(model, x, y)
    for phase, trajectory in (("free phase", equilibrium.trajectory), ("nudged phase", nudged.trajectory)):
        counted = rows(counts, phase)
        for l, (events, up, down) in enumerate(by_hand(model, shapes, trajectory, len(x))):
            row = counted[f"layer {l}"]
            if encoder == "graded":
                assert row.spikes == row.synaptic_operations == 0
                if phase == "free phase":
                    assert row.multiply_adds == pytest.approx(up + down)
                    assert row.multiply_adds > 0
            elif phase == "free phase" or trajectory.spikes is not None:
                assert row.spikes == pytest.approx(events)
                assert row.synaptic_operations == pytest.approx(up + down)
                assert row.feedback_operations == pytest.approx(down)
                assert row.spikes > 0
    free, nudging = model.steps
    for l, shape in enumerate(shapes):
        size = torch.Size(shape).numel()
        assert rows(counts, "free phase")[f"layer {l}"].neuron_updates == free * size
        assert rows(counts, "nudged phase")[f"layer {l}"].neuron_updates <= 2 * nudging * size


@pytest.mark.parametrize("name", NETS)
def test_dense_products_and_the_update_by_hand(name):
    net, x = NETS[name]()
    model, y = convert(net), torch.arange(5) % 4
    shapes = [tuple(s.shape[1:]) for s in model.free_phase(x).states]
    counts = ep.count_operations(model, x, y)
    update = rows(counts, "weight update")
    if name != "pruned":  # of which a dense evaluation takes the zeros too
        for l in range(len(shapes)):
            synapses = sum(
                matrix(c, shapes[c.source]).sum().item()
                for c in model.connections
                for end in (c.source, c.target)
                if end == l
            )
            assert rows(counts, "free phase")[f"layer {l}"].dense == pytest.approx(model.steps[0] * synapses)
        for c in model.connections:
            made = sum(matrix(d, shapes[d.source]).sum().item() for d in [c])
            assert update[f"{c.source} -> {c.target}"].multiply_adds == pytest.approx(2 * made)
    assert sum(row.weight_updates for row in counts.rows) == sum(p.numel() for p in model.parameters())
    assert update["readout"].multiply_adds == rows(counts, "free phase")["readout"].multiply_adds > 0


def test_synapses_through_the_winners_of_max_pooling():
    net, x = images(nn.Conv2d(4, 5, 3), nn.MaxPool2d(2))
    model = convert(net)
    trajectory = model.free_phase(x, record=True).trajectory
    (connection,) = [c for c in model.connections if not c.is_linear]
    conv, _ = connection.module
    shape = trajectory.traces[0].shape[2:]
    units = torch.eye(shape.numel()).view(-1, *shape)
    there = ((conv(units) - conv.bias.view(-1, 1, 1)).flatten(1).T.abs() > 1e-7).double()  # [conv outputs, in]
    digits = model.encoder.digits
    up = down = 0.0
    for step, trace in enumerate(trajectory.traces[0]):
        made = conv(trace)
        winners = F.max_pool2d(made, 2, return_indices=True)[1].flatten(2)
        at = (torch.arange(5).view(1, 5, 1) * made[0, 0].numel() + winners).flatten(1)  # [B, pooled]
        slots = slice(step * digits, (step + 1) * digits)
        above, below = (trajectory.spikes[l][slots].abs().sum(0).flatten(1).double() for l in (1, 0))
        for b in range(5):
            up += (there[at[b]] @ below[b]).sum().item()
            down += (there[at[b]].sum(1) @ above[b]).item()
    counted = rows(ep.count_operations(model, x), "free phase")
    assert up > 0
    assert counted["layer 0"].synaptic_operations == pytest.approx(up / 5)
    assert counted["layer 1"].feedback_operations == pytest.approx(down / 5)


def test_fan_out_of_a_convolution_at_its_borders():
    """3x3, padded: a corner reaches 4 places, an edge 6, the inside 9, each in two channels; strided: 1, 2 or 4."""
    for stride, expected in ((1, [[8, 12, 12, 8], [12, 18, 18, 12]]), (2, [[2, 4, 2, 2], [4, 8, 4, 4]])):
        connection = ep.Connection(nn.Conv2d(1, 2, 3, stride=stride, padding=1), 0, 1)
        up, down = Synapses(connection.bound(connection.tensors(), (1, 4, 4))).fan_out((1, 4, 4))
        assert up[0, :2].tolist() == expected
        assert down[0].flatten()[0] == 4
        assert up.sum() == down.sum()


def test_a_linear_net_in_numbers():
    """One input, two and one neurons; threshold 1; weights 1: every number by hand."""
    model = ep.ConvergentNetwork(
        nn.Linear(1, 2, bias=False),
        [ep.Layer(), ep.Layer()],
        [ep.Connection(nn.Linear(2, 1, bias=False), 0, 1)],
        nn.Linear(1, 2),
        encoder=ep.AdaptiveDelta(digits=1),
        relaxation=ep.Relaxation(1),
        estimator=ep.EquilibriumPropagation(steps=1),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    counts = ep.count_operations(model, torch.tensor([[0.4], [0.0]]), torch.tensor([0, 1]))
    free, update = rows(counts, "free phase"), rows(counts, "weight update")
    # In the one step the first sample's two neurons send one event each, which reaches one synapse, and the last neuron
    # one, which reaches two. The second sample is silent.
    assert (free["layer 0"].spikes, free["layer 0"].synaptic_operations) == (1.0, 1.0)
    assert (free["layer 1"].spikes, free["layer 1"].synaptic_operations, free["layer 1"].feedback_operations) == (
        0.5,
        1,
        1,
    )
    assert (free["layer 0"].neuron_updates, free["layer 0"].dense) == (2, 2)
    assert (free["stem"].multiply_adds, free["readout"].multiply_adds) == (2, 2)
    assert free["layer 0"].reductions == 1
    assert free["layer 0"].reduction_operands == 2
    assert free["layer 0"].bits == 32 + 1  # the weight of an event, and a sign for each
    assert update["0 -> 1"].multiply_adds == 4
    assert update["0 -> 1"].weight_updates == 2
    assert update["readout"].weight_updates == 4
    assert counts.memory.weights == 4 * (2 + 2 + 4)
    assert counts.memory.inference == 4 * 2 * 3
    assert counts.memory.training == 4 * 5 * 3


def test_what_events_carry():
    net, x = NETS["linear"]()
    for encoder, bits, reduced in (
        (ep.AdaptiveDelta(), 32, True),
        (ep.AdaptiveDelta(event_weight="power_of_two"), 8, True),
        (ep.PredictiveSigmaDelta(), 0, False),
    ):
        model = convert(net, encoder=encoder)
        own = rows(ep.count_operations(model, x), "free phase")["layer 0"]
        assert own.reductions == (model.steps[0] if reduced else 0)
        assert own.bits == pytest.approx(model.steps[0] * bits + (own.spikes if reduced else 0))
    model = convert(net, encoder=ep.AdaptiveDelta(event_weight="fixed"))
    F.cross_entropy(model.train()(x), torch.arange(5) % 4).backward()
    own = rows(ep.count_operations(model, x), "free phase")["layer 0"]
    assert own.reductions == 0
    assert own.bits == pytest.approx(own.spikes)
    assert model.training  # as it was


def test_full_phases_and_backpropagation_through_time():
    net, x = NETS["linear"]()
    y = torch.arange(5) % 4
    full = convert(net, encoder="sigma_delta", estimator=ep.FullPhaseEP(steps=6))
    counts = ep.count_operations(full, x, y)
    free = full.free_phase(x)
    assert rows(counts, "free phase")["layer 0"].spikes == pytest.approx(free.spikes[0].mean().item())
    nudged = rows(counts, "nudged phase")["layer 0"]
    assert nudged.neuron_updates == 2 * 6 * 9  # two phases
    assert 0 < nudged.spikes < nudged.neuron_updates
    assert nudged.synaptic_operations == pytest.approx(7 * nudged.spikes)

    through_time = full.variant(encoder="graded", estimator=ep.BackpropThroughTime())
    counts = ep.count_operations(through_time, x, y)
    steps = through_time.steps[0]
    assert rows(counts, "backward")["layer 0"].multiply_adds == steps * 63
    assert rows(counts, "weight update")["0 -> 1"].multiply_adds == 2 * steps * 63  # up and down
    assert counts.memory.training == counts.memory.backprop > 0
    longer = ep.count_operations(through_time.variant(relaxation=ep.Relaxation(4 * steps)), x, y)
    assert longer.memory.backprop > 2.5 * counts.memory.backprop


def test_everything_stays_as_it_was():
    net, x = NETS["padded"]()
    y = torch.arange(5) % 4
    model = convert(net, encoder="bernoulli").train()
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ep.count_operations(model, x, y)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert all(m.training for m in model.modules())
    net(x)
    membrane = net[1].mem
    ep.count_operations(net, x, y, num_steps=3)
    assert net[1].mem is membrane
    assert not any(m._forward_hooks for m in net.modules())


def test_a_net_with_a_loop_of_its_own_and_norse():
    net, x = NETS["skip"]()
    model = convert(net)
    a, b = (rows(ep.count_operations(deploy(model, 6), x), "forward") for deploy in (ep.to_snntorch, ep.to_norse))
    assert [r.synaptic_operations for r in a.values()] == [r.synaptic_operations for r in b.values()]
    (_, spikes) = ep.to_snntorch(model, 6, spikes=True)(x)
    assert a["layers.0 Leaky"].spikes == pytest.approx(spikes[0].sum().item() / 5)
    import norse.torch as norse

    sequence = norse.SequentialState(nn.Linear(12, 9), norse.LIFBoxCell(), nn.Linear(9, 4))
    counted = rows(ep.count_operations(sequence, 100 * x, num_steps=8), "forward")
    assert counted["1 LIFBoxCell"].neuron_updates == 72
    assert counted["2 Linear"].synaptic_operations == pytest.approx(4 * counted["1 LIFBoxCell"].spikes)
    assert counted["1 LIFBoxCell"].spikes > 0


def test_energy_is_the_operations_times_their_costs():
    net, x = NETS["linear"]()
    counts = ep.count_operations(convert(net), x, torch.arange(5) % 4)
    free = ep.EnergyCosts(multiply_add=0, neuron_update=0, reduction_operand=0, weight_update=0, synaptic_operation=2.0)
    assert counts.energy(free)["inference"] == pytest.approx(2 * counts.inference.synaptic_operations)
    assert counts.energy(LOIHI)["inference"] > counts.energy()["inference"]
    assert counts.energy()["training step"] > counts.energy()["inference"]
    row = counts.rows[1]
    assert counts.table()[1]["energy"] == pytest.approx(
        0.9e-12 * (row.synaptic_operations + row.reduction_operands) + 4.6e-12 * row.neuron_updates
    )
    with pytest.raises(ValueError, match="multiply_add is -1"):
        ep.EnergyCosts(multiply_add=-1)


def test_learnable_thresholds_are_updated():
    net, x = NETS["linear"]()
    net[3] = snn.Leaky(beta=0.5, threshold=torch.ones(7), learn_threshold=True)
    counts = ep.count_operations(convert(net), x, torch.arange(5) % 4)
    assert rows(counts, "weight update")["layer 1"].weight_updates == 7
    assert sum(row.weight_updates for row in counts.rows) == sum(p.numel() for p in net.parameters())


def test_weights_with_parametrizations():
    net, x = chain(nn.Linear(9, 7))
    y = torch.arange(5) % 4
    plain = [ep.count_operations(convert(net), x, y), ep.count_operations(net, x, y, num_steps=3)]
    for k in (0, 2, 4):
        nn.utils.parametrize.register_parametrization(net[k], "weight", nn.Identity())
    assert ep.count_operations(convert(net), x, y).training.dense == plain[0].training.dense
    again = ep.count_operations(net, x, y, num_steps=3)
    assert again.training.dense == plain[1].training.dense
    assert [row.name for row in again.rows] == [row.name for row in plain[1].rows]


def test_the_table_reads():
    net, x = NETS["linear"]()
    text = str(ep.count_operations(convert(net), x, torch.arange(5) % 4))
    lines = text.splitlines()
    for word in ("phase", "synaptic ops", "(feedback)", "neuron updates", "energy (estimate)"):
        assert word in lines[0]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["free phase", "free phase"]
    assert lines[-3].startswith("inference")
    assert lines[-2].startswith("training step")
    assert "BPTT through the same steps would keep" in lines[-1]
    assert "training" not in str(ep.count_operations(convert(net), x))


def test_refusals_and_their_ways_out():
    net, x = NETS["linear"]()
    y, model = torch.arange(5) % 4, convert(net)
    implicit = model.variant(estimator=ep.ImplicitDifferentiation())
    with pytest.raises(ValueError, match=r"ImplicitDifferentiation cannot be counted: it has no phases .* leave y out"):
        ep.count_operations(implicit, x, y)
    assert ep.count_operations(implicit, x).inference.spikes > 0
    assert ep.count_operations(implicit.variant(estimator=ep.EquilibriumPropagation()), x, y).training.spikes > 0
    with pytest.raises(ValueError, match=r"num_steps is 4, .*relaxation=Relaxation\(4\)"):
        ep.count_operations(model, x, num_steps=4)
    assert (
        rows(ep.count_operations(model.variant(relaxation=ep.Relaxation(4)), x), "free phase")["layer 0"].neuron_updates
        == 4 * 9
    )
    gated = nn.Sequential(nn.Bilinear(3, 3, 2))
    with pytest.raises(
        ValueError, match=r"module '0' \(Bilinear\) cannot be counted: it has weights of its own .*nn.Linear"
    ):
        ep.count_operations(gated, x)
    with pytest.raises(TypeError, match="a list; expected a tensor"):
        ep.count_operations(model, [1.0])
    with pytest.raises(TypeError, match=r"given a str; expected an nn\.Module"):
        ep.count_operations("model", x)
