"""What is advised helps: each piece of advice of `ep-plugin check`, of warnings, guide and docstrings, followed.

The learning rates that `HealthMonitor` advises are followed in `tests/lightning/test_health.py`. Trainings:

    pytest -m slow -s tests/test_advice.py
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parent / "lightning"))
sys.path.append(str(Path(__file__).parent / "analysis"))

from test_diagnosis import BINARY, ONE_NUDGED_STEP, model_of, oscillating
from trainings import FAIL, Training, ends_in_neurons, linear, nudged, recurrent, scaled, shifted

import ep_plugin as ep
from ep_plugin.analysis.diagnosis import diagnose

BATCH = torch.rand(16, 20, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
NAMES = vars(ep)


def followed(model, advice):
    """The network for each of the settings that a sentence of `check` names, as the user would write them."""
    tail = advice.rpartition(": ")[2] if "On this batch" in advice else advice.rpartition("Use ")[2]
    for way in tail.split(", or "):
        changes = {}
        for part in way.split(" with "):
            if "=" in part.split("(")[0]:  # feedback=0.005
                name, _, value = part.partition("=")
                changes[name] = eval(value)
            else:
                value = eval(
                    part, NAMES | {n: getattr(ep, n) for n in ("Relaxation", "EquilibriumPropagation", "FullPhaseEP")}
                )
                changes["relaxation" if isinstance(value, ep.Relaxation) else "estimator"] = value
        yield way, model.variant(**changes)


SIMULTANEOUS = ep.Relaxation(order="simultaneous")
ADVISED = {
    "too short": (lambda: model_of(relaxation=ep.Relaxation(2, step_size=0.3), encoder="graded"), "too short"),
    "oscillates": (oscillating, "does not converge"),
    "no nudge": (
        lambda: model_of(estimator=ONE_NUDGED_STEP, encoder="graded", relaxation=SIMULTANEOUS),
        "does not point",
    ),
    "a large nudge": (lambda: model_of(estimator=ep.EquilibriumPropagation(100.0), encoder="graded"), "too short"),
    "noise of full phases": (lambda: model_of(estimator=ep.FullPhaseEP(0.005), **BINARY), "spikes hide"),
    "few digits in many layers": (
        lambda: model_of(
            hidden=7, encoder=ep.AdaptiveDelta(digits=1), relaxation=ep.Relaxation(3), estimator=ONE_NUDGED_STEP
        ),
        "spikes hide",
    ),
}


@pytest.mark.parametrize("case", ADVISED)
def test_what_check_advises_makes_an_end_of_what_it_tells(case):
    make, words = ADVISED[case]
    model = make()
    found = diagnose(model, *BATCH)
    advice = next(a for a in found.advice if words in a)
    ways = list(followed(model, advice))
    assert ways, advice
    for way, mended in ways:
        left = diagnose(mended, *BATCH).advice
        assert not any(words in a for a in left), (way, left)


def test_a_smaller_nudge_is_no_advice_where_the_last_neurons_are_the_output():
    """It comes nearer to BPTT's gradient, and leaves dead outputs dead."""
    net = ep.initialize_(nn.Sequential(nn.Linear(20, 30), ep.ConvergentLeaky(), nn.Linear(30, 4), ep.ConvergentLeaky()))
    for estimator in (ep.EquilibriumPropagation(100.0), ep.EquilibriumPropagation(1.0)):
        advice = diagnose(ep.convert(net, estimator=estimator).eval(), *BATCH).advice
        assert not any("beta" in a for a in advice), advice


def test_what_is_advised_against_silent_and_saturated_layers():
    for made, words, mended in [
        (lambda **o: model_of(**{"threshold": 1000.0} | o), "hardly fires", {"threshold": 1.0}),
        (lambda **o: model_of(**{"threshold": 1e-3, "positive": True} | o), "is saturated", {"threshold": 10.0}),
    ]:
        assert any(words in a for a in diagnose(made(), *BATCH).advice)
        assert not any(words in a for a in diagnose(made(**mended), *BATCH).advice)


def loss_after(model, steps=40, lr=0.01):
    """Of outputs that are neurons, on digits."""
    data = ep.DigitsDataModule(batch_size=64)
    data.setup()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    first, last = [], []
    for n, (x, y) in enumerate(batch for _ in range(3) for batch in data.train_dataloader()):
        if n == steps:
            break
        loss = F.mse_loss(model(x), F.one_hot(y, 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        (first if n < 5 else last).append(loss.item())
    return sum(last[-5:]) / 5


def dead_outputs(beta):
    """Of ten outputs six are beyond their bound for every image."""
    torch.manual_seed(3)
    net = ends_in_neurons(50)
    with torch.no_grad():
        net[3].bias[:6] -= 0.15
    return ep.convert(net, estimator=ep.EquilibriumPropagation(beta=beta))


def test_a_larger_nudge_brings_dead_outputs_back():
    """settings.md, events-and-time.md, `EquilibriumPropagation`."""
    small, default, large = (loss_after(dead_outputs(beta)) for beta in (0.01, 0.1, 0.3))
    print(f"loss with beta .01 {small:.4f}, .1 {default:.4f}, .3 {large:.4f}")
    assert large < default < small


@pytest.mark.parametrize("depth", [2, 4])
def test_initialize_helps_nets_that_end_in_a_linear_layer(depth):
    """`initialize_`, deep-nets.md: the gradient of the first layer is nearer to the exact one."""
    cosines = []
    for prepare in (ep.initialize_, lambda net: net):
        torch.manual_seed(0)
        model = ep.convert(prepare(linear(*[64] * depth)), estimator=ep.EquilibriumPropagation(beta=0.1))
        x, y = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
        cosines.append(min(a.cosine for a in diagnose(model.eval(), x, y).agreement if a.name.endswith("weight")))
    print(f"{depth} hidden layers, least cosine with initialize_ {cosines[0]:.3f}, without {cosines[1]:.3f}")
    assert cosines[0] > cosines[1]


def residual(model, x):
    return model.free_phase(x).residual.max().item()


def test_more_steps_or_a_weaker_feedback_lower_the_residual():
    """settings.md, deep-nets.md, what a runaway phase advises."""
    x, made = BATCH[0], {"gain": 8.0, "hidden": 3}
    strong = residual(model_of(**made, feedback=1.0), x)
    torch.manual_seed(0)
    longer = residual(model_of(**made, feedback=1.0, relaxation=ep.Relaxation(40)), x)
    torch.manual_seed(0)
    weaker = residual(model_of(**made, feedback=0.02), x)
    print(f"residual {strong:.1e}, with 40 steps {longer:.1e}, with feedback .02 {weaker:.1e}")
    assert max(longer, weaker) < 0.1 * strong


def test_more_steps_let_recurrent_layers_settle():
    """`convert`, of nets with loops within a layer."""
    net = scaled(recurrent, 2.5, "2.")()
    x = torch.rand(16, 1, 8, 8)
    short, long = (residual(ep.convert(net, relaxation=ep.Relaxation(n)), x) for n in (None, 90))
    print(f"residual {short:.1e}, with 90 steps {long:.1e}")
    assert long < 0.1 * short


FOLLOWED = {
    # HealthMonitor's and check's ways out where the learning rate is not to blame: what fails, and the same mended.
    "weights times 100": Training(lambda: ep.initialize_(scaled(linear_two, 100)())),
    "deep weights times .05": Training(lambda: ep.initialize_(linear(64, 64, 64, 64, 64)), {"lr": 3e-3}),
    "silent second layer": Training(lambda: ep.initialize_(shifted(linear_two, -30.0, "3.bias")())),
    "saturated first layer": Training(lambda: ep.initialize_(shifted(linear_two, 30.0, "1.bias")())),
    "high thresholds": Training(lambda: linear(100, 50, threshold=1.0)),
    "low thresholds": Training(lambda: linear(100, 50, threshold=1.0)),
    "strong feedback, large weights": Training(
        lambda: ep.initialize_(linear(64, 64, 64, 64, 64)), {"lr": 3e-3}, {"feedback": 0.02}
    ),
}


def linear_two():
    return linear(100, 50)


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_ways_out_that_are_no_learning_rate(name):
    failed, mended = FAIL[name].run().accuracy, FOLLOWED[name].run().accuracy
    print(f"{name}: {failed:.3f}, mended {mended:.3f}")
    assert failed < 0.5
    assert mended > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_that_are_neurons_start_better_with_pytorchs_weights(seed):
    """`initialize_`: larger weights put outputs beyond their bounds, where they stay."""
    task = {"loss": "mse"}
    pytorch = Training(lambda: ends_in_neurons(100, 50), task, nudged(0.1), epochs=5, seed=seed).run().accuracy
    larger = Training(lambda: ep.initialize_(ends_in_neurons(100, 50)), task, nudged(0.1), epochs=5, seed=seed).run()
    print(f"seed {seed}: PyTorch's {pytorch:.3f}, initialize_ {larger.accuracy:.3f}")
    assert pytorch > larger.accuracy
