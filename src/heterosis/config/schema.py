"""The keys of a study file, frozen: what a user may write, and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Every method of `heterosis.merge` that a search can move; passthrough only stacks layers.
METHOD_NAMES = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "nearswap",
    "task_arithmetic",
    "magnitude",
    "ties",
    "dare_linear",
    "dare_ties",
    "della_linear",
    "della",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "lines",
    "tsv",
    "iso_c",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
    "fisher",
    "regmean",
]
# Names under which the program itself speaks of merges.
RESERVED_NAME = re.compile(r"base|all|average|mean.*|c\d+")
RESERVED_WORDS = "base, all, average, mean…, c1, c2, …"
RESERVED_OPTIONS = {"model", "worker_extension_cls", "enable_prefix_caching", "seed"}


class Config(BaseModel):
    """Base of every part of a study file: frozen, unknown keys refused, no NaN or Inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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


class Gene(Config):
    """Range of one kind of gene."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    initial: float | None = None
    """Where the search starts; the middle when left out."""
    shared: bool = False
    """One value for all parents."""
    depth: Depth | None = None
    """Depth profile of this gene alone; the space's when left out."""

    @model_validator(mode="after")
    def _ordered(self) -> Gene:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}; to fix a gene write a number")
        if self.initial is not None and not self.low <= self.initial <= self.high:
            raise ValueError(f"initial {self.initial:g} must lie between low {self.low:g} and high {self.high:g}")
        return self


class Knots(Config):
    """Values at evenly spaced layers, interpolated between them."""

    knots: Annotated[int, Field(ge=2)]
    """Number of knots."""


class Blocks(Config):
    """Equal stretches of layers with one value each."""

    blocks: Annotated[int, Field(ge=1)]
    """Number of stretches."""


Depth = Literal["uniform", "per_layer"] | Knots | Blocks
Gene.model_rebuild()


class SpaceConfig(Config):
    """What the search may vary: genes for each parent, depth position and tensor group."""

    method: METHOD_NAMES = "dare_ties"
    """How candidates are merged."""
    depth: Depth = Knots(knots=4)
    """Profile of genes over the layers: uniform, knots, blocks or per_layer."""
    groups: dict[str, str | None] | None = None
    """Partition of the tensors: name -> regular expression, or null for a named group (embeddings, head, attention,
    mlp, norms, body). The first match decides. Left out: one group if depth is uniform, else embeddings, head, body."""
    weight: Gene | float = Gene(low=0.0, high=1.5, initial=0.5)
    """λ, the factor on a parent's task vector. A number fixes it."""
    density: Gene | float = Gene(low=0.1, high=1.0, initial=0.7)
    """d, the fraction of entries kept by magnitude (ties, dare_ties, magnitude, breadcrumbs). A number fixes it."""
    drop: Gene | float = Gene(low=0.0, high=0.9, initial=0.2)
    """p, DARE's drop rate. Searched by dare_linear, dare_ties, della and della_linear, and by any other method in
    front of which it is written. A number fixes it."""
    gamma: Gene | float = 0.01
    """Fraction of the largest entries left out (breadcrumbs)."""
    epsilon: Gene | float = 0.1
    """Half the window of drop rates over ranks (della); narrowed where p ± epsilon would leave [0, 1)."""
    settings: dict[str, Gene | float | bool] = {}
    """The method's own settings (scale, t, select_topk, alpha, …): fixed, or a range to search, shared by all
    parents."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 1 / 6
    """First step size of CMA-ES, as a fraction of each gene's range."""
    trim_scope: Literal["tensor", "model"] = "tensor"
    """Take the kept fraction per tensor, or over a parent's whole task vector."""
    election: Literal["weighted", "unweighted", "frequency"] = "weighted"
    """Which votes elect a sign (TIES): λ_k δ_k, δ_k, or the signs alone."""
    divisor: Literal["count", "weight", "none"] = "count"
    """What TIES divides the sum of agreeing updates by: their count, their |λ|, or nothing."""
    rescale: Literal["inverse_keep", "none"] | float = "inverse_keep"
    """Factor on what DARE leaves: 1/(1-p), none (DropOnly), or a number (DAREx)."""

    @model_validator(mode="after")
    def _in_range(self) -> SpaceConfig:
        for name in ("density", "drop", "gamma", "epsilon"):
            gene = getattr(self, name)
            ends = (gene.low, gene.high) if isinstance(gene, Gene) else (gene, gene)
            if ends[0] < 0.0 or ends[1] > 1.0 or (name == "drop" and ends[1] >= 1.0):
                raise ValueError(f"{name} must lie in [0, 1] (drop below 1), not {ends[0]:g} to {ends[1]:g}")
        return self


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


class OptimizerConfig(Config):
    """Who proposes candidates."""

    name: Literal["cmaes", "tpe", "gp", "nsga2", "random"] = "cmaes"
    """cmaes is pycma; the others are Optuna's samplers."""
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
    options: dict[str, Any] = {}
    """Passed through to vllm.LLM (tensor_parallel_size, gpu_memory_utilization, max_model_len, …). The transformers
    engine takes max_model_len, device and dtype. dtype is what the engine computes in: that of the merged weights when
    left out, or float32 on a CPU without bf16 instructions."""

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
    objective: Literal["mean", "normalized_mean", "worst"] = "mean"
    """How task scores become one number, higher being better. mean: weighted mean of the scores (those to minimise
    count negatively). normalized_mean: each score first placed between the worst (0) and best (1) parent. worst: the
    lowest of the normalised scores."""
    splits: SplitsConfig = SplitsConfig()
    """Sizes of the search, selection and test splits."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Which optimizer proposes candidates, and its settings."""
    budget: BudgetConfig = BudgetConfig(candidates=100)
    """When to stop."""
    finalists: Annotated[int, Field(ge=1)] = 5
    """How many of the best candidates are scored again on the selection split."""
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

    @property
    def resolved_space(self) -> SpaceConfig:
        """The space as an object, once `load_study` has read it."""
        assert isinstance(self.space, SpaceConfig)
        return self.space
