"""The study file: what a user writes, frozen and checked before anything starts."""

from heterosis.config.load import explain, find_space, load_study, read_yaml, space_folders
from heterosis.config.policy import AnchorsConfig, ConstraintConfig, RacingConfig, StageConfig, WarmStartConfig
from heterosis.config.schema import (
    BudgetConfig,
    DataConfig,
    EngineConfig,
    Model,
    OptimizerConfig,
    SplitsConfig,
    Study,
    TaskConfig,
)
from heterosis.config.spaces import METHOD_NAMES, Blocks, Config, Depth, Gene, Knots, SpaceConfig

__all__ = [
    "METHOD_NAMES",
    "AnchorsConfig",
    "Blocks",
    "BudgetConfig",
    "Config",
    "ConstraintConfig",
    "DataConfig",
    "Depth",
    "EngineConfig",
    "Gene",
    "Knots",
    "Model",
    "OptimizerConfig",
    "RacingConfig",
    "SpaceConfig",
    "SplitsConfig",
    "StageConfig",
    "Study",
    "TaskConfig",
    "WarmStartConfig",
    "explain",
    "find_space",
    "load_study",
    "read_yaml",
    "space_folders",
]
