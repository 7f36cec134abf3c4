"""mergekit's configurations, read as recipes and written from them."""

from heterosis.mergekit.read import Opened, open_mergekit
from heterosis.mergekit.schema import MergekitConfig, is_mergekit, load, parse
from heterosis.mergekit.write import Translated, to_mergekit

__all__ = ["MergekitConfig", "Opened", "Translated", "is_mergekit", "load", "open_mergekit", "parse", "to_mergekit"]
