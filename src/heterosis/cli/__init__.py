"""The command line: parse, call one function, print. Results go to standard output, all else to standard error."""

from heterosis.cli import merging, publishing, reporting, setup, study, sweeping, viewing
from heterosis.cli.app import app, main

__all__ = ["app", "main", "merging", "publishing", "reporting", "setup", "study", "sweeping", "viewing"]
