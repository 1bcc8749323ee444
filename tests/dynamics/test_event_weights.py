"""Events of fixed weight: constants of phase, layer and step, found in training and then fixed."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from problems import by_hand

import ep_plugin as ep
from ep_plugin.dynamics.encoders.event_weights import FREE, NUDGED

FIXED = ep.AdaptiveDelta(event_weight="fixed")


def network(**settings):
    options = {"relaxation": ep.Relaxation(6), "estimator": ep.EquilibriumPropagation(0.1, 4), "feedback": 0.05}
    model, x = by_hand([(0, 1), (1, 2)], activation="hard_sigmoid", **options | {"encoder": FIXED} | settings)
    return model, x, torch.arange(len(x)) % 5


def train(model, x, y, batches=3):
    was = model.training
    model.train()
    for _ in range(batches):
        F.cross_entropy(model(x), y).backward()
    return model.train(was)


def constants(model):
    return model.event_weights.values.clone()


def test_not_found_is_an_error_in_evaluation_and_the_way_out_works():
    model, x, y = network()
    model.eval()
    with pytest.raises(ValueError, match=r"of the free phase have not been found.*in training mode"):
        model(x)
    with pytest.raises(ValueError, match="of the free phase have not been found"):
        model.free_phase(x)
    # Forward alone finds those of the free phase; backward needs those of the nudged one.
    model.train()(x)
    model.eval()
    loss = F.cross_entropy(model(x), y)
    with pytest.raises(ValueError, match=r"of the nudged phase have not been found.*forward and backward"):
        loss.backward()
    with pytest.raises(ValueError, match="of the nudged phase have not been found"):
        model.nudged_phase(x, y, F.cross_entropy)
    train(model, x, y)
    F.cross_entropy(model(x), y).backward()
    model.nudged_phase(x, y, F.cross_entropy)


def test_training_finds_a_constant_for_every_step_of_both_phases():
    model, x, y = network()
    assert not constants(model).any()
    train(model, x, y)
    values = model.event_weights.values
    assert values.shape == (2, 3, 6)
    assert (values[FREE] > 0).all()
    assert (values[NUDGED, :, :4] > 0).all()
    assert not values[NUDGED, :, 4:].any()  # there are four steps only
    assert model.event_weights.batches.tolist() == [3, 3]
    assert (values[FREE, 0].diff() < 0).all()  # there is less and less to tell


@pytest.mark.parametrize("digits", [1, 3])
def test_they_are_running_means_of_the_scale_of_a_sample(digits):
    """The first batch's own mean, then the mean of two, and from the tenth on a tenth of the new one."""
    model, x = by_hand(
        [(0, 1), (1, 2)], (20,) * 3, activation="hard_sigmoid", encoder=ep.AdaptiveDelta("fixed", digits),
        relaxation=ep.Relaxation(1), feedback=0.05,
    )  # fmt: skip
    expected = torch.zeros(())
    for k in range(1, 15):
        batch = x * k
        with torch.no_grad():
            model(batch)
            e = (model.stem(batch) / model.layers[0].threshold).clamp(0, 1)
        scale = e.amax(1) * 2 / 3**digits
        expected = expected + (scale.mean() - expected) * max(1 / k, 0.1)
        torch.testing.assert_close(constants(model)[FREE, 0, 0], expected)


def test_evaluation_changes_nothing():
    model, x, y = network()
    train(model, x, y).eval()
    before = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    F.cross_entropy(model(3 * x), y).backward()
    model.free_phase(x)
    model.nudged_phase(x, y, F.cross_entropy)
    for name, value in model.state_dict().items():
        assert value == before[name] if isinstance(value, dict) else torch.equal(value, before[name])


def test_an_event_stands_for_the_same_in_every_sample_and_batch():
    model, x, y = network()
    train(model, x, y).eval()
    values = constants(model)
    e = model.free_phase(x, record=True)
    deviations = model.nudged_phase(x, y, F.cross_entropy, record=True)
    for phase, found, steps in ((FREE, e.trajectory, 6), (NUDGED, deviations.trajectory, 4)):
        for l, (traces, spikes) in enumerate(zip(found.traces, found.spikes, strict=True)):
            assert spikes.any()
            assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
            places = torch.tensor([9.0, 3.0, 1.0]).view(-1, 1, 1)
            numbers = (spikes.unflatten(0, (steps, 3)) * places).sum(1)
            expected = (numbers * values[phase, l, :steps].view(-1, 1, 1)).cumsum(0)
            torch.testing.assert_close(traces, expected, rtol=1e-5, atol=1e-7)
    for i in range(len(x)):
        for a, b in zip(model.free_phase(x[i : i + 1]).traces, e.traces, strict=True):
            torch.testing.assert_close(a[0], b[i])


def test_the_gradient_is_nearly_that_of_graded_neurons():
    """At the same beta, in a layer of more than a few neurons."""
    model, x = by_hand(
        [(0, 1), (1, 2)], (40, 30, 20), encoder=FIXED, relaxation=ep.Relaxation(15),
        estimator=ep.EquilibriumPropagation(0.1, 12), feedback=0.05,
    )  # fmt: skip
    y = torch.arange(len(x)) % 5
    train(model, x, y, 20).eval()
    parameters = list(model.parameters())
    found, graded = (
        torch.autograd.grad(F.cross_entropy(m(x), y), parameters) for m in (model, model.variant(encoder="graded"))
    )
    for a, b in zip(found, graded, strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.97


def test_checkpoints_and_copies(tmp_path):
    """A new network from a file, a deep copy and a pickle run at once in evaluation, bit for bit."""
    model, x, y = network()
    train(model, x, y).eval()
    expected = model(x)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other, *_ = network()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for again in (other.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), expected)
        F.cross_entropy(again(x), y).backward()
    # With what they were found with: a network of other settings says so.
    changed, *_ = network(feedback=0.01)
    changed.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with pytest.raises(ValueError, match=r"feedback was 0\.05 and is 0\.01"):
        changed(x)


CHANGES = {
    "free steps was 6 and is 5": {"relaxation": ep.Relaxation(5)},
    "nudged steps was 4 and is 3": {"estimator": ep.EquilibriumPropagation(0.1, 3)},
    r"beta was 0\.1 and is 0\.2": {"estimator": ep.EquilibriumPropagation(0.2, 4)},
    r"feedback was 0\.05 and is 0\.04": {"feedback": 0.04},
    r"feedback was 0\.05 and is \(0\.05, 0\.04\)": {"feedback": (0.05, 0.04)},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("message", CHANGES)
def test_what_they_depend_on_has_changed(message, training):
    """The error names it; setting it back helps, and so does finding them anew."""
    model, x, y = network()
    train(model, x, y)
    model.train(training)
    before = {name: getattr(model, name) for name in CHANGES[message]}

    def set_to(values):
        for name, value in values.items():
            setattr(model, name, value)

    set_to(CHANGES[message])
    with pytest.raises(ValueError, match=rf"{message}\..*reset_event_weights"):
        model(x)
    with pytest.raises(ValueError, match=message):
        model.free_phase(x)
    set_to(before)
    model(x)
    set_to(CHANGES[message])
    model.reset_event_weights()
    assert not constants(model).any()
    assert model.event_weights.training is training
    train(model, x, y)
    F.cross_entropy(model(x), y).backward()
    model(x)


def test_what_they_do_not_depend_on_may_change():
    model, x, y = network()
    train(model, x, y).eval()
    for settings in ({"observe": "membrane"}, {"estimator": ep.EquilibriumPropagation(0.1, 4, "negative")}):
        F.cross_entropy(model.variant(**settings)(x), y).backward()
    # Other estimators have no nudged phase of events, and take the free phase's constants.
    for estimator in (ep.BackpropThroughTime(), ep.ImplicitDifferentiation()):
        F.cross_entropy(model.variant(estimator=estimator)(x), y).backward()


def test_found_by_another_estimator_those_of_the_nudged_phase_are_missing():
    model, x, y = network(estimator=ep.BackpropThroughTime())
    train(model, x, y)
    model.estimator = ep.EquilibriumPropagation(0.1, 4)
    with pytest.raises(ValueError, match=r"nudged steps was None and is 4.*reset_event_weights"):
        model(x)
    model.reset_event_weights()
    train(model, x, y).eval()(x)


def test_other_encoders_have_none():
    model, x, y = network()
    train(model, x, y)
    kept = model.event_weights
    assert model.variant(observe="membrane").event_weights is kept
    assert model.variant(encoder="graded").event_weights is None
    assert model.event_weights is kept
    model.encoder = "adaptive_delta"
    assert model.event_weights is None
    assert not any("event_weights" in name for name in model.state_dict())
    model.reset_event_weights()
    assert model.event_weights is None
    model.encoder = FIXED
    assert not constants(model).any()


def test_full_phases_go_on_beyond_their_steps():
    """So the two are refused together; what the error names in their place is taken."""
    with pytest.raises(ValueError, match=r"EquilibriumPropagation\(\) or AdaptiveDelta\(event_weight=\"sample\"\)"):
        network(estimator=ep.FullPhaseEP())
    model, x, y = network(estimator=ep.FullPhaseEP(), encoder=ep.AdaptiveDelta("sample"))
    F.cross_entropy(model(x), y).backward()
    model.estimator = ep.EquilibriumPropagation()
    model.encoder = FIXED
    with pytest.raises(ValueError, match="beyond which full phases go on"):
        model.estimator = ep.FullPhaseEP()


def test_outside_of_a_network_there_is_nobody_to_find_them():
    neuron = ep.ConvergentLeaky(encoder=FIXED)
    with pytest.raises(ValueError, match=r'event_weight="sample"'):
        neuron(torch.rand(2, 3))
    ep.ConvergentLeaky(encoder=ep.AdaptiveDelta("sample"))(torch.rand(2, 3))


@pytest.mark.filterwarnings("ignore:the loss's gradient is NaN:RuntimeWarning")
def test_a_sample_that_is_no_number_has_no_say():
    """A gradient scaler meets infinite losses by design; the constants are those of the other samples."""
    model, x, y = network()
    train(model, x, y, 1)
    torn = copy.deepcopy(model)
    finite = torch.ones(len(x))
    for m, weight in ((model, finite), (torn, finite.masked_fill(torch.arange(len(x)) == 1, torch.inf))):
        (F.cross_entropy(m(x), y, reduction="none") * weight).sum().backward()
    assert constants(torn).isfinite().all()
    torch.testing.assert_close(constants(torn), constants(model), rtol=0.2, atol=0)
    (F.cross_entropy(torn(x), y) * torch.inf).backward()
    assert constants(torn).isfinite().all()
    assert (constants(torn)[NUDGED, :, :4] > 0).all()


def test_frames_take_the_steps_that_the_constants_were_made_for():
    model, x, y = network(relaxation=ep.Relaxation(), time_varying=True, estimator=ep.EquilibriumPropagation(0.1))
    chosen = model.steps[0]
    frames = x.expand(chosen - 1, -1, -1)  # one step more is chosen by depth, so that each frame takes two
    taken = 2 * (chosen - 1)
    message = rf"take {taken} steps.*constants of {chosen};.*Relaxation\({taken}\).*reset_event_weights\(\)"
    with pytest.raises(ValueError, match=message):
        model(frames)
    model.relaxation = ep.Relaxation(taken)
    model.reset_event_weights()
    train(model, frames, y).eval()(frames)
    assert (constants(model)[FREE] > 0).all()
