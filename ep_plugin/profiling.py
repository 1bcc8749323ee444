"""The time of a training step: of each phase, and of each layer in a phase."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ep_plugin.unnoticed import buffers_as_before
from ep_plugin.validation import count

Place = tuple[str, ...]

_IDLE = nullcontext()


class _Local(threading.local):
    recorder: "_Recorder | None" = None  # set within `profile` and `carried_on` alone


_active = _Local()  # what another thread trains meanwhile is no part of this one's profile


def section(name: str) -> AbstractContextManager[None]:
    """Marks a part of the work under its name. Costs next to nothing unless a profile is being taken."""
    recorder = _active.recorder
    return _IDLE if recorder is None else recorder.section(name)


def recorder() -> "_Recorder | None":
    """What takes the profile of this thread; None where none is being taken."""
    return _active.recorder


@contextmanager
def carried_on(by: "_Recorder | None") -> Iterator[None]:
    """In which the profile goes on that another thread has begun: of a GPU autograd runs backward passes in its own."""
    before, _active.recorder = _active.recorder, by
    try:
        yield
    finally:
        _active.recorder = before


@dataclass(frozen=True)
class Part:
    """Part of a training step.

    Attributes:
        phase: "stem", "free phase", "readout and loss"; with equilibrium propagation also "nudged phases" and
            "contrast", with implicit differentiation "adjoint"; and "other", such as autograd's own backward pass.
        name: the part of the phase: "0 -> 1 up", "0 -> 1 down", "layer 1 neurons", "rest"; "all" if the phase has no
            parts.
        calls: how often it ran in one training step.
        seconds: time of all these calls.
    """

    phase: str
    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """A training step's parts in the order in which they first ran.

    Attributes:
        parts: means over the repetitions; their seconds add up to `profiled`.
        seconds: median time of a step that is not profiled.
        profiled: mean time of a profiled step. It is longer, because the clock is read so often.

    Example:
        >>> result = ep.profile(model, x, y, repeats=2)
        >>> slowest = max(result.parts, key=lambda part: part.seconds)
    """

    parts: tuple[Part, ...]
    seconds: float
    profiled: float


def profile(
    model: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.cross_entropy,
    repeats: int = 10,
) -> Profile:
    """Times `repeats` training steps (the loss and its gradients, no optimizer).

    The parameters' present gradients are lost; running statistics are given back. Autocast around the call also
    applies to the steps.

    Args:
        model: a `ConvergentNetwork`, with any gradient estimator.
        x: one batch, `[B, ...]`.
        y: the second argument of `loss`.
        loss: of (output, y).
        repeats: number of steps, 1 or more.

    Returns:
        The time of each phase and part.

    Raises:
        ValueError: as `ConvergentNetwork.forward`, or `repeats` is below 1.
        TypeError: as `ConvergentNetwork.forward`, or `repeats` is not a whole number.

    Example:
        >>> for part in ep.profile(model, x, y).parts:
        ...     print(part.phase, part.name, part.seconds)
    """
    repeats = count("repeats", repeats)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(x)
        with section("readout and loss"):
            value = loss(output, y)
        # The nudged phases run in the backward pass, which is outside autocast as PyTorch advises.
        with torch.autocast(x.device.type, enabled=False):
            value.backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    if recorder() is not None:
        raise RuntimeError("a profile is being taken already; expected one at a time in a thread")
    taken = _Recorder(x.device)
    with buffers_as_before(model):
        step()
        plain = [_timed(step) for _ in range(repeats)]
        with carried_on(by=taken):
            total = sum(_timed(step) for _ in range(repeats))
    return Profile(tuple(taken.parts(repeats, total)), median(plain), total / repeats)


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


class _Recorder:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.open: Place = ()
        self.seconds: dict[Place, float] = defaultdict(float)
        self.calls: dict[Place, int] = defaultdict(int)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        outer, self.open = self.open, (*self.open, name)
        place = self.open
        self.seconds[place] += 0.0  # in the order of their first start
        start = self._now()
        try:
            yield
        finally:
            self.seconds[place] += self._now() - start
            self.calls[place] += 1
            self.open = outer

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def parts(self, repeats: int, total: float) -> Iterator[Part]:
        phases = [place for place in self.seconds if len(place) == 1]
        for phase in phases:
            inner = [place for place in self.seconds if len(place) == 2 and place[:1] == phase]
            for place in inner:
                yield Part(place[0], place[1], self.calls[place] // repeats, self.seconds[place] / repeats)
            rest = self.seconds[phase] - sum(self.seconds[place] for place in inner)
            yield Part(phase[0], "rest" if inner else "all", self.calls[phase] // repeats, rest / repeats)
        other = total - sum(self.seconds[phase] for phase in phases)
        yield Part("other", "all", 1, other / repeats)
