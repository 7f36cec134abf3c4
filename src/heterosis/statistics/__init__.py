"""What scores mean: the objective, and intervals for it and for differences."""

from heterosis.statistics.bootstrap import Interval, interval, resample
from heterosis.statistics.objective import Objective

__all__ = ["Interval", "Objective", "interval", "resample"]
