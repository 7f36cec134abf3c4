"""`python -m heterosis`."""

import sys

from heterosis.cli import main

if __name__ == "__main__":
    # Processes that are spawned then import this file, and so the package, before anything else (evaluation/owner.py).
    sys.modules[__name__].__spec__ = None
    main()
