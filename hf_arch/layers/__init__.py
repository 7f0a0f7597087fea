"""Norms, activations, positions and channel mixers."""
