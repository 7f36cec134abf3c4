"""A family on paper: recipes of two parents whose weights nobody reads, for tests of what only passes recipes on."""

from __future__ import annotations

from heterosis.config import SpaceConfig
from heterosis.recipe import Recipe, Source
from heterosis.space import WHOLE, Space, baselines

BLANK = Recipe(
    method="task_arithmetic",
    base=Source(name="base", model="b", digest="0"),
    parents=tuple(Source(name=name, model=name, digest=digest) for name, digest in (("x", "1"), ("y", "2"))),
    groups=WHOLE,
    parameters={},
)
SPACE = Space(
    SpaceConfig.model_validate({"method": "task_arithmetic", "depth": "uniform", "weight": {"low": 0.0, "high": 1.5}}),
    BLANK,
    ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"],
)
BASELINES = baselines(BLANK)
