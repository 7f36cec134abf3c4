"""The study file: what a user writes, frozen and checked before anything starts."""

from heterosis.config.load import explain, find_space, load_study, read_yaml, space_folders
from heterosis.config.schema import (
    METHOD_NAMES,
    Blocks,
    BudgetConfig,
    Config,
    DataConfig,
    Depth,
    EngineConfig,
    Gene,
    Knots,
    Model,
    OptimizerConfig,
    SpaceConfig,
    SplitsConfig,
    Study,
    TaskConfig,
)

__all__ = [
    "METHOD_NAMES",
    "Blocks",
    "BudgetConfig",
    "Config",
    "DataConfig",
    "Depth",
    "EngineConfig",
    "Gene",
    "Knots",
    "Model",
    "OptimizerConfig",
    "SpaceConfig",
    "SplitsConfig",
    "Study",
    "TaskConfig",
    "explain",
    "find_space",
    "load_study",
    "read_yaml",
    "space_folders",
]
