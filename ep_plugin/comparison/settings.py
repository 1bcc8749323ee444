"""What a comparison trains, and how."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ep_plugin.dynamics.encoders import Encoder, EncoderName, as_encoder
from ep_plugin.settings import FEEDBACK
from ep_plugin.validation import chosen, count, fraction, plain_numbers, positive

DATA = {"digits": "DigitsDataModule", "mnist": "MNISTDataModule", "fashion-mnist": "FashionMNISTDataModule"}
CONTENDERS = {"EP": "equilibrium propagation", "BPTT": "snnTorch, surrogate gradients"}
LEARNING_RATES = {"digits": 1e-2, "mnist": 1e-3, "fashion-mnist": 1e-3}  # Adam's


@dataclass(frozen=True)
class ComparisonSettings:
    """What `compare` trains: one net, by both contenders.

    Args:
        data: "digits", "mnist" or "fashion-mnist". Digits come with the package; they train a net of one convolution,
            the others 2C2FC.
        data_dir: where the files of MNIST or FashionMNIST are, in torchvision's layout.
        epochs: passes over the training images, 1 or more.
        batch_size: images per step, 1 or more.
        train_samples: use only the first `train_samples` of the shuffled training images.
        encoder: what EP's neurons send, as in `ConvergentNetwork`.
        seed: of the weights and of the order of the images.
        num_steps: BPTT's time steps, 1 or more.
        lr: Adam's learning rate, above 0. None chooses it by the data.
        feedback: EP's, in (0, 1]. None is the package's default.
        seeds: number of seeds to train: `seed`, `seed + 1`, ...
        net: "package.module:net" trains your own net instead of the package's: an `nn.Module`, or better a function
            that returns one, so that each seed has its own weights. It takes the data's images `[B, 1, H, W]`,
            returns `[B, 10]`, and its neurons hold their state (`init_hidden=True`).

    Raises:
        ValueError: a setting is out of its range or unknown, the data are not there, or EP or BPTT cannot train the
            net.
        TypeError: a setting has a wrong type.

    Example:
        >>> settings = ep.ComparisonSettings(data="digits", epochs=5, seeds=3)
    """

    data: str = "digits"
    data_dir: str | Path = "data"
    epochs: int = 15
    batch_size: int = 32
    train_samples: int | None = None
    encoder: EncoderName | Encoder = "adaptive_delta"
    seed: int = 0
    num_steps: int = 25
    lr: float | None = None
    feedback: float | None = None
    seeds: int = 1
    net: str | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        chosen("data", self.data, DATA)
        as_encoder(self.encoder)
        for name in ("epochs", "batch_size", "num_steps", "seeds"):
            count(name, getattr(self, name))
        count("seed", self.seed, least=0)
        if self.lr is not None:
            positive("lr", self.lr)
        if self.feedback is not None:
            fraction("feedback", self.feedback)
        if self.net is not None:
            self._require_both()
        self.data_module(self.seed)

    def _require_both(self) -> None:
        """A net that only one of the two can train is told of before the other has trained it."""
        from ep_plugin.conversion import ConversionWarning, convert
        from ep_plugin.lightning.bptt_module import BPTTLightningModule

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConversionWarning)
            convert(self.make_net())
        BPTTLightningModule(self.make_net())

    @property
    def learning_rate(self) -> float:
        """Adam's."""
        return LEARNING_RATES[self.data] if self.lr is None else self.lr

    def data_module(self, seed: int) -> Any:
        """The data; a ValueError if the directory does not hold them."""
        from ep_plugin.lightning import data

        kind = getattr(data, DATA[self.data])
        place = {} if self.data == "digits" else {"data_dir": self.data_dir}
        return kind(**place, batch_size=self.batch_size, train_samples=self.train_samples, seed=seed)

    def make_net(self) -> nn.Module:
        """The net of both contenders, its weights drawn from PyTorch's generator.

        To the converted net the neurons' leak makes no difference.
        """
        from ep_plugin.initialization import initialize_
        from ep_plugin.loading import load_net
        from ep_plugin.models import convolutional_2c2fc, small_convolutional

        if self.net is not None:
            return load_net(self.net)
        if self.data == "digits":
            return initialize_(small_convolutional(leak=0.9, channels=32, hidden=128, pooling="max"), gain=1.0)
        return initialize_(convolutional_2c2fc(leak=0.9))

    def described(self) -> str:
        """One line: what is compared with what."""
        net = "1 convolution + 2 linear layers, max pooling," if self.data == "digits" else "2C2FC net"
        if self.net is not None:
            net = self.net
        samples = "" if self.train_samples is None else f", {self.train_samples} training images"
        feedback = FEEDBACK if self.feedback is None else self.feedback
        last = self.seed + self.seeds - 1
        seeds = f"seed {self.seed}" if last == self.seed else f"seeds {self.seed} to {last}"
        return (
            f"EP ({self.encoder} encoder, default steps, feedback {feedback:g}) against snnTorch "
            f"BPTT ({self.num_steps} steps): the same {net} on {self.data}{samples}, {self.epochs} epochs, batch "
            f"{self.batch_size}, Adam {self.learning_rate:g} with cosine decay, {seeds}"
        )

    def plain(self) -> dict[str, Any]:
        """The settings as numbers and strings, for a table."""
        values = {name: value for name, value in asdict(self).items() if name not in ("seed", "seeds", "data_dir")}
        return values | {"encoder": str(self.encoder), "lr": self.learning_rate, "feedback": self.feedback or FEEDBACK}
