"""What texts say about a model: its Fisher information and its Gram matrices, measured once and kept by content."""

from heterosis.evidence.cache import Evidence, Kind, cache_folder
from heterosis.evidence.fisher import Labels
from heterosis.evidence.measure import collect
from heterosis.evidence.texts import read_texts

__all__ = ["Evidence", "Kind", "Labels", "cache_folder", "collect", "read_texts"]
