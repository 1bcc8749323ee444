"""Neurons: activations, one step of the dynamics, and the classes of other libraries."""
