"""Heterosis searches how to merge language models, and proves that what it found is better."""

__version__ = "0.1.0"
