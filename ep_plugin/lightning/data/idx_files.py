"""The files of MNIST and FashionMNIST, looked at before they are read.

Each begins with a number for its kind and its sizes, four bytes each, big end first. Bytes follow, one for each pixel
or label.
"""

from math import prod
from pathlib import Path
from struct import unpack

PARTS = ("train", "t10k")
_KINDS = {"images-idx3-ubyte": (2051, 3), "labels-idx1-ubyte": (2049, 1)}
_PACKED = b"\x1f\x8b"  # what gzip begins with


def require_whole(raw: Path) -> None:
    """Stops where one of the four files in `raw` is missing, packed, of another kind or not whole.

    Raises:
        ValueError: the message names the file.
    """
    for part in PARTS:
        numbers = {kind: _sizes(raw / f"{part}-{kind}", kind)[0] for kind in _KINDS}
        images, labels = numbers.values()
        if images != labels:
            raise ValueError(
                f"the {part} files in {raw} hold {images} images and {labels} labels; expected a label for every "
                "image: copy both anew"
            )


def _sizes(file: Path, kind: str) -> tuple[int, ...]:
    if not file.is_file():
        packed = file.with_name(f"{file.name}.gz")
        how = f"unpack {packed.name} (gzip -d)" if packed.is_file() else "copy it there"
        raise ValueError(f"there is no file {file}; {how}, or let torchvision fetch it with download=True")
    number, axes = _KINDS[kind]
    length = 4 + 4 * axes
    try:
        with file.open("rb") as opened:
            head = opened.read(length)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    if head.startswith(_PACKED):
        raise ValueError(f"{file} is packed; unpack it: rename it to {file.name}.gz, then gzip -d")
    found = unpack(f">{len(head) // 4}i", head[: len(head) // 4 * 4])
    if found[:1] != (number,):
        others = [name for name, (other, _) in _KINDS.items() if found[:1] == (other,)]
        what = f"holds what {others[0]} files hold" if others else "is no such file, or a damaged one"
        raise ValueError(f"{file} {what}; expected it to begin with the number {number}: copy it anew")
    sizes = found[1:]
    if len(head) < length or file.stat().st_size != length + prod(sizes):
        raise ValueError(
            f"{file} is not whole: it has {file.stat().st_size:,} bytes"
            + (f", where its first ones promise {length + prod(sizes):,}" if len(head) == length else "")
            + "; copy it anew"
        )
    if axes == 3 and sizes[1:] != (28, 28):
        raise ValueError(f"{file} holds images of {sizes[1]} x {sizes[2]} pixels; expected 28 x 28")
    return sizes
