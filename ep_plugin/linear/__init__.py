"""Affine maps between neurons and their adjoints: one file a kind, and a registry from module to map."""
