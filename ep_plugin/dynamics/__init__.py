"""What a network's neurons do: equations, activations, encoders, relaxation and nudged phases."""
