"""lm-eval tasks: their items and prompts, built once, and their own filters and metrics, item by item."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.errors import TaskError
from heterosis.evaluation.documents import digest, own_texts, shared_passages, shared_values
from heterosis.evaluation.engine import Continuation, Generation, Likelihood
from heterosis.evaluation.samples import Sample, as_sample
from heterosis.evaluation.sandbox import check_shut_in, code_eval_shut_in
from heterosis.evaluation.task_files import check_metrics, read_task_file
from heterosis.evaluation.tokens import Request, RollingWindows, Tokenizer

# Kinds of metric whose mean is over the words or bytes of the texts.
WEIGHTED = ("weighted_perplexity", "bits_per_byte")
FEWSHOT_SEED = 1234  # lm-eval's own default, so prompts equal those of its command line


class Outcome(NamedTuple):
    """One item's score: the task's score is the weighted mean of the values, for some metrics its exponential."""

    value: float
    weight: float = 1.0


class Item(NamedTuple):
    """One benchmark item with all that an engine is asked for it."""

    doc_id: int
    key: str
    """SHA-256 of the document."""
    prompt_hash: str
    """SHA-256 of every token that is asked."""
    requests: tuple[Request, ...]
    shared: tuple[str, ...] = ()
    """Names of what it may share with other items; those that share one belong together."""
    weight: float = 1.0
    """Weight that its outcome will have."""


Answer = Likelihood | str | float


class Verdict(NamedTuple):
    """What a task made of the answers to one item."""

    metrics: dict[str, Any]
    """Every metric of the task, not only the one that the study is about."""
    responses: list[list[Any]]
    """By request: what was answered, as lm-eval hands it to filters."""
    filtered: list[Any]
    """By request: what the filter left of it."""


class TaskChoice(NamedTuple):
    """What a study says of one task."""

    task: str
    metric: str | None = None
    filter: str | None = None
    direction: str | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    cluster: str | None = None
    """Field of the documents whose equal values belong together; None: long texts that documents share."""


class PanelTask:
    """One lm-eval task with one metric, ready to be answered any number of times."""

    def __init__(self, name: str, task: Any, choice: TaskChoice, tokenizer: Tokenizer) -> None:
        self.name = name
        self.spec = choice.task
        self.limit = choice.limit
        self.chat_template = choice.chat_template
        self._task = task
        if not task.aggregation():
            raise TaskError(f"{name}: no metric. Add one to its metric_list.")
        self.metric = choice.metric or next(iter(task.aggregation()))
        if self.metric not in task.aggregation():
            known = ", ".join(task.aggregation())
            raise TaskError(f"{name}: no metric {self.metric!r}; this task has {known}. Set metric: to one of them.")
        self._filters = _filters(task)
        self.filter = choice.filter or next(iter(self._filters))
        if self.filter not in self._filters:
            raise TaskError(f"{name}: no filter {self.filter!r}; this task has {', '.join(self._filters)}.")
        self.higher_is_better = _direction(task, self.metric, choice.direction)
        self.kind = _aggregation_kind(name, task, self.metric)
        self._docs: dict[int, Any] = {}
        self._instances: dict[int, list[Any]] = {}
        self._texts: dict[int, list[str]] = {}
        self.items = self._build_items(choice, tokenizer)

    def _build_items(self, choice: TaskChoice, tokenizer: Tokenizer) -> list[Item]:
        task = self._task
        if choice.num_fewshot is not None:
            task.set_config("num_fewshot", choice.num_fewshot)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with _silence(), _task_errors(self.name):
            task.build_all_requests(
                apply_chat_template=choice.chat_template,
                chat_template=tokenizer.apply_chat_template if choice.chat_template else None,
                tokenizer_name=tokenizer.tokenizer_name,
            )
        if (task.config.repeats or 1) > 1 and (task.config.generation_kwargs or {}).get("do_sample"):
            raise TaskError(f"{self.name}: repeats with sampling is not supported. Use a task that decodes greedily.")
        for instance in task.instances:
            self._docs[instance.doc_id] = instance.doc
            self._instances.setdefault(instance.doc_id, []).append(instance)
        try:
            requests = tokenizer.requests(task.instances)
        except TaskError as error:
            raise TaskError(f"{self.name}: {error}") from None
        by_doc: dict[int, list[Request]] = {}
        for instance, request in zip(task.instances, requests, strict=True):
            by_doc.setdefault(instance.doc_id, []).append(request)
        documents = [self._docs[doc_id] for doc_id in by_doc]
        self._texts = dict(zip(by_doc, own_texts(documents), strict=True))
        shared = self._shared(documents, choice.cluster)
        items = [
            Item(doc_id, digest(document), digest(asked), tuple(asked), links)
            for (doc_id, asked), document, links in zip(by_doc.items(), documents, shared, strict=True)
        ]
        return [item._replace(weight=weight) for item, weight in zip(items, self._weights(items), strict=True)]

    def _shared(self, documents: Sequence[Any], field: str | None) -> list[tuple[str, ...]]:
        if field is None:
            return shared_passages(list(self._texts.values()))
        try:
            return shared_values(self.name, documents, field)
        except KeyError as error:
            known = ", ".join(map(str, error.args)) or "none"
            raise TaskError(
                f"{self.name}: cluster: no document has {field!r}. Name one of their fields: {known}."
            ) from None

    def _weights(self, items: Sequence[Item]) -> list[float]:
        """Weights are a matter of the documents, so any answers tell them."""
        if self.kind not in WEIGHTED:
            return [1.0] * len(items)
        blank: dict[type, Answer] = {Continuation: Likelihood(0.0, False), Generation: "", RollingWindows: 0.0}
        verdicts = self.judge(items, [[blank[type(r)] for r in i.requests] for i in items])
        return [found.weight for found in self.outcomes(verdicts)]

    @property
    def version(self) -> Any:
        """Version that the task gives itself."""
        return (self._task.config.metadata or {}).get("version", self._task.VERSION)

    def config(self) -> dict[str, Any]:
        """The task's configuration, as lm-eval writes it beside results."""
        return dict(self._task.dump_config())

    def texts(self, item: Item) -> list[str]:
        """Every string in an item's document that is its own: not those that many of the task's documents hold."""
        return self._texts[item.doc_id]

    def judge(self, items: Sequence[Item], answers: Sequence[Sequence[Answer]]) -> list[Verdict]:
        """Put answers to the task's own filter and metrics. `answers[i][j]` answers `items[i].requests[j]`."""
        groups = [self._instances[item.doc_id] for item in items]
        for instances, given in zip(groups, answers, strict=True):
            for instance, answer in zip(instances, given, strict=True):
                plain = tuple(answer) if isinstance(answer, Likelihood) else answer
                instance.resps = [plain] * max(1, instance.repeats or 1)
                instance.filtered_resps = {}
        with _task_errors(self.name):
            self._filters[self.filter].apply([instance for instances in groups for instance in instances])
            return [self._verdict(item, group) for item, group in zip(items, groups, strict=True)]

    def _verdict(self, item: Item, instances: Sequence[Any]) -> Verdict:
        filtered = [instance.filtered_resps[self.filter] for instance in instances]
        metrics = self._task.process_results(self._docs[item.doc_id], filtered)
        return Verdict(metrics, [instance.resps for instance in instances], filtered)

    def outcomes(self, verdicts: Sequence[Verdict]) -> list[Outcome]:
        """The items' scores by the study's metric."""
        with _task_errors(self.name):
            return [self._outcome(verdict.metrics) for verdict in verdicts]

    def _outcome(self, metrics: Mapping[str, Any]) -> Outcome:
        if self.metric not in metrics and len(metrics) == 1:
            return _as_outcome(self.kind, next(iter(metrics.values())))  # a function may name its number: pass@1
        if self.metric not in metrics:
            raise TaskError(f"{self.name}: scoring gave {', '.join(metrics)} but no {self.metric}. Set another metric.")
        return _as_outcome(self.kind, metrics[self.metric])

    def samples(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Sample]:
        """What lm-eval's `--log_samples` writes of the items, a dict each."""
        with _task_errors(self.name):
            return [self._sample(item, verdict) for item, verdict in zip(items, verdicts, strict=True)]

    def _sample(self, item: Item, verdict: Verdict) -> Sample:
        doc = self._docs[item.doc_id]
        asked = [instance.args for instance in self._instances[item.doc_id]]
        target = self._task.doc_to_target(doc)
        answered, judged = (verdict.responses, verdict.filtered), (self.filter, verdict.metrics)
        return as_sample(item.doc_id, doc, target, asked, answered, judged)

    def score(self, mean: float | npt.NDArray[np.float64]) -> Any:
        """From the weighted mean of outcomes to the number that lm-eval reports; arrays element by element."""
        return reported(self.kind, mean)


def reported(kind: str, mean: float | npt.NDArray[np.float64]) -> Any:
    """From the weighted mean of outcomes to what lm-eval reports, for a task's kind; arrays element by element."""
    return np.exp(mean) if kind in ("perplexity", "weighted_perplexity") else mean


def load_tasks(
    choices: Sequence[TaskChoice], tokenizer: Tokenizer, relative_to: Path, unsafe_code: bool = False
) -> list[PanelTask]:
    """Load and build the tasks of a study. A group of lm-eval's becomes its member tasks.

    `unsafe_code`: whether tasks may be among them that run what a model writes; it is then shut in.
    """
    _sandbox_templates()
    tasks = []
    for choice in choices:
        with code_eval_shut_in(choice.task, unsafe_code):
            loaded = _load(choice.task, relative_to)
        for name, task in loaded:
            check_shut_in(name, task, unsafe_code)
            tasks.append(PanelTask(name, task, choice, tokenizer))
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TaskError(f"tasks: {twice} is given twice. Drop one, or combine metrics in one task file.")
    return tasks


def _load(spec: str, relative_to: Path) -> list[tuple[str, Any]]:
    if spec.endswith((".yaml", ".yml")):
        from lm_eval.api.task import ConfigurableTask

        path = next((p for p in (relative_to / spec, Path(spec)) if p.is_file()), None)
        if path is None:
            raise TaskError(f"{spec}: no such task file. Give a path relative to the study file.")
        config = read_task_file(path)
        check_metrics(path, config.get("metric_list"))
        with _silence(), _task_errors(spec):
            return [(str(config["task"]), ConfigurableTask(config=config))]
    with _silence():
        manager = _builtin_tasks()
        if spec not in manager.all_tasks:
            import difflib

            near = difflib.get_close_matches(spec, manager.all_tasks, 3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise TaskError(f"{spec}: lm-eval has no such task{hint}. For a task of your own give its .yaml file.")
        with _task_errors(spec):
            return sorted(manager.load(spec)["tasks"].items())


@cache
def _builtin_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _sandbox_templates() -> None:
    """Render lm-eval's templates in Jinja's sandbox: a template in a task file must not reach Python's insides."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters |= plain.filters
    lm_eval.utils.env = sandbox


def _filters(task: Any) -> dict[str, Any]:
    from lm_eval.filters import build_filter_ensemble

    configured = getattr(task.config, "filter_list", None)
    if not configured:
        return {"none": build_filter_ensemble("none", [["take_first", None]])}
    return {
        entry["name"]: build_filter_ensemble(
            entry["name"],
            [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in entry["filter"]],
        )
        for entry in configured
    }


def _direction(task: Any, metric: str, wanted: str | None) -> bool:
    if wanted is not None:
        return wanted == "maximize"
    return bool(task.higher_is_better().get(metric, True))


def _aggregation_kind(name: str, task: Any, metric: str) -> str:
    from lm_eval.api.registry import get_aggregation

    aggregation = task.aggregation()[metric]
    for kind in ("mean", "nanmean", "perplexity", "weighted_perplexity", "bits_per_byte"):
        if aggregation is get_aggregation(kind):
            return kind
    raise TaskError(
        f"{name}: metric {metric} is aggregated by {getattr(aggregation, '__name__', aggregation)}, which is not a "
        "mean over items, so it has no score per item. Choose a metric that is (acc, exact_match, bits_per_byte, …)."
    )


def _as_outcome(kind: str, value: Any) -> Outcome:
    if kind == "perplexity":
        return Outcome(-float(value))
    if kind in WEIGHTED:
        logprob, weight = value
        if not weight:  # an empty text says nothing
            return Outcome(0.0, 0.0)
        unit = math.log(2) if kind == "bits_per_byte" else 1.0
        return Outcome(-float(logprob) / weight / unit, float(weight))
    return Outcome(float(value))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """lm-eval and datasets draw progress bars and warn of their own deprecations while they load."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _task_errors(name: str) -> Iterator[None]:
    """Whatever a task's own templates, data or metrics raise is a fault of the task, said in one line."""
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TaskError(f"{name}: lm-eval cannot use this task ({type(error).__name__}: {reason}).") from error


def request_counts(items: Sequence[Item]) -> Mapping[str, int]:
    """How many requests of each kind, and how many tokens in all."""
    counts = {"likelihoods": 0, "generations": 0, "tokens": 0}
    for request in (request for item in items for request in item.requests):
        if isinstance(request, Generation):
            counts["generations"] += 1
            counts["tokens"] += len(request.prompt) + request.max_tokens
            continue
        windows = request.windows if isinstance(request, RollingWindows) else (request,)
        counts["likelihoods"] += len(windows)
        counts["tokens"] += sum(len(window.context) + len(window.target) for window in windows)
    return counts


__all__ = ["Answer", "Continuation", "Item", "Outcome", "PanelTask", "TaskChoice", "load_tasks", "request_counts"]
