"""The recipe: the complete description of one merge, and what lineage records, users share and engines build."""

from heterosis.recipe.merge import Recipe, read_yaml
from heterosis.recipe.parts import (
    NEUTRAL,
    DataSource,
    Depthwise,
    Parameters,
    Source,
    Terms,
    TokenRow,
    Vocabulary,
)

__all__ = [
    "NEUTRAL",
    "DataSource",
    "Depthwise",
    "Parameters",
    "Recipe",
    "Source",
    "Terms",
    "TokenRow",
    "Vocabulary",
    "read_yaml",
]
