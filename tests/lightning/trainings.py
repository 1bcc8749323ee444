"""Trainings that learn, and trainings that do not: a table to count false and missed alarms by."""

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin.models import residual, small_convolutional, vgg

# What a training of each set ends with, of 1, where the settings are good; below the second number it has failed.
GOOD = {"digits": 0.8, "mnist": 0.75, "fashion": 0.6}
BAD = {"digits": 0.5, "mnist": 0.5, "fashion": 0.4}


def leaky(**options):
    return snn.Leaky(beta=0.9, init_hidden=True, **options)


def convolutional():
    return small_convolutional()


def max_pooling():
    return small_convolutional(pooling="max")


def initialized():
    return ep.initialize_(small_convolutional())


def linear(*hidden, **options):
    """A chain of linear layers, whose end is one too."""
    return nn.Sequential(*_layers((64, *hidden), options), nn.Linear(hidden[-1], 10))


def ends_in_neurons(*hidden, **options):
    """A chain of linear layers, each with neurons."""
    return nn.Sequential(*_layers((64, *hidden, 10), options))


def _layers(sizes, options):
    pairs = pairwise(sizes)
    return [nn.Flatten(), *(part for i, j in pairs for part in (nn.Linear(i, j), leaky(**options)))]


def shallow():
    return linear(100)


def two():
    return linear(100, 50)


def five():
    return ep.initialize_(linear(64, 64, 64, 64, 64))


def eight():
    return ep.initialize_(linear(*[64] * 8))


def neurons_at_the_end():
    return ends_in_neurons(100)


def deeper_neurons_at_the_end():
    return ep.initialize_(ends_in_neurons(100, 50))


def convolutional_with_neurons_at_the_end():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), leaky(), nn.Flatten(), nn.Linear(144, 10), leaky()),
    )


def learned_thresholds():
    return linear(80, 40, learn_threshold=True)


def recurrent():
    neuron = snn.RLeaky(beta=0.9, init_hidden=True, linear_features=64)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), neuron, nn.Linear(64, 10))


def small_vgg():
    return vgg((1, 8, 8), channels=(16, 16, 32), hidden=64)


def small_residual():
    return residual((1, 8, 8), channels=(16, 32), blocks=(1, 1))


def normalized():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), leaky(), nn.Flatten()),
        *(nn.Linear(576, 64), leaky(), nn.Dropout(0.3), nn.Linear(64, 10)),
    )


def large_images(pooling=nn.AvgPool2d):
    return lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 5), pooling(2), leaky(), nn.Conv2d(8, 16, 5), pooling(2), leaky()),
        *(nn.Flatten(), nn.Linear(256, 64), leaky(), nn.Linear(64, 10)),
    )


def large_images_of_neurons():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), leaky(), nn.Linear(100, 10), leaky())


def autoencoder():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 32), leaky(), nn.Linear(32, 16), leaky(), nn.Linear(16, 64)),
        nn.Unflatten(1, (1, 8, 8)),
    )


class Images(ep.DigitsDataModule):
    """Targets that are the images themselves."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0], batch[0]


class Bright(ep.DigitsDataModule):
    """Images in [0, 16], as scikit-learn has them."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return 16 * batch[0], batch[1]


class Parity(ep.DigitsDataModule):
    """Two classes."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0], batch[1] % 2


class Mislabelled(ep.DigitsDataModule):
    """Three of ten training images have another class."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer is None or not self.trainer.training:
            return batch
        wrong = torch.rand(len(batch[1])) < 0.3
        return batch[0], torch.where(wrong, torch.randint(10, batch[1].shape), batch[1])


def scaled(make, factor, names=""):
    """Parameters at the start that are so many times as large, those whose names begin so."""

    def made():
        net = make()
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name.startswith(names):
                    p.mul_(factor)
        return net

    return made


def shifted(make, bias, name):
    def made():
        net = make()
        with torch.no_grad():
            dict(net.named_parameters())[name].fill_(bias)
        return net

    return made


def sgd(lr, momentum=0.0):
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum)


def adamw(lr):
    return lambda parameters: torch.optim.AdamW(parameters, lr, weight_decay=0.01)


@dataclass(frozen=True)
class Training:
    """A net, and what differs from Adam with a rate of .01 and three epochs of the digits."""

    net: Callable[[], nn.Module]
    task: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    images: Callable[..., Any] = ep.DigitsDataModule
    trainer: dict[str, Any] = field(default_factory=dict)
    epochs: int = 3
    seed: int = 0

    @property
    def classes(self):
        """Which images it is about, with an accuracy; None where there are no classes."""
        names = {ep.MNISTDataModule: "mnist", ep.FashionMNISTDataModule: "fashion", Images: None}
        return names.get(self.images, "digits")

    def start(self):
        """The network before its training, and its data."""
        torch.manual_seed(self.seed)
        with quiet():
            model = ep.convert(self.net(), **self.network)
        options = {"seed": self.seed} | self.data
        if self.classes in ("mnist", "fashion"):
            place = {"data_dir": Path(os.environ["EP_PLUGIN_DATA"])}
            options = {"train_samples": 2000, "batch_size": 32} | place | options
        return model, self.images(**options)

    def run(self):
        model, data = self.start()
        with quiet():
            task = ep.EPLightningModule(model, **{"lr": 0.01} | self.task)
            trainer = L.Trainer(
                **{"max_epochs": self.epochs, "accelerator": "cpu", "logger": False, "limit_val_batches": 0}
                | {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
                | self.trainer
            )
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module="ep_plugin")
            stopped = None
            try:
                trainer.fit(task, data)
            except FloatingPointError as error:
                stopped = error
        told = [str(w.message) for w in found]
        accuracy = 0.0 if stopped else _accuracy(model, data) if self.classes else None
        return Result(told, accuracy, model.eval(), data, stopped)


class Result(NamedTuple):
    """What was warned of; the accuracy on test images, None where there are no classes; the error that ended it."""

    told: list[str]
    accuracy: float | None
    model: ep.ConvergentNetwork
    data: Any
    stopped: Exception | None


@contextmanager
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def _accuracy(model, data, images=1000):
    model.eval()
    right = seen = 0
    for batch in data.test_dataloader():
        x, y = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
        try:
            right += int((model(x).argmax(1) == y).sum())
        except FloatingPointError:
            return 0.0
        seen += len(y)
        if seen >= images:
            break
    return right / seen


def nudged(beta=0.1, nudging="positive"):
    return {"estimator": ep.EquilibriumPropagation(beta=beta, nudging=nudging)}


MNIST, FASHION = {"images": ep.MNISTDataModule, "epochs": 1}, {"images": ep.FashionMNISTDataModule, "epochs": 1}
FULL = {"estimator": ep.FullPhaseEP()}

LEARN = {
    **{f"convolution, seed {n}": Training(convolutional, seed=n) for n in range(3)},
    **{f"convolution, Adam {lr}": Training(convolutional, {"lr": lr}) for lr in (3e-3, 0.03)},
    **{f"max pooling, seed {n}": Training(max_pooling, seed=n) for n in range(2)},
    **{f"initialize_, seed {n}": Training(initialized, seed=n) for n in range(2)},
    "two epochs": Training(initialized, epochs=2),
    "small batches": Training(convolutional, {"lr": 4e-3}, data={"batch_size": 4}, epochs=1),
    "one large batch an epoch": Training(convolutional, data={"batch_size": 2000}, epochs=40),
    "long": Training(convolutional, epochs=40),
    **{f"one layer, Adam {lr}": Training(shallow, {"lr": lr}) for lr in (3e-3, 0.01, 0.03)},
    **{f"two layers, seed {n}": Training(two, seed=n) for n in range(2)},
    **{f"five layers, seed {n}": Training(five, {"lr": 3e-3}, seed=n) for n in range(2)},
    **{f"eight layers, seed {n}": Training(eight, {"lr": 2e-3}, seed=n) for n in range(2)},
    **{f"beta {beta}": Training(convolutional, network=nudged(beta)) for beta in (1e-3, 0.01, 0.3, 1.0)},
    **{
        f"{nudging} nudging": Training(convolutional, network=nudged(0.1, nudging))
        for nudging in ("negative", "random_sign", "symmetric")
    },
    **{
        f"neurons at the end, {loss}": Training(neurons_at_the_end, {"loss": loss}, nudged(0.3), epochs=10)
        for loss in ("cross_entropy", "mse")
    },
    "neurons at the end, long": Training(neurons_at_the_end, {"loss": "mse"}, epochs=40),
    "deeper, neurons at the end": Training(deeper_neurons_at_the_end, {"loss": "mse", "lr": 3e-3}, epochs=5),
    "deeper, neurons at the end, beta 0.3": Training(
        lambda: ends_in_neurons(100, 50), {"loss": "mse"}, nudged(0.3), epochs=5
    ),
    "convolution, neurons at the end": Training(convolutional_with_neurons_at_the_end, {"loss": "mse"}, epochs=8),
    **{f"threshold {t}": Training(lambda t=t: linear(100, 50, threshold=t)) for t in (0.3, 0.5, 2.0)},
    **{f"gain {g}": Training(lambda g=g: ep.initialize_(small_convolutional(), g)) for g in (0.5, 1.0, 4.0)},
    **{f"weights times {f}": Training(scaled(two, f)) for f in (0.5, 3.0)},
    "learned thresholds": Training(learned_thresholds, {"lr": 3e-3}),
    "VGG": Training(small_vgg, {"lr": 3e-3}),
    "residual": Training(small_residual, {"lr": 3e-3}),
    "batch normalization": Training(normalized),
    "SGD .1, momentum": Training(convolutional, {"optimizer": sgd(0.1, 0.9)}),
    "SGD .3": Training(initialized, {"optimizer": sgd(0.3)}),
    "AdamW": Training(convolutional, {"optimizer": adamw(0.01)}),
    "cosine": Training(convolutional, {"schedule": "cosine"}),
    "mse": Training(convolutional, {"loss": "mse"}),
    "label smoothing": Training(convolutional, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
    "autoencoder": Training(autoencoder, {"loss": "mse"}, images=Images),
    "graded": Training(convolutional, network={"encoder": "graded"}),
    "powers of two": Training(convolutional, network={"encoder": ep.AdaptiveDelta("power_of_two")}),
    "fixed events": Training(convolutional, network={"encoder": ep.AdaptiveDelta("fixed")}),
    "one digit": Training(convolutional, network={"encoder": ep.AdaptiveDelta(digits=1)}),
    "predictive sigma-delta": Training(convolutional, network={"encoder": "predictive_sigma_delta"}),
    "sigma-delta": Training(convolutional, network={"encoder": "sigma_delta"}),
    "Bernoulli": Training(convolutional, network={"encoder": "bernoulli"}, epochs=5),
    "full phases": Training(convolutional, network={**FULL, "encoder": "graded", "feedback": 0.05}),
    "BPTT": Training(convolutional, network={"encoder": "graded", "estimator": ep.BackpropThroughTime()}),
    "strong feedback": Training(convolutional, {"lr": 3e-3}, {"feedback": 0.2}, epochs=4),
    "sigmoid": Training(convolutional, network={"activation": "sigmoid"}),
    "bfloat16": Training(convolutional, trainer={"precision": "bf16-mixed"}),
    "accumulated": Training(convolutional, data={"batch_size": 16}, trainer={"accumulate_grad_batches": 4}),
    "ReLU": Training(convolutional, {"lr": 3e-3}, {"activation": torch.relu}),
    "bounds of -1 and 1": Training(two, network={"activation": nn.Hardtanh()}),
    "rate coded": Training(convolutional, network={"time_varying": True}, data={"rate_coded": 10}),
    "recurrent": Training(recurrent),
    "batches of one": Training(initialized, {"lr": 2e-3}, data={"batch_size": 1, "train_samples": 700}, epochs=1),
    **{f"{net.__name__}, Adam .05": Training(net, {"lr": 0.05}, epochs=5) for net in (max_pooling, two, small_vgg)},
    "weights times 10": Training(scaled(two, 10), epochs=10),
    "few neurons": Training(lambda: linear(6), epochs=15),
    "wrong labels": Training(two, images=Mislabelled, epochs=5),
    "odd or even": Training(two, images=Parity, epochs=5),
    "brightness up to 16": Training(two, images=Bright),
    "clipped": Training(convolutional, trainer={"gradient_clip_val": 0.5}),
    "MNIST, average pooling": Training(large_images(), {"lr": 5e-3}, **MNIST),
    "MNIST, max pooling": Training(large_images(nn.MaxPool2d), {"lr": 3e-3}, **MNIST),
    "MNIST, neurons at the end": Training(large_images_of_neurons, {"lr": 3e-3, "loss": "mse"}, **MNIST),
    "FashionMNIST, average pooling": Training(large_images(), {"lr": 0.01}, **FASHION | {"epochs": 2}),
    "FashionMNIST, max pooling": Training(large_images(nn.MaxPool2d), {"lr": 3e-3}, **FASHION),
    "FashionMNIST, neurons at the end": Training(large_images_of_neurons, {"lr": 3e-3, "loss": "mse"}, **FASHION),
}

RATES = (1.0, 10.0, 1e3, 1e6, 1e10)
DIVERGE = {
    **{f"convolution, Adam {lr:g}": Training(convolutional, {"lr": lr}) for lr in RATES},
    **{f"max pooling, Adam {lr:g}": Training(max_pooling, {"lr": lr}) for lr in RATES},
    **{f"two layers, Adam {lr:g}": Training(two, {"lr": lr}) for lr in RATES},
    **{f"five layers, Adam {lr:g}": Training(five, {"lr": lr}) for lr in RATES},
    **{f"VGG, Adam {lr:g}": Training(small_vgg, {"lr": lr}) for lr in RATES},
    **{f"SGD {lr:g}": Training(convolutional, {"optimizer": sgd(lr)}) for lr in (1e2, 1e3, 1e6, 1e10)},
    **{f"mse, Adam {lr:g}": Training(convolutional, {"lr": lr, "loss": "mse"}) for lr in RATES},
    **{f"autoencoder, Adam {lr:g}": Training(autoencoder, {"lr": lr, "loss": "mse"}, images=Images) for lr in RATES},
    **{f"neurons at the end, Adam {lr:g}": Training(neurons_at_the_end, {"lr": lr}) for lr in RATES},
    **{
        f"neurons at the end, mse, Adam {lr:g}": Training(deeper_neurons_at_the_end, {"lr": lr, "loss": "mse"})
        for lr in RATES
    },
    **{f"one epoch, Adam {lr:g}": Training(convolutional, {"lr": lr}, epochs=1) for lr in RATES},
    **{f"graded, Adam {lr:g}": Training(convolutional, {"lr": lr}, {"encoder": "graded"}) for lr in RATES[:3]},
    **{f"Bernoulli, Adam {lr:g}": Training(convolutional, {"lr": lr}, {"encoder": "bernoulli"}) for lr in RATES[:3]},
    **{f"MNIST, Adam {lr:g}": Training(large_images(), {"lr": lr}, **MNIST) for lr in RATES[::2]},
    **{f"FashionMNIST, Adam {lr:g}": Training(large_images(nn.MaxPool2d), {"lr": lr}, **FASHION) for lr in RATES[::2]},
}
FAIL = {
    "eight layers, Adam 0.1": Training(eight, {"lr": 0.1}),
    "five layers, Adam 0.3": Training(five, {"lr": 0.3}),
    "two layers, Adam 0.5": Training(two, {"lr": 0.5}),
    "neurons at the end, Adam 0.3": Training(neurons_at_the_end, {"lr": 0.3, "loss": "mse"}),
    "deeper neurons at the end, Adam 0.03": Training(deeper_neurons_at_the_end, {"lr": 0.03, "loss": "mse"}),
    "neurons at the end, Adam 0.05": Training(neurons_at_the_end, {"lr": 0.05}),
    "neurons at the end, mse, Adam 0.03": Training(neurons_at_the_end, {"lr": 0.03, "loss": "mse"}),
    "deeper neurons at the end, Adam 0.01": Training(deeper_neurons_at_the_end, {"loss": "mse"}),
    "VGG, Adam 0.2": Training(small_vgg, {"lr": 0.2}),
    "MNIST, Adam .2": Training(large_images(), {"lr": 0.2}, **MNIST),
    "Adam 1e-6": Training(convolutional, {"lr": 1e-6}),
    "SGD 1e-4": Training(convolutional, {"optimizer": sgd(1e-4)}),
    **{f"weights times {f:g}": Training(scaled(two, f)) for f in (100, 1e4, 1e8)},
    **{f"deep weights times {f:g}": Training(scaled(five, f)) for f in (30, 1e3)},
    **{f"weights times {f:g}, convolution": Training(scaled(convolutional, f)) for f in (0, 1e3)},
    "weights of 0": Training(scaled(two, 0)),
    "deep weights of 0": Training(scaled(five, 0)),
    "deep weights times .05": Training(scaled(five, 0.05), {"lr": 1e-5}),
    "deep weights times .01": Training(scaled(five, 0.01), {"lr": 1e-4}),
    "weights times 100, neurons at the end": Training(scaled(neurons_at_the_end, 100), {"loss": "mse"}),
    "SGD 3": Training(convolutional, {"optimizer": sgd(3.0)}),
    "low thresholds, .05": Training(lambda: linear(100, 50, threshold=0.05)),
    "silent first layer": Training(shifted(two, -30.0, "1.bias")),
    "silent second layer": Training(shifted(two, -30.0, "3.bias")),
    "silent convolution": Training(shifted(convolutional, -30.0, "0.bias")),
    "silent end": Training(shifted(neurons_at_the_end, -30.0, "3.bias"), {"loss": "mse"}),
    "saturated first layer": Training(shifted(two, 30.0, "1.bias")),
    "saturated second layer": Training(shifted(two, 30.0, "3.bias")),
    "high thresholds": Training(lambda: linear(100, 50, threshold=1e4)),
    "low thresholds": Training(lambda: linear(100, 50, threshold=1e-4)),
    "strong feedback, large weights": Training(scaled(five, 6), network={"feedback": 1.0}),
    "beta 1e-9, neurons silent at the end": Training(
        shifted(neurons_at_the_end, -0.5, "3.bias"), {"loss": "mse"}, nudged(1e-9)
    ),
}
