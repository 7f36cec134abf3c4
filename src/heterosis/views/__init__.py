"""Studies looked at from the command line: how one stands, one candidate, two candidates against each other."""

from heterosis.views.candidate import Shown, show
from heterosis.views.comparison import Compared, compare
from heterosis.views.progress import Progress, Tracker
from heterosis.views.status import Status, Unreadable, status, statuses

__all__ = [
    "Compared",
    "Progress",
    "Shown",
    "Status",
    "Tracker",
    "Unreadable",
    "compare",
    "show",
    "status",
    "statuses",
]
