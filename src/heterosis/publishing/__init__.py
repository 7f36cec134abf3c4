"""A merge made ready for others: its card, the licences it is under, files for leaderboards, the way to the hub."""

from heterosis.publishing.card import About, card
from heterosis.publishing.findings import Findings, findings
from heterosis.publishing.leaderboard import write_leaderboard_files
from heterosis.publishing.licences import Assessment, Licence, assess, read_licence

__all__ = [
    "About",
    "Assessment",
    "Findings",
    "Licence",
    "assess",
    "card",
    "findings",
    "read_licence",
    "write_leaderboard_files",
]
