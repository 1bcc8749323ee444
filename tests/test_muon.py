"""Muon for weights between neurons, AdamW for the rest."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.models import compact_residual


def make(channels=3, kernel=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, kernel), nn.Flatten(), nn.Linear(8 * (6 - kernel) ** 2, 16), nn.Linear(16, 4)
    )


def steps(net, optimizer, n, start=0):
    for k in range(start, start + n):
        x = torch.rand(6, net[0].in_channels, 5, 5, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    return net


def test_a_step_is_that_of_pytorchs_muon_and_adamw():
    net, other = make(), make()
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in (other[0].weight, other[2].weight)]
    muon = torch.optim.Muon(matrices, 0.1, 0.05, momentum=0.6)
    rest = [other[0].bias, other[2].bias, other[3].weight, other[3].bias]
    adamw = torch.optim.AdamW(rest, 5e-3, weight_decay=0.0)
    optimizer = ep.MuonAdamW(net.parameters())
    for k in range(3):
        steps(net, optimizer, 1, k)
        other.zero_grad()
        steps(other, adamw, 1, k)
        for matrix, module in zip(matrices, (other[0], other[2]), strict=True):
            matrix.grad = module.weight.grad.flatten(1)
        muon.step()
        with torch.no_grad():
            for matrix, module in zip(matrices, (other[0], other[2]), strict=True):
                module.weight.copy_(matrix.view_as(module.weight))
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (1, 3), (3, 1), (1, 1)])
def test_the_layout_of_a_convolution_makes_no_difference(channels, kernel):
    """Of one channel, or of one place, both layouts are the same memory."""
    net = make(channels, kernel)
    faster = copy.deepcopy(net).to(memory_format=torch.channels_last)
    expected = steps(net, ep.MuonAdamW(net.parameters()), 3)
    found = steps(faster, ep.MuonAdamW(faster.parameters()), 3)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_it_goes_on_from_its_state():
    net = make()
    optimizer = ep.MuonAdamW(net.parameters())
    steps(net, optimizer, 2)
    again, kept = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    expected = steps(net, optimizer, 2, 2)
    other = ep.MuonAdamW(again.parameters(), lr=0.3)
    other.load_state_dict(kept)
    found = steps(again, other, 2, 2)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_schedule_changes_both_rates():
    net = make()
    optimizer = ep.MuonAdamW(net.parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = copy.deepcopy(net)
    steps(net, optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))


def test_parameters_without_a_gradient_stay():
    net = make()
    net[2].weight.requires_grad_(False)
    before = net[2].weight.clone()
    steps(net, ep.MuonAdamW(net.parameters()), 2)
    assert torch.equal(net[2].weight, before)


def test_nets_of_one_weight_train():
    net = nn.Linear(3, 2)
    optimizer = ep.MuonAdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"params": []}, ValueError, "there is no parameter"),
        ({"params": [1.0]}, TypeError, "a parameter is a float"),
        ({"lr": 0}, ValueError, "lr is 0"),
        ({"adamw_lr": -1}, ValueError, "adamw_lr is -1"),
        ({"momentum": 2}, ValueError, "momentum is 2"),
        ({"weight_decay": -1}, ValueError, "weight_decay is -1"),
        ({"lr": "3"}, TypeError, "lr is '3'"),
    ],
)
def test_refusals(options, error, said):
    with pytest.raises(error, match=said):
        ep.MuonAdamW(**{"params": make().parameters()} | options)


def test_it_trains_the_net_that_it_is_for():
    torch.manual_seed(0)
    model = ep.convert(compact_residual((1, 8, 8), [8, 12]))
    data = ep.DigitsDataModule(64)
    data.setup()
    optimizer = ep.MuonAdamW(model.parameters())
    for _ in range(2):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    right = [(model(x).argmax(1) == y).float().mean() for x, y in data.test_dataloader()]
    assert torch.stack(right).mean() > 0.9


def test_thresholds_of_channels_are_no_matrices():
    weights = [nn.Parameter(torch.rand(*shape)) for shape in ((8, 1, 3, 3), (8, 1, 1), (4, 8, 1, 1), (4, 4))]
    matrices, rest = ep.MuonAdamW(weights).param_groups
    assert [p.shape for p in matrices["params"]] == [(8, 1, 3, 3), (4, 8, 1, 1)]
    assert [p.shape for p in rest["params"]] == [(8, 1, 1), (4, 4)]


def test_the_last_weight_may_have_one_row():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 1))
    muon, adamw = ep.MuonAdamW(net.parameters()).param_groups
    assert [id(p) for p in muon["params"]] == [id(net[0].weight), id(net[1].weight)]
    assert any(p is net[2].weight for p in adamw["params"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("before", [0, 2])
def test_a_copy_goes_on_as_the_original(copied, before):
    net = make()
    optimizer = ep.MuonAdamW(net.parameters())
    steps(net, optimizer, before)
    again, other = copied((net, optimizer))
    expected = steps(net, optimizer, 2, before)
    found = steps(again, other, 2, before)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    other.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]})
    assert other.param_groups[-1]["lr"] == 0.1


def test_an_added_group_is_stepped_by_the_same_rule():
    """The readout at first, and the rest added, is the optimizer of all."""
    net, again = make(), make()
    expected = steps(net, ep.MuonAdamW(net.parameters(), adamw_lr=2e-3), 3)
    optimizer = ep.MuonAdamW(again[3].parameters(), adamw_lr=2e-3)
    optimizer.add_param_group({"params": again[:3].parameters()})
    found = steps(again, optimizer, 3)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_rate_of_an_added_group_counts_for_both_rules():
    net, again, first = make(), make(), nn.Parameter(torch.ones(2))
    expected = steps(net, ep.MuonAdamW([*net[:3].parameters(), net[3].weight], lr=0.02), 1)
    optimizer = ep.MuonAdamW([first])
    optimizer.add_param_group({"params": again[:3].parameters(), "lr": 0.02})
    found = steps(again, optimizer, 1)
    assert torch.equal(found[0].weight, expected[0].weight)
    assert torch.equal(first, torch.ones(2))
    change = (found[0].bias - make()[0].bias).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.2 * 5e-3), rtol=1e-2, atol=0)
    optimizer.param_groups[-1]["lr"] = 0.0  # as schedules and finetuning set it
    before = copy.deepcopy(again)
    steps(again, optimizer, 1, 1)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), before.parameters(), strict=True))


def test_a_group_with_betas_is_all_adamws():
    weight, other = (nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = ep.MuonAdamW([nn.Parameter(torch.ones(2))])
    optimizer.add_param_group({"params": [weight], "lr": 0.01, "betas": (0.9, 0.99)})
    for p, rule in ((weight, optimizer), (other, torch.optim.AdamW([other], 0.01, (0.9, 0.99), weight_decay=0.0))):
        p.grad = torch.eye(3)
        rule.step()
    assert torch.equal(weight, other)


def test_groups_that_were_added_are_kept_in_checkpoints():
    net = make()
    optimizer = ep.MuonAdamW(net[3].parameters())
    optimizer.add_param_group({"params": net[:3].parameters(), "lr": 0.03})
    steps(net, optimizer, 2)
    again, kept = copy.deepcopy(net), pickle.loads(pickle.dumps(optimizer.state_dict()))
    other = ep.MuonAdamW(again[3].parameters())
    other.add_param_group({"params": again[:3].parameters()})
    other.load_state_dict(kept)
    expected, found = steps(net, optimizer, 2, 2), steps(again, other, 2, 2)
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
