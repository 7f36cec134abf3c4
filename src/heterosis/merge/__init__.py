"""The maths of merging: pure functions on tensors, and the one kernel that runs them."""

from heterosis.merge.kernel import Kernel, ParentTerm, Rules
from heterosis.merge.magnitude import MagnitudeIndex
from heterosis.merge.methods import METHODS, Method

__all__ = ["METHODS", "Kernel", "MagnitudeIndex", "Method", "ParentTerm", "Rules"]
