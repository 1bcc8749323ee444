"""Whether this processor only emulates bfloat16."""

from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F

# Below this a measurement says little. With AVX2 alone, convolutions took 33 to 130 times as long.
SLOWER = 4.0


@cache
def bfloat16_slowdown() -> float:
    """How many times as long a convolution takes in bfloat16 as in float32, on the CPU.

    Measured once in a process, in a few milliseconds where bfloat16 is fast and in a fifth of a second where it is
    not: PyTorch has no public word on it.
    """
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.zeros(4, 32, 16, 16, dtype=dtype), torch.zeros(32, 32, 3, 3, dtype=dtype)
    taken = []
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(4):  # the first also compiles the kernel
            start = perf_counter()
            F.conv2d(x, weight, padding=1)
            taken.append(perf_counter() - start)
    return min(taken)
