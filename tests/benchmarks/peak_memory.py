"""Prints the peak memory of one training step above the start, in MB: `python peak_memory.py NET BATCH CONTENDER`.

A contender may end in `@STEPS`, which sets the steps of all phases of EP.
"""

import sys
import warnings

warnings.simplefilter("ignore")

from contenders import CONTENDERS, NETS  # noqa: E402

import ep_plugin as ep  # noqa: E402
from ep_plugin.memory import peak_memory, reset_peak_memory  # noqa: E402

if __name__ == "__main__":
    net, batch, contender = sys.argv[1:]
    contender, _, steps = contender.partition("@")
    if steps:
        make = ep.convert
        ep.convert = lambda net, **options: make(  # type: ignore[assignment]
            net,
            relaxation=ep.Relaxation(int(steps)),
            estimator=ep.EquilibriumPropagation(steps=int(steps)),
            **options,
        )
    step = CONTENDERS[contender](NETS[net], int(batch))
    start = reset_peak_memory()
    step()
    print(peak_memory() - start)
