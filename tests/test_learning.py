"""Gradients and learning on real data, by the defaults: nothing but events is read. Slow: `pytest -m slow -s`.

Every gradient is compared with that of backpropagation through settled graded states, over 1,024 test images,
layer by layer, and the figure is printed. Beside it stand the reference's residual and the cosine with
feedforward backpropagation, so that a weak feedback does not flatter.
"""

import math

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.models import convolutional_2c2fc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mnist(data_dir):
    (x, y), test = ep.MNISTDataModule(data_dir).load()
    return x, y, test


def leaky():
    return snn.Leaky(beta=0.5, init_hidden=True)


def deep(hidden):
    """`hidden` layers of neurons: 3x3 convolutions of 16 channels, and a linear one."""
    inner = [m for _ in range(hidden - 2) for m in (nn.Conv2d(16, 16, 3, padding=1), leaky())]
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.AvgPool2d(2), leaky()),
        *inner,
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(784, 64), leaky(), nn.Linear(64, 10)),
    )


class Feedforward(nn.Module):
    """The net in one pass, each neuron clip(drive, 0, 1)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        for module in self.net:
            x = x.clamp(0, 1) if isinstance(module, snn.Leaky) else module(x)
        return x


def train(model, mnist, batches):
    x, y, _ = mnist
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    epochs = math.ceil(64 * batches / len(x))
    for batch in torch.cat([torch.randperm(len(x)) for _ in range(epochs)]).split(64)[:batches]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


def gradients(model, net, mnist):
    _, _, (x, y) = mnist
    torch.manual_seed(5)  # of random signs
    weights = [p for p in net.parameters() if p.dim() > 1]
    parts = [
        torch.autograd.grad(F.cross_entropy(model(a), b, reduction="sum"), weights)
        for a, b in zip(x[:1024].split(128), y[:1024].split(128), strict=True)
    ]
    return [sum(own) for own in zip(*parts, strict=True)]


def settled(net, mnist, steps=40):
    """The reference gradient, of a network that has settled."""
    reference = ep.convert(net, encoder="graded", relaxation=ep.Relaxation(steps), estimator=ep.BackpropThroughTime())
    residual = reference.free_phase(mnist[2][0][:256]).residual.max().item()
    assert residual < 1e-5
    return gradients(reference, net, mnist)


def agreement(name, found, reference):
    """The least cosine over the layers, and the norm ratios, printed."""
    pairs = list(zip(found, reference, strict=True))
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in pairs]
    ratios = [(a.norm() / b.norm()).item() for a, b in pairs]
    shown = " ".join(f"{c:.3f}/{r:.2f}" for c, r in zip(cosines, ratios, strict=True))
    print(f"\n{name:44} least cosine {min(cosines):.3f}, norms {min(ratios):.2f} to {max(ratios):.2f}: {shown}", end="")
    return min(cosines), ratios


def accuracy(model, mnist, images=10_000):
    _, _, (x, y) = mnist
    with torch.no_grad():
        right = sum(
            (model(a).argmax(1) == b).sum().item() for a, b in zip(x[:images].split(500), y.split(500), strict=False)
        )
    return right / images


@pytest.fixture(scope="module")
def early(mnist):
    """2C2FC after 60 batches."""
    torch.manual_seed(0)
    net = ep.initialize_(convolutional_2c2fc())
    train(ep.convert(net), mnist, 60)
    return net, settled(net, mnist)


@pytest.mark.parametrize("nudging", ["positive", "negative", "random_sign", "symmetric"])
def test_every_nudging(nudging, early, mnist):
    net, reference = early
    model = ep.convert(net, estimator=ep.EquilibriumPropagation(nudging=nudging))
    assert agreement(nudging, gradients(model, net, mnist), reference)[0] >= 0.98


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "encoder", [ep.AdaptiveDelta("sample"), ep.AdaptiveDelta("power_of_two"), ep.Graded()], ids=repr
)
def test_every_encoder_of_deviations(encoder, half, early, mnist):
    net, reference = early
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = gradients(ep.convert(net, encoder=encoder), net, mnist)
    assert agreement(f"{encoder} {'bfloat16' if half else ''}", found, reference)[0] >= 0.98


def test_binary_spikes_in_the_free_phase(early, mnist):
    net, reference = early
    model = ep.convert(net, encoder="predictive_sigma_delta", relaxation=ep.Relaxation(15))
    assert agreement("binary spikes, then deviations", gradients(model, net, mnist), reference)[0] >= 0.97


def test_feedforward_backpropagation_is_near(early, mnist):
    net, reference = early
    assert agreement("feedforward backpropagation", gradients(Feedforward(net), net, mnist), reference)[0] >= 0.95


@pytest.mark.parametrize(("make", "least"), [(convolutional_2c2fc, 0.97), (lambda: deep(8), 0.95)], ids=["2c2fc", "8"])
def test_events_of_fixed_weight(make, least, mnist):
    torch.manual_seed(0)
    net = ep.initialize_(make())
    model = train(ep.convert(net, encoder=ep.AdaptiveDelta("fixed")), mnist, 60).eval()
    assert agreement("fixed weights", gradients(model, net, mnist), settled(net, mnist))[0] >= least


def test_max_pooling(mnist):
    torch.manual_seed(0)
    net = ep.initialize_(convolutional_2c2fc(pooling="max"))
    model = train(ep.convert(net), mnist, 400)
    assert agreement("max pooling, 400 batches", gradients(model, net, mnist), settled(net, mnist))[0] >= 0.98


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("hidden", [5, 8])
def test_deep_nets(hidden, seed, mnist):
    for batches in (60, 600):
        torch.manual_seed(seed)
        net = ep.initialize_(deep(hidden))
        model = train(ep.convert(net), mnist, batches)
        name = f"{hidden} hidden layers, seed {seed}, {batches} batches"
        cosine, ratios = agreement(name, gradients(model, net, mnist), settled(net, mnist, 20))
        assert cosine >= 0.95
        assert all(0.5 <= r <= 1.5 for r in ratios)


@pytest.mark.parametrize(("hidden", "least"), [(8, 0.945), (16, 0.94)])
def test_deep_nets_learn(hidden, least, mnist):
    """200 batches; feedforward backpropagation beside it."""
    torch.manual_seed(0)
    net = ep.initialize_(deep(hidden))
    model = train(ep.convert(net), mnist, 200)
    right = accuracy(model, mnist)
    cosine, ratios = agreement(
        f"{hidden} hidden layers, 200 batches", gradients(model, net, mnist), settled(net, mnist, 20)
    )
    torch.manual_seed(0)
    other = Feedforward(ep.initialize_(deep(hidden)))
    backpropagation = accuracy(train(other, mnist, 200), mnist)
    print(f"\n{hidden} hidden layers: accuracy {right:.2%}, backpropagation {backpropagation:.2%}")
    assert right >= least
    assert cosine >= 0.95
    assert all(0.5 <= r <= 1.5 for r in ratios)


@pytest.mark.parametrize(("name", "data"), [("mnist-2c2fc", "MNIST"), ("fashion-mnist-2c2fc", "FashionMNIST")])
def test_weights_that_were_trained_to_the_end(name, data, data_dir):
    """Nets that come with the package, twelve epochs old: in FashionMNIST's the default steps lose a little."""
    module = getattr(ep, f"{data}DataModule")(data_dir)
    images = module.load()
    model = ep.pretrained(name)
    reference = model.variant(encoder="graded", relaxation=ep.Relaxation(60), estimator=ep.BackpropThroughTime())
    assert reference.free_phase(images[1][0][:256]).residual.max() < 1e-5
    exact = gradients(reference, model, (None, None, images[1]))
    longer = model.variant(relaxation=ep.Relaxation(6), estimator=ep.EquilibriumPropagation(steps=6))
    for steps, network, least in (("default", model, 0.9), ("six", longer, 0.99)):
        cosine, ratios = agreement(
            f"{name}, feedback {model.feedback}, {steps} steps",
            gradients(network, model, (None, None, images[1])),
            exact,
        )
        assert cosine >= least
        assert all(0.7 <= r <= 1.3 for r in ratios)
    print(f"\n{name}: test error {1 - accuracy(model, (None, None, images[1])):.2%}", end="")


def test_a_long_training_keeps_its_gradient(data_dir):
    """15 epochs of FashionMNIST, the agreement at the end of each. (20 minutes on one core.)"""
    data = ep.FashionMNISTDataModule(data_dir).load()
    images = (*data[0], data[1])
    torch.manual_seed(0)
    net = ep.initialize_(convolutional_2c2fc())
    model, epochs, batches = ep.convert(net), 15, math.ceil(len(images[0]) / 64)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images[0])).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[0][batch]), images[1][batch]).backward()
            optimizer.step()
            schedule.step()
        name = f"FashionMNIST, epoch {epoch + 1}, error {1 - accuracy(model, images):.2%}"
        cosine, ratios = agreement(name, gradients(model, net, images), settled(net, images))
        assert cosine >= 0.95
        assert all(0.7 <= r <= 1.3 for r in ratios)
    agreement("feedforward backpropagation", gradients(Feedforward(net), net, images), settled(net, images))


def test_backpropagation_trained_weights(data_dir):
    """Weights of 15 epochs of feedforward backpropagation on FashionMNIST."""
    data = ep.FashionMNISTDataModule(data_dir).load()
    images = (*data[0], data[1])
    torch.manual_seed(0)
    net = ep.initialize_(convolutional_2c2fc())
    train(Feedforward(net), images, 15 * 938)
    cosine, ratios = agreement("by backpropagation", gradients(ep.convert(net), net, images), settled(net, images))
    assert cosine >= 0.95
    assert all(0.7 <= r <= 1.3 for r in ratios)


# (That of max pooling was chosen by feedforward backpropagation on held-out training images; that of average pooling is
# the recipe of earlier versions, settled on while test errors were in sight.)
# (Options, and how many of the 10,000 test images may be wrong in the mean.)
RECIPES = {"average": ({"gain": 2.0, "centered": True}, 87), "max": ({"gain": 1.0}, 75)}


@pytest.mark.parametrize("pooling", RECIPES)
def test_three_epochs_of_mnist(pooling, mnist):
    """2C2FC without augmentation, products in bfloat16, three seeds. (Four minutes a seed on one core.)"""
    options, most = RECIPES[pooling]
    x, y, test = mnist
    wrong = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        model = ep.convert(convolutional_2c2fc(pooling=pooling, normalize=(0.1307, 0.3081), **options))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * math.ceil(len(x) / 64))
        for _ in range(3):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x[batch]).float(), y[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
        wrong.append(round(10_000 * (1 - accuracy(model, (x, y, test)))))
        print(f"\n{pooling} pooling, seed {seed}: test error {wrong[-1] / 100:.2f}%", end="")
    assert sum(wrong) <= 3 * most
