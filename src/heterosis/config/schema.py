"""The keys of a study file, frozen: what a user may write, and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from heterosis.config.policy import AnchorsConfig, ConstraintConfig, RacingConfig, StageConfig, WarmStartConfig
from heterosis.config.spaces import METHOD_NAMES, Config, SpaceConfig

# Names under which the program itself speaks of merges.
RESERVED_NAME = re.compile(r"base|all|average|mean.*|c\d+")
RESERVED_WORDS = "base, all, average, mean…, c1, c2, …"
RESERVED_OPTIONS = {"model", "worker_extension_cls", "enable_prefix_caching", "seed"}


class Model(Config):
    """A base or parent model."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    model: str
    """Local folder (relative to the study file) or hub id `owner/name`."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class TaskConfig(Config):
    """One benchmark."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    task: str
    """Name of a built-in lm-eval task or group, or a task file of your own (.yaml, relative to the study file)."""
    metric: str | None = None
    """Metric to search on; the task's first when left out."""
    filter: str | None = None
    """lm-eval filter whose output is scored; the task's first when left out."""
    direction: Literal["maximize", "minimize"] | None = None
    """Overrides the direction that the task declares."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in the objective."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Number of examples in the prompt; the task's own when left out."""
    limit: Annotated[int, Field(ge=3)] | None = None
    """Use at most so many of the task's items, picked by hash; all when left out."""
    chat_template: bool = False
    """Put prompts into the model's chat format."""
    cluster: str | None = None
    """Field of the task's documents whose equal values belong together (a passage with several questions): such items
    stay in one split and are resampled as one. Long texts that several documents share are found by themselves."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value


class DataConfig(Config):
    """Texts on which fisher and regmean measure the parents."""

    path: str
    """A .txt or .jsonl file, relative to the study file. Not the benchmark's own items."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Use the first so many texts."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Cut texts to so many tokens."""
    field: str = "text"
    """Key of the text in a .jsonl file."""
    labels: Literal["model", "data"] = "model"
    """Whose next tokens Fisher information is taken over: drawn from the model (the definition), or the text's own."""


class SplitsConfig(Config):
    """How many of each task's items go into each split: a number of items, or a fraction below 1."""

    search: Annotated[float, Field(gt=0)] = 0.4
    """Items that drive the optimizer."""
    selection: Annotated[float, Field(gt=0)] = 0.3
    """Items on which the winner is chosen among the finalists."""
    test: Annotated[float, Field(gt=0)] = 0.3
    """Items opened once, at the end, for the claim."""

    @model_validator(mode="after")
    def _whole(self) -> SplitsConfig:
        fractions = sum(size for size in (self.search, self.selection, self.test) if size < 1)
        if fractions > 1 + 1e-9:
            raise ValueError(f"its fractions sum to {fractions:g}; they are shares of a task's items, at most 1 in all")
        return self


class OptimizerConfig(Config):
    """Who proposes candidates."""

    name: Literal["cmaes", "tpe", "gp", "nsga2", "nsga3", "random"] = "cmaes"
    """cmaes is pycma; the others are Optuna's samplers. For a pareto objective: nsga2, nsga3, or, driven by
    hypervolume, tpe or gp."""
    population: Annotated[int, Field(ge=2)] | None = None
    """Candidates in a generation; 4 + 3 ln(genes) when left out."""
    sigma: Annotated[float, Field(gt=0, le=1)] | None = None
    """First step size of CMA-ES as a fraction of each range; the space's when left out."""


class BudgetConfig(Config):
    """When to stop: whichever ends first."""

    candidates: Annotated[int, Field(ge=1)] | None = None
    """Proposed candidates, the baselines of generation 0 not counted."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Wall time of the search, over all runs of the study."""
    items: Annotated[int, Field(ge=1)] | None = None
    """Evaluated items on the search split, baselines included."""

    @model_validator(mode="after")
    def _some(self) -> BudgetConfig:
        if self.candidates is None and self.hours is None and self.items is None:
            raise ValueError("give at least one of candidates, hours, items")
        return self


class EngineConfig(Config):
    """What answers the benchmark's questions."""

    kind: Literal["vllm", "transformers"] = "vllm"
    """vllm (started once, merges in place), or plain transformers."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed through to vllm.LLM (tensor_parallel_size, gpu_memory_utilization, max_model_len, …). The transformers
    engine takes max_model_len, device and dtype. dtype is what the engine computes in: that of the merged weights when
    left out, or float32 on a CPU without bf16 instructions."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a candidate on which the engine dies is tried again, on a fresh engine, before it counts as failed."""
    deadline: Annotated[float, Field(gt=0)] | None = None
    """Seconds that one candidate may take before its engine is stopped; when left out, ten times the longest so far and
    at least ten minutes."""

    @field_validator("options")
    @classmethod
    def _safe(cls, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("trust_remote_code"):
            raise ValueError("trust_remote_code would run code from the model's folder; it is not supported")
        if reserved := sorted(RESERVED_OPTIONS & set(options)):
            raise ValueError(f"{reserved[0]} is set by the study itself; remove it")
        length = options.get("max_model_len", 8)
        if not isinstance(length, int) or isinstance(length, bool) or length < 8:
            raise ValueError(f"max_model_len must be a whole number of at least 8 tokens, not {length!r}")
        if options.get("dtype", "float32") not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype must be float32, float16 or bfloat16, not {options['dtype']!r}")
        return options

    @model_validator(mode="after")
    def _known(self) -> EngineConfig:
        unknown = sorted(set(self.options) - {"max_model_len", "device", "dtype"})
        if self.kind == "transformers" and unknown:
            raise ValueError(f"the transformers engine takes max_model_len, device and dtype, not {unknown[0]}")
        return self


class Study(Config):
    """A study: which models to merge, what to search, how to score, when to stop."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the study and of its folder in `output`."""
    base: Model
    """The checkpoint that all parents were fine-tuned from."""
    parents: Annotated[dict[str, Model], Field(min_length=1)]
    """Name -> fine-tune of the base."""
    method: METHOD_NAMES | None = None
    """How candidates are merged; the space's when left out."""
    space: SpaceConfig | str = "dare_ties_knots"
    """The search space, inline, as a file (relative to the study file), or the name of one in `search_spaces/`."""
    data: DataConfig | dict[str, DataConfig] | None = None
    """Texts for methods that measure the parents (fisher, regmean): one file for all, or, better, each parent's own."""
    tasks: Annotated[tuple[TaskConfig, ...], Field(min_length=1)]
    """Benchmarks to score candidates on."""
    objective: Literal["mean", "normalized_mean", "worst", "pareto"] = "mean"
    """How task scores become one number, higher being better. mean: weighted mean of the scores (those to minimise
    count negatively). normalized_mean: each score first placed between the worst (0) and best (1) parent. worst: the
    lowest of the normalised scores. pareto: every task is an objective of its own; the winner is the point of the front
    with the best normalised mean."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """What a merge may not lose. Candidates that do come after all that do not."""
    splits: SplitsConfig = SplitsConfig()
    """Sizes of the search, selection and test splits."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Which optimizer proposes candidates, and its settings."""
    budget: BudgetConfig = BudgetConfig(candidates=100)
    """When to stop."""
    racing: RacingConfig | bool = True
    """Score candidates in rungs of items and stop those that are out; false scores each on the whole search split. Off
    with anchors and for a pareto objective."""
    anchors: AnchorsConfig | None = None
    """Score candidates on chosen items and estimate the rest."""
    stages: tuple[StageConfig, ...] = ()
    """From coarse to fine: each stage searches its own depth profile, starting from the mean of the one before."""
    warm_start: WarmStartConfig | None = None
    """Start from what an earlier study of the same parents found."""
    finalists: Annotated[int, Field(ge=1)] = 5
    """How many of the best candidates are scored again on the selection split."""
    mask_seeds: Annotated[int, Field(ge=1)] = 3
    """Seeds of the random masks over which each finalist is scored, its own included: how lucky are its masks? 1: no
    others."""
    training_files: tuple[str, ...] = ()
    """Texts that parents may have been trained on (.txt, .jsonl, .json; relative to the study file): benchmark items
    found in them are reported."""
    engine: EngineConfig = EngineConfig()
    """Which engine answers the benchmark's questions, and its settings."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Dtype of the merged weights; the base's when left out."""
    record: str | None = None
    """Optuna storage URL of the record; SQLite in the study's folder when left out."""
    tracking: str | None = None
    """MLflow tracking URI of the lineage; SQLite in the study's folder when left out. `none` turns lineage off."""
    output: str = "runs"
    """Folder in which the study's folder is made, relative to the working directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random: optimizer, masks, splits, bootstrap."""

    @field_validator("parents")
    @classmethod
    def _named(cls, parents: dict[str, Model]) -> dict[str, Model]:
        for name in parents:
            if RESERVED_NAME.fullmatch(name) or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"{name!r} cannot name a parent: use letters, digits, - and _; not {RESERVED_WORDS}")
        return parents

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if self.anchors is not None and isinstance(self.racing, RacingConfig):
            raise ValueError("anchors and racing both choose the items; give one of them")
        if self.objective == "pareto" and self.optimizer.name in ("cmaes", "random"):
            raise ValueError("a pareto objective needs optimizer.name nsga2, nsga3, tpe or gp")
        if self.objective != "pareto" and self.optimizer.name == "nsga3":
            raise ValueError("nsga3 is for objective: pareto; use nsga2 or cmaes")
        for constraint in self.constraints:
            if constraint.against not in (None, "best_parent", *self.parents):
                raise ValueError(f"constraints: {constraint.against} is no parent; use best_parent or a parent's name")
        if self.stages and self.optimizer.name != "cmaes":
            raise ValueError("stages start from the optimizer's mean, which only cmaes has")
        return self

    @property
    def race(self) -> RacingConfig | None:
        """How candidates race; None: each is scored on the whole search split."""
        if self.racing is False or self.objective == "pareto" or self.anchors is not None:
            return None
        return RacingConfig() if self.racing is True else self.racing

    @property
    def resolved_space(self) -> SpaceConfig:
        """The space as an object, once `load_study` has read it."""
        assert isinstance(self.space, SpaceConfig)
        return self.space
