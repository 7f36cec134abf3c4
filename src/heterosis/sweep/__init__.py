"""Hyperparameter studies: curves and grids over what a recipe says, on shared items and mask seeds."""

from heterosis.sweep.run import plan, sweep
from heterosis.sweep.table import show

__all__ = ["plan", "show", "sweep"]
