"""Neuron classes of snnTorch and Norse with convergent dynamics, for loops of one's own."""
