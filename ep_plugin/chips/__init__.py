"""What chips can and cannot do, as parts that you can combine: weights of few bits, separate feedback, noise, mismatch.

    net = ep.chips.quantize_weights(net, bits=8)
    model = ep.convert(net, feedback_weights="separate", encoder=ep.AdaptiveDelta(event_weight="fixed"))
    ep.chips.add_mismatch(model, x, 0.05)
    ep.chips.add_read_noise(model, 0.05)
    ep.chips.check_budget(model, x, neurons=8192, fan_in=2048, bits=8)

Training then includes what each of them does: the same two phases, the same contrast.
"""

from ep_plugin.chips.budget import check_budget
from ep_plugin.chips.neurons import add_mismatch, add_read_noise
from ep_plugin.chips.weights import QuantizedWeight, quantize_weights
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.linear.separate import SeparateFeedback, feedback_angles

__all__ = [
    "QuantizedWeight",
    "ReadNoise",
    "SeparateFeedback",
    "add_mismatch",
    "add_read_noise",
    "check_budget",
    "feedback_angles",
    "quantize_weights",
]
