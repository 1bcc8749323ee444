"""Images that come with a dependency."""

import torch

from ep_plugin.lightning.data.images import ImageDataModule, Images


class DigitsDataModule(ImageDataModule):
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which are installed with it; a fifth of them are test images.

    Batches are images `[B, 1, 8, 8]` in [0, 1] and their classes `[B]`.

    Args:
        batch_size: images per batch, 1 or more.
        train_samples: use only the first `train_samples` of the shuffled training images.
        seed: of the shuffles, whose order depends only on seed and epoch, and of the augmentation; 0 or more.
        validation: share of the training images that is held out, in (0, 1), chosen by `seed`; "split": the same
            tenth of them for every seed, by which numbers of epochs can be chosen; or "test": train on all of them
            and measure the error of the test images after every epoch. With "test", choose nothing by this error.
        augmentation: from one training image `[C, H, W]` to another, such as a transform of torchvision. What it draws
            from the global generators of PyTorch, NumPy and Python depends on `seed`, epoch and batch.
        rate_coded: number of steps of spike trains `[T, B, C, H, W]`, into which the images are converted: each pixel
            fires with its brightness as probability (`snntorch.spikegen.rate`), drawn again for every batch. None
            leaves the images as they are.
        num_workers: processes that read and augment training images while the net trains; 0: no extra process. They
            help if the augmentation takes as long as a training step, as it does on a GPU.

    Raises:
        ValueError: a number is out of its range. In `setup`: there are fewer training images than are asked for.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.DigitsDataModule(batch_size=32)
        >>> data.setup()
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape
        torch.Size([32, 1, 8, 8])
    """

    def stored(self) -> tuple[Images, Images]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(digits.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same split for every seed
        test, train = order[:360], order[360:]
        return (x[train], y[train]), (x[test], y[test])
