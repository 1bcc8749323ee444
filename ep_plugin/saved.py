"""Files that PyTorch has saved, read without running anything that is in them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def read(path: Path, what: str) -> Any:
    """What `torch.save` has written, in the processor's memory; `what` it is called in messages.

    Raises:
        ValueError: there is no such file, it is damaged, or holds anything but plain data and tensors.
    """
    if not path.is_file():
        raise ValueError(f"there is no {what} {path}" if not path.exists() else f"{path} is no file; expected a {what}")
    if not zipfile.is_zipfile(path):  # an empty, cut or foreign file, or one of PyTorch before 1.6
        size = path.stat().st_size
        raise ValueError(f"{path} ({size:,} bytes) is no {what}, or not the whole of one; take another, or train anew")
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()  # PyTorch's own reading does not compare the checksums
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise ValueError(f"the {what} {path} is damaged ({error}); take another, or train anew") from error
    if damaged is not None:
        raise ValueError(f"the {what} {path} is damaged: the checksum of {damaged} is another; take another")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a foreign file is
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the bytes lead to; nothing of it is run
        raise ValueError(
            f"the {what} {path} cannot be read: it holds something beside tensors, numbers and strings, or was not "
            "written by torch.save; nothing in it was run"
        ) from error
