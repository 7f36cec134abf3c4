"""Optimizers: one ask/tell protocol, one file per family.

An optimizer is a pure function of its seed and of what it was told, so a study resumes by telling it again.
"""

from heterosis.optimizers.protocol import Optimizer, make_optimizer

__all__ = ["Optimizer", "make_optimizer"]
