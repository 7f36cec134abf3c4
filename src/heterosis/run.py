"""`heterosis run`: a whole study from its file to a proven winner. The same call resumes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from heterosis.builder import Builder
from heterosis.config import load_study
from heterosis.evaluation.engine import Engine
from heterosis.evaluation.panel import SPLITS, SplitName
from heterosis.export import export
from heterosis.files import only_process, write_json, write_text
from heterosis.finals import Choice, Evidence, choose, claims, finalists, score_all
from heterosis.ledger.lineage import Lineage, StudyFacts
from heterosis.ledger.mirror import BackgroundMirror
from heterosis.ledger.record import Candidate, Measurement, Proposal, Record, open_storage, sqlite_url
from heterosis.ledger.redact import masked
from heterosis.optimizers import Optimizer, make_optimizer
from heterosis.recipe import Recipe
from heterosis.search import Budget, EngineScorer, search
from heterosis.study import Prepared, prepare
from heterosis.watch import Watcher


class Records(NamedTuple):
    """The three records of a study."""

    search: Record
    selection: Record
    test: Record


def run(path: Path, watcher: Watcher) -> dict[str, Any]:
    """Run or resume the study in `path`; returns what is written to result.json."""
    load_study(path)  # a mistake in the file is all that the user should read
    watcher.stage("reading models and tasks")
    prepared = prepare(path)
    folder = prepared.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_process(folder))
        records = open_records(prepared)
        _write_resolved(prepared)
        lineage = open_lineage(prepared)
        mirror = stack.enter_context(BackgroundMirror(lineage, records._asdict())) if lineage is not None else None
        for split, record in records._asdict().items():
            record.listen(lambda candidate, split=split: watcher.recorded(split, candidate))
            if mirror is not None:
                record.listen(lambda _: mirror.wake())
        engine = LazyEngine(prepared, records.search, watcher)
        stack.callback(engine.close)
        choice = _search_and_select(prepared, records, engine, watcher)
        result = _certify(prepared, records, choice, engine, watcher)
        engine.close()
        result |= _export_winner(prepared, records.test, choice, result, watcher)
        write_json(folder / "result.json", result)
        if lineage is not None and mirror is not None:
            watcher.stage("writing lineage")
            mirror.finish(result)
            if mirror.problem is not None:
                watcher.warn(f"lineage: {mirror.problem}. The study is complete; run the same command to catch up.")
    return result


def open_records(prepared: Prepared) -> Records:
    """Open the record and tie it to the study."""
    config = prepared.config
    storage = open_storage(config.record or sqlite_url(prepared.folder / "record.db"))
    genes = prepared.space.genes
    records = Records(
        Record(storage, config.name, genes),
        Record(storage, f"{config.name}/selection", genes),
        Record(storage, f"{config.name}/test", genes),
    )
    records.search.bind(prepared.identity)
    return records


def open_lineage(prepared: Prepared) -> Lineage | None:
    """The lineage of a study, unless it is turned off."""
    config = prepared.config
    if config.tracking == "none":
        return None
    facts = StudyFacts(
        config.name,
        prepared.identity,
        config.model_dump(mode="json"),
        prepared.blank.base,
        prepared.blank.parents,
        prepared.panel.manifest(),
        prepared.panel.digest,
    )
    return Lineage(config.tracking or sqlite_url(prepared.folder / "lineage.db"), facts)


def _write_resolved(prepared: Prepared) -> None:
    resolved = yaml.safe_dump(masked(prepared.config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    write_text(prepared.folder / "resolved.yaml", resolved)
    write_json(prepared.folder / "panel.json", prepared.panel.manifest() | {"digest": prepared.panel.digest})


class LazyEngine:
    """Starts the engine at the first question, so a finished study is shown without one."""

    def __init__(self, prepared: Prepared, record: Record, watcher: Watcher) -> None:
        self._prepared = prepared
        self._record = record
        self._watcher = watcher
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """The running engine."""
        if self._engine is None:
            self._watcher.stage(f"starting {self._prepared.config.engine.kind}")
            self._engine = start_engine(self._prepared)
            self._record.note("engine", self._engine.describe())
        return self._engine

    def close(self) -> None:
        """Stop it."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def start_engine(prepared: Prepared) -> Engine:
    """The engine that the study asks for."""
    config, dtype = prepared.config, prepared.engine_dtype
    options = config.engine.options
    if config.engine.kind == "transformers":
        from heterosis.evaluation.transformers_engine import TransformersEngine

        return TransformersEngine(prepared.sources, dtype, options)
    from heterosis.evaluation.vllm_engine import VllmEngine

    log = prepared.folder / "engine.log"
    return VllmEngine(prepared.sources, dtype, prepared.panel.probes(), options, config.seed, log)


class _LazyScorer:
    """An EngineScorer that comes into being with the engine."""

    def __init__(self, engine: LazyEngine, prepared: Prepared, split: SplitName, record: Record) -> None:
        self._engine, self._split, self._record = engine, prepared.panel.splits[split], record
        self._scorer: EngineScorer | None = None

    def measure(self, recipe: Recipe) -> Measurement:
        """Score with the engine, starting it if need be."""
        if self._scorer is None:
            self._scorer = EngineScorer(self._engine.get(), self._split, [self._record])
        return self._scorer.measure(recipe)


def _search_and_select(prepared: Prepared, records: Records, engine: LazyEngine, watcher: Watcher) -> Choice:
    config = prepared.config
    budget = Budget(config.budget.candidates, config.budget.hours and config.budget.hours * 3600, config.budget.items)
    watcher.begin(prepared, budget, records.search)
    optimizer = _optimizer(prepared)
    scorer = _LazyScorer(engine, prepared, "search", records.search)
    search(prepared.space, prepared.baselines, optimizer, scorer, prepared.objective, records.search, budget)
    watcher.stage("scoring finalists on the selection split")
    final = finalists(records.search, prepared.space, optimizer.mean(), config.finalists)
    scorer = _LazyScorer(engine, prepared, "selection", records.selection)
    score_all(final, scorer, prepared.objective, records.selection, required=set(prepared.baselines))
    return choose(records.selection, {proposal.label for proposal in final})


def _optimizer(prepared: Prepared) -> Optimizer:
    config = prepared.config
    sigma = config.optimizer.sigma or config.resolved_space.sigma
    return make_optimizer(config.optimizer.name, prepared.space.initial, sigma, prepared.population, config.seed)


def _certify(
    prepared: Prepared, records: Records, choice: Choice, engine: LazyEngine, watcher: Watcher
) -> dict[str, Any]:
    """Open the test split for the winner, the parents and the best baseline; every opening is noted before it."""
    wanted = list(dict.fromkeys([*prepared.config.parents, choice.best_baseline, choice.winner]))
    known = {candidate.label for candidate in records.test.candidates}
    selected = {candidate.label: candidate for candidate in records.selection.candidates}
    missing = [label for label in wanted if label not in known]
    if missing:
        watcher.stage("opening the test split")
        openings = records.test.noted("openings") or []
        records.test.note("openings", [*openings, {"candidates": missing, "searched": len(records.search.proposed)}])
        chosen = [selected[label] for label in missing]
        proposals = [Proposal(c.label, c.generation, c.recipe, c.genome, c.genes) for c in chosen]
        scorer = _LazyScorer(engine, prepared, "test", records.test)
        score_all(proposals, scorer, prepared.objective, records.test, required=set(wanted))
    return _result(prepared, records, choice, wanted)


def _result(prepared: Prepared, records: Records, choice: Choice, wanted: list[str]) -> dict[str, Any]:
    config = prepared.config
    parents = list(config.parents)
    splits = prepared.panel.splits
    evidence = {
        split: Evidence(record.candidates, splits[split], prepared.objective, config.seed)
        for split, record in zip(SPLITS, records, strict=True)
    }
    tested = {c.label: c for c in records.test.candidates}
    table = []
    for label in dict.fromkeys([*wanted, *(c.label for c in records.selection.candidates)]):
        row: dict[str, Any] = {"label": label, "role": _role(label, choice, parents, records.selection)}
        for split, record in zip(SPLITS, records, strict=True):
            shown = {c.label for c in record.candidates if c.value is not None}
            if label in shown and (split != "test" or label in wanted):
                row[split] = evidence[split].row(label)
        table.append(row)
    openings = records.test.noted("openings") or []
    winner = tested[choice.winner]
    return {
        "study": config.name,
        **claims(evidence["test"], choice, parents, len(openings)),
        "winner": choice.winner,
        "best_baseline": choice.best_baseline,
        "weights_digest": winner.weights_digest,
        "recipe_digest": winner.recipe_digest,
        "genes": dict(winner.genes),
        "tasks": {
            name: {"metric": t.metric, "higher_is_better": t.higher_is_better}
            for name, t in splits["test"].tasks.items()
        },
        "objective": config.objective,
        "items": {split: splits[split].size for split in SPLITS},
        "table": table,
        "test_openings": openings,
        "time": time_spent(records.search.candidates),
        "sources": {name: member.digest for name, member in prepared.family.members.items()},
        "panel_digest": prepared.panel.digest,
        "engine": records.search.noted("engine"),
        "seed": config.seed,
        "command": f"heterosis run {prepared.path}",
        "python": sys.version.split()[0],
    }


def time_spent(candidates: Any) -> dict[str, float]:
    """Where the search's wall time went, over all runs of the study."""
    scored: list[Candidate] = list(candidates)
    phases = {phase: sum(c.seconds[phase] for c in scored) for phase in ("merge", "swap", "score", "total")}
    rest = phases["total"] - phases["merge"] - phases["swap"] - phases["score"]
    return {
        **{phase: round(seconds, 3) for phase, seconds in phases.items()},
        "rest": round(rest, 3),
        "rest_share": round(rest / phases["total"], 4) if phases["total"] else 0.0,
        "candidates": len(scored),
        "items": sum(c.items for c in scored),
    }


def _role(label: str, choice: Choice, parents: list[str], selection: Record) -> str:
    if label == choice.winner:
        return "winner"
    if label in parents:
        return "parent"
    baselines = {candidate.label for candidate in selection.baselines}
    return "baseline" if label in baselines else "finalist"


def _export_winner(
    prepared: Prepared, tested: Record, choice: Choice, result: Mapping[str, Any], watcher: Watcher
) -> dict[str, Any]:
    """Write winner/, with the weights that were scored."""
    folder = prepared.folder / "winner"
    winner = next(c for c in tested.candidates if c.label == choice.winner)
    watcher.stage("exporting the winner")
    builder = Builder(prepared.family, once=True)
    digest = export(builder, winner.recipe, folder, expected_digest=winner.weights_digest, results=result)
    return {"winner_folder": str(folder), "weights_digest": digest}
