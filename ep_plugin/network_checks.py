"""What a network refuses before any work: graphs, inputs and records that do not fit."""

import inspect
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.encoders.event_weights import is_fixed
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.relaxation import FreePhase, Relaxation
from ep_plugin.dynamics.system import System
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.linear.base import is_hooked, is_hooked_backward
from ep_plugin.linear.connection import Connection
from ep_plugin.settings import Settings
from ep_plugin.validation import count, expected_input, require_finite


def check_graph(
    own: Sequence[Layer],
    connections: Sequence[Connection],
    driven: Sequence[int],
    read: Sequence[int],
    readout: nn.Module,
) -> None:
    layers = len(own)
    for l, layer in enumerate(own):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{l}] is {type(layer).__name__}(...); expected Layer(...)")
    if layers == 0:
        raise ValueError("the network has no layer of neurons; expected at least one")
    for what, chosen in (("driven", driven), ("read", read)):
        if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= l < layers for l in chosen):
            raise ValueError(f"{what} is {tuple(chosen)}; expected one or more different layers of 0..{layers - 1}")
    for c in connections:
        if not isinstance(c, Connection):
            raise TypeError(f"{c!r} is not a Connection; expected Connection(module, source, target)")
        if not (0 <= c.source < layers and 0 <= c.target < layers):
            raise ValueError(
                f"the connection {c.source} -> {c.target} names a layer that is not there; expected 0..{layers - 1}"
            )
    reached, before = set(driven), 0
    while len(reached) > before:
        before = len(reached)
        reached |= {c.target for c in connections if c.source in reached}
    if missing := sorted(set(range(layers)) - reached):
        raise ValueError(
            f"no connection leads from the driven layers ({', '.join(map(str, driven))}) to layer {missing[0]}; "
            f"expected one, or {missing[0]} among the driven layers"
        )
    if not _takes(readout, len(read)):
        raise ValueError(
            f"read is {tuple(read)}, and the forward of the readout, {type(readout).__name__}(...), does not take "
            f"{len(read)} argument{'s' if len(read) > 1 else ''}; expected one argument per layer in read"
        )


def _takes(module: nn.Module, arguments: int) -> bool:
    """Whether its forward takes so many arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(module.forward)
    except ValueError:  # code without a signature
        return True
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def checked_part(name: str, value: Any) -> Any:
    """What is to become an attribute of a network, as it may be.

    Raises:
        TypeError: a part of a network is of a wrong type.
    """
    if name in ("stem", "readout") and not isinstance(value, nn.Module):
        raise TypeError(f"the {name} is {value!r}; expected an nn.Module")
    if name in ("layers", "connections"):
        if not isinstance(value, (nn.ModuleList, list, tuple)):
            raise TypeError(f"the {name} are {value!r}; expected a list")
        return value if isinstance(value, nn.ModuleList) else nn.ModuleList(value)
    if name in ("driven", "read"):
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise TypeError(f"{name} is {value!r}; expected the numbers of one or more layers, such as (0,)")
        return tuple(count(f"a number in {name}", l, least=0) for l in value)
    if name == "settings" and not isinstance(value, Settings):
        raise TypeError(f"settings is {value!r}; expected Settings, or one of them set: model.encoder = ...")
    return value


def require_unhooked(layers: Sequence[Layer], connections: Sequence[Connection]) -> None:
    """Refuses hooks that would never be called.

    Raises:
        ValueError: where one is, and the way out.
    """
    for name, own in (("layers", layers), ("connections", connections)):
        for i, module in enumerate(own):
            if is_hooked(module) or is_hooked_backward(module):
                raise ValueError(
                    f"{name}[{i}] has a hook or a forward of its own, and a network never calls its {name}; remove it "
                    "(model.free_phase(x, record=True) tells the states of all layers, and a hook on connections[i]."
                    "module or on the network itself is called)"
                )


def check_settings(settings: Settings, layers: Sequence[Layer], connections: Sequence[Connection]) -> None:
    """Refuses settings that mean nothing for these layers, and warns of those that lose something.

    Raises:
        ValueError: states may be negative, or have no bound, and the encoder's spikes are binary.
    """
    for l, layer in enumerate(layers):
        if not settings.encoder.signed and math.isinf(layer.activation.maximum):
            raise ValueError(
                f"the states of layer {l} have no bound, and a binary spike stands for the largest state "
                f'({settings.encoder!r}); use encoder="adaptive_delta" or "graded", or an activation with a bound, '
                'such as "relu6"'
            )
        if not settings.encoder.signed and layer.activation.least < 0:
            raise ValueError(
                f"the states of layer {l} may be negative (down to {layer.activation.least:g}), which binary "
                f'spikes cannot tell ({settings.encoder!r}); use encoder="adaptive_delta" or "graded", or an '
                "activation whose states are 0 or more"
            )
    for c in connections:
        if c.pools_maxima and layers[c.target].activation.least < 0:
            warnings.warn(
                f"max pooling before layer {c.target}, whose states may be negative: two inputs may "
                "take turns as winners for ever, and the network never settle (see Equilibrium.residual); use an "
                "activation whose states are 0 or more, or average pooling",
                stacklevel=5,
            )
        if c.pools_maxima and settings.encoder.spiking and isinstance(settings.estimator, FullPhaseEP):
            warnings.warn(
                f"max pooling before layer {c.target} and full phases of spikes: their winners do not match, so "
                "that the gradient is lost below (cosines of .1 in the first layer of 2C2FC); use "
                "EquilibriumPropagation()",
                stacklevel=5,
            )
    if is_fixed(settings.encoder) and isinstance(settings.estimator, FullPhaseEP):
        raise ValueError(
            "fixed event weights are constants of the free phase's steps, beyond which full phases go on; use "
            'estimator=EquilibriumPropagation() or AdaptiveDelta(event_weight="sample")'
        )


def layer_shapes(
    layers: Sequence[Layer], connections: Sequence[Connection], driven: Sequence[int], drives: Sequence[Tensor]
) -> list[tuple[int, ...]]:
    """Every layer's shape without the batch, once connections and thresholds are known to fit.

    Raises:
        ValueError: one does not.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    for l, drive in zip(driven, drives, strict=True):
        shapes[l] = tuple(drive.shape[1:])
    pending = list(connections)
    while pending:
        connection = next(c for c in pending if c.source in shapes)
        pending.remove(connection)
        i, j = connection.source, connection.target
        try:
            shape = connection.shapes(shapes[i])[-1]
        except RuntimeError as error:
            if (types := mixed_types(connection)) is not None:
                raise ValueError(f"the connection {i} -> {j} {types}") from error
            raise ValueError(
                f"the connection {i} -> {j} does not fit layer {i}, which has the shape {list(shapes[i])} "
                f"for this input: {error}"
            ) from error
        if shapes.setdefault(j, shape) != shape:
            raise ValueError(
                f"the connection {i} -> {j} gives the shape {list(shape)}; expected {list(shapes[j])}, which "
                f"layer {j} has (parts of a sum are not stretched to each other: use expand)"
            )
    for l, layer in enumerate(layers):
        threshold = layer.theta
        if threshold.dim() and not _broadcasts(threshold.shape, (1, *shapes[l])):
            raise ValueError(
                f"the threshold of layer {l} has the shape {list(threshold.shape)}, which does not "
                f"broadcast against the layer's neurons {list(shapes[l])}"
            )
    return [shapes[l] for l in range(len(layers))]


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of `shape` combines with one of `target` without changing its shape."""
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False))


def steps_a_frame(relaxation: Relaxation, wanted: int, frames: int) -> int:
    if relaxation.tolerance is not None:
        raise ValueError(
            f"the relaxation has the tolerance {relaxation.tolerance:g}, at which a sample stops; expected None, as "
            "an input that changes over time has to be seen to its end"
        )
    if relaxation.steps is None:
        return -(-wanted // frames)
    if relaxation.steps % frames:
        raise ValueError(
            f"the relaxation takes {relaxation.steps} steps for {frames} frames; expected one or more steps for each "
            f"frame, such as Relaxation({frames})"
        )
    return relaxation.steps // frames


def check_input(x: Tensor, stem: nn.Module, time_axis: int | None) -> None:
    """Refuses what cannot be an input of a network with this stem.

    Args:
        x: the input.
        stem: of the network.
        time_axis: of the frames; None for an input that is constant.

    Raises:
        ValueError: a wrong shape, an empty batch, or numbers that are not finite.
        TypeError: no tensor of floating point numbers.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"the input is a {type(x).__name__}; expected a tensor [{_words(['...'], time_axis)}]")
    if x.layout != torch.strided:
        raise TypeError(f"the input is sparse ({x.layout}); expected a dense tensor: x.to_dense()")
    if any(p.is_complex() for p in stem.parameters()):
        raise TypeError("the network's weights are complex, and its neurons have real states; expected real weights")
    if x.is_inference() and torch.is_grad_enabled():
        raise ValueError("the input was made under torch.inference_mode(), and training has to keep it; give x.clone()")
    if not x.is_floating_point():
        if any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in stem.modules()):
            raise TypeError(
                f"the input has the type {x.dtype}, which an embedding in the model looks up; a network's input is "
                "floating point. Leave the embedding out of the model that is converted, and call it before: "
                "model(embedding(tokens)), which trains it too"
            )
        raise TypeError(
            f"the input has the type {x.dtype}; expected floating point (images in [0, 1]: x.float() / 255)"
        )
    expected, shape = expected_input(stem), list(x.shape)
    if time_axis is not None and not -x.dim() <= time_axis < x.dim():
        raise ValueError(f"the input has the shape {shape}, with no axis {time_axis}, which the frames lie along")
    leading = [] if time_axis is None else [shape[time_axis]]
    constant = [n for i, n in enumerate(shape) if time_axis is None or i != time_axis % len(shape)]
    sample = constant[1:]
    if expected is None:
        if not sample:
            raise ValueError(f"the input has the shape {shape}; expected [{_words(['...'], time_axis)}]")
    elif len(expected) != len(sample) or any(e != n for e, n in zip(expected, sample, strict=True) if e is not None):
        words = _words(["size" if e is None else str(e) for e in expected], time_axis)
        way_out = (
            " (if a sample has more axes, such as one of tokens, convert with example_input=x)"
            if len(expected) == 1 and len(sample) > 1 and sample[-1:] == expected
            else ""
        )
        raise ValueError(f"the input has the shape {shape}; expected [{words}]{way_out}")
    if 0 in (*leading, *constant[:1]):
        raise ValueError(f"the input has the shape {shape}: an empty batch; expected at least one sample")
    if not x.is_meta and not bool(x.isfinite().all()):
        raise ValueError(f"the input holds NaN or infinite values{_where(x, time_axis)}; expected finite numbers")


def mixed_types(module: nn.Module) -> str | None:
    """In words: which weights of a module are of another type than its others; None if there are none."""
    found = [(name, p.dtype) for name, p in module.named_parameters()]
    other = next(((name, kind) for name, kind in found if kind != found[0][1]), None)
    if other is None:
        return None
    return (
        f"has weights of several types, {found[0][0]!r} {found[0][1]} and {other[0]!r} {other[1]}; expected one, such "
        f"as model.to({found[0][1]})"
    )


def misfit(x: Tensor, stem: nn.Module, error: RuntimeError) -> ValueError:
    """What to say of an input that the modules before the first neuron do not take."""
    weight = next((p for p in stem.parameters() if p.is_floating_point()), x)
    if (types := mixed_types(stem)) is not None:
        return ValueError(f"what stands before the first neuron {types}")
    if x.dtype != weight.dtype:
        return ValueError(
            f"the input has the type {x.dtype} and the network's weights {weight.dtype}; expected one of both: "
            f"x.to({weight.dtype}), or model.to({x.dtype})"
        )
    if x.device != weight.device:
        return ValueError(
            f"the input is on {x.device} and the network's weights on {weight.device}; expected one place: "
            f"x.to({str(weight.device)!r}), or model.to({str(x.device)!r})"
        )
    return ValueError(f"an input of shape {list(x.shape)} does not fit the modules before the first neuron: {error}")


def unread(
    x: Tensor, states: Sequence[Tensor], read: Sequence[int], readout: nn.Module, error: RuntimeError
) -> ValueError:
    """What to say of states that the readout does not take."""
    if (types := mixed_types(readout)) is not None:
        return ValueError(f"the readout {types}")
    seen = ", ".join(f"layer {l} of the shape {list(u.shape)}" for l, u in zip(read, states, strict=True))
    return ValueError(
        f"the readout does not take what it sees for an input of shape {list(x.shape)}, {seen}: {error}; expected "
        "another size of the input, or other layers in model.read"
    )


def _where(x: Tensor, time_axis: int | None) -> str:
    """The first sample that is not finite."""
    samples = x if time_axis is None else x.movedim(time_axis, 0).movedim(1, 0)
    bad = ~samples.flatten(1).isfinite().all(1)
    return f" in sample {int(bad.nonzero()[0])} of {len(bad)} ({int(bad.sum())} in all)"


def _words(sample: list[str], time_axis: int | None) -> str:
    """An input's axes in words."""
    words = ["batch", *sample]
    if time_axis is not None:
        words.insert(time_axis if time_axis >= 0 else len(words) + 1 + time_axis, "time")
    return ", ".join(words)


def require_finite_states(free: FreePhase) -> None:
    require_finite("the state of a neuron", free.membranes, [f"layer {l}" for l in range(len(free.membranes))])


def require_positive_thresholds(layers: Sequence[Layer]) -> None:
    """Refuses thresholds and gains at which a neuron has no equilibrium.

    Those that are trained are looked at in every call, all at once. Of others a device is asked only after something
    was written into them.

    Raises:
        ValueError: which layer's.
    """
    thresholds = [layer.threshold for layer in layers]
    learnable = [t for t in thresholds if t.requires_grad and not t.is_meta]
    if learnable and not bool(torch.stack([(t > 0).all() for t in learnable]).all()):
        raise ValueError(
            "a learnable threshold has fallen to 0 or below, where a neuron has no equilibrium; lower its "
            "learning rate or clamp it after each step"
        )
    for l, layer in enumerate(layers):
        if (found := layer.not_positive()) is not None:
            name, value = found
            raise ValueError(
                f"the {name} of layer {l} is {value:g}, where a neuron has no equilibrium; expected numbers above 0"
            )


def require_room(system: System, steps: int, shape: Sequence[int]) -> None:
    """Refuses a record of so many steps that does not fit into memory."""
    neurons = sum(torch.Size(s).numel() for s in system.shapes)
    wanted = 3 * steps * len(system.like) * neurons * system.like.element_size()
    if system.like.device.type == "cuda":
        free = torch.cuda.mem_get_info(system.like.device)[0]
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if wanted > free:
        raise ValueError(
            f"a record of {steps} steps of {neurons:,} neurons for an input of shape {list(shape)} takes "
            f"{wanted / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free; record fewer samples"
        )
