"""The maths of merging: pure functions on tensors, and the one kernel that runs them."""

from heterosis.merge.kernel import Kernel, ParentTerm
from heterosis.merge.magnitude import MagnitudeIndex
from heterosis.merge.methods import METHODS, Divisor, Method

__all__ = ["METHODS", "Divisor", "Kernel", "MagnitudeIndex", "Method", "ParentTerm"]
