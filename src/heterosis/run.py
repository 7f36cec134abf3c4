"""`heterosis run`: a whole study from its file to a proven winner. The same call resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from heterosis.anchored import NOTE, Anchored
from heterosis.builder import Builder
from heterosis.check import contamination
from heterosis.config import load_study
from heterosis.errors import HeterosisError, InterruptError, RecordError, StudyError
from heterosis.evaluation.panel import SplitName
from heterosis.evaluation.samples import write_samples
from heterosis.evaluation.task_facts import task_facts
from heterosis.export import export
from heterosis.files import only_process, write_json, write_text
from heterosis.finals import Choice, choose, finalists, score_all, seed_variants
from heterosis.fronts import covered, front_of, spread_out
from heterosis.ledger.lineage import Lineage, StudyFacts
from heterosis.ledger.mirror import BackgroundMirror
from heterosis.ledger.record import Candidate, Proposal, Record, open_storage, sqlite_url
from heterosis.ledger.redact import masked
from heterosis.ledger.rungs import RungRecord
from heterosis.live import LiveEngine
from heterosis.optimizers import Genome, Optimizer, make_optimizer
from heterosis.publishing import findings
from heterosis.race import Race
from heterosis.report import write_report
from heterosis.results import result as result_of
from heterosis.scoring import EngineScorer, GenerationScorer, Keep, OneByOne
from heterosis.search import LATER_STEP, Budget, Stage, search
from heterosis.space import Space, transfer
from heterosis.standings import leaders
from heterosis.stored import PANEL, RESOLVED, RESULT, open_stored
from heterosis.study import WARM_START, Prepared, prepare
from heterosis.watch import Watcher


class Records(NamedTuple):
    """The records of a study: one for each split, and what races scored piece by piece."""

    search: Record
    selection: Record
    test: Record
    rungs: RungRecord

    def by_split(self) -> dict[SplitName, Record]:
        """The records of the three splits."""
        return {"search": self.search, "selection": self.selection, "test": self.test}


class Finals(NamedTuple):
    """Who was chosen, and from whom."""

    choice: Choice
    front: list[str]
    """Labels on the front of a Pareto study."""
    leading: list[Candidate]
    """The finalists that the search proposed, scored on all its items."""


def run(path: Path, watcher: Watcher, unsafe_code: bool = False) -> dict[str, Any]:
    """Run or resume the study in `path`; returns what is written to result.json. `unsafe_code` as in `load_tasks`."""
    load_study(path)  # a mistake in the file is all that the user should read
    watcher.stage("reading models and tasks")
    prepared = prepare(path, unsafe_code)
    folder = prepared.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_process(folder))
        records = open_records(prepared)
        _write_resolved(prepared)
        lineage = open_lineage(prepared)
        mirror = None
        if lineage is not None:
            mirror = stack.enter_context(BackgroundMirror(lineage, records.by_split(), watcher.warn))
        for split, record in records.by_split().items():
            record.listen(partial(watcher.recorded, split))
            if mirror is not None:
                record.listen(lambda _: mirror.wake())
        records.rungs.listen(watcher.answered)
        _look_for_contamination(prepared, records.search, watcher)
        engine = LiveEngine(prepared, records.search, watcher)
        stack.callback(engine.close)
        stack.enter_context(engine.interrupts)
        final, leading = _search(prepared, records, engine, watcher)
        choice, front = _select(prepared, records, final, engine, watcher)
        result = _certify(prepared, records, Finals(choice, front, leading), engine, watcher)
        engine.close()
        result |= _export_winner(prepared, records.test, choice, result, watcher)
        write_json(folder / RESULT, result)
        _draw_report(prepared, watcher)
        if lineage is not None and mirror is not None:
            watcher.stage("writing lineage")
            mirror.finish(result)
    return result


def _draw_report(prepared: Prepared, watcher: Watcher) -> None:
    """Write report.html. The study is complete without it, so a failure is a warning."""
    watcher.stage("drawing the report")
    try:
        write_report(prepared.path)
    except InterruptError:
        raise
    except Exception as error:  # plots and templates raise types of their own
        reason = masked(" ".join(str(error).split())[:300])
        watcher.warn(f"report: not written ({type(error).__name__}: {reason}). `heterosis report` tries again.")


def sync(path: Path) -> int:
    """Bring the lineage up to date with the record; returns how many merges were added. Engines stay off."""
    prepared = prepare(path, unsafe_code=True)  # nothing is scored
    lineage = open_lineage(prepared)
    if lineage is None:
        raise StudyError(f"{path}: tracking is none, so there is no lineage to bring up to date.")
    if not prepared.folder.is_dir():
        raise StudyError(f"{prepared.folder}: no such study yet. Start it with `heterosis run {path}`.")
    with only_process(prepared.folder):
        records = open_records(prepared)
        written = prepared.folder / RESULT
        result = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else None
        try:
            return lineage.sync(records.by_split(), result)
        except HeterosisError:
            raise
        except Exception as error:  # MLflow, its database drivers and HTTP raise types of their own
            reason = masked(" ".join(str(error).split())[:300])
            raise RecordError(f"lineage: MLflow did not take it ({type(error).__name__}: {reason}).") from error


def _look_for_contamination(prepared: Prepared, record: Record, watcher: Watcher) -> None:
    """Once per study, before anything is scored; what was found is part of the result."""
    if record.noted("contamination") is None:
        watcher.stage("looking for items that splits share or training files hold")
        record.note("contamination", contamination(prepared))
    for warning in record.noted("contamination"):
        watcher.warn(warning)


def open_records(prepared: Prepared) -> Records:
    """Open the record and tie it to the study."""
    config = prepared.config
    storage = open_storage(config.record or sqlite_url(prepared.folder / "record.db"))

    def opened(name: str) -> Record:
        return Record(storage, name, prepared.genes, prepared.objective.names)

    name = config.name
    pieces = RungRecord(storage, f"{name}/rungs")
    records = Records(opened(name), opened(f"{name}/selection"), opened(f"{name}/test"), pieces)
    records.search.bind(prepared.identity)
    if records.search.noted("study_file") != str(prepared.path):
        records.search.note("study_file", str(prepared.path))
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
    write_text(prepared.folder / RESOLVED, resolved)
    about = {
        "weights": {name: share.weight for name, share in prepared.objective.shares.items()},
        "lm_eval": task_facts(prepared.panel.tasks),
    }
    write_json(prepared.folder / PANEL, prepared.panel.manifest() | about | {"digest": prepared.panel.digest})
    if prepared.warm is not None:
        write_json(prepared.folder / WARM_START, prepared.warm._asdict())


def _search(
    prepared: Prepared, records: Records, engine: LiveEngine, watcher: Watcher
) -> tuple[list[Proposal], list[Candidate]]:
    """Search, and name the finalists; also those of them that the search proposed, scored on all its items."""
    config = prepared.config
    budget = Budget(config.budget.candidates, config.budget.hours and config.budget.hours * 3600, config.budget.items)
    watcher.begin(prepared, budget, records.search)
    scorer = _scorer(engine, prepared, "search", records.search)
    generations, extend = _generations(prepared, records, scorer, watcher.stage)
    found = search(
        _stages(prepared, budget), prepared.baselines, scorer, generations, prepared.objective, records.search
    )
    proposed = [candidate for candidate in records.search.proposed if candidate.fitness is not None]
    if config.objective == "pareto":
        best = spread_out(proposed, config.finalists)
    else:
        watcher.stage("scoring the leaders on all items of the search split")
        best = leaders(proposed, prepared.panel.splits["search"], prepared.objective, config.finalists, extend)
        records.search.keep_later(best)
    return finalists(records.search, found, best), best


def _select(
    prepared: Prepared, records: Records, final: Sequence[Proposal], engine: LiveEngine, watcher: Watcher
) -> tuple[Choice, list[str]]:
    """Score the finalists on the selection split. The choice, and in a Pareto study all on the front."""
    config, objective, record = prepared.config, prepared.objective, records.selection
    watcher.stage("scoring finalists on the selection split")
    scorer = _scorer(engine, prepared, "selection", record)
    score_all(final, scorer, objective, record, required=set(prepared.baselines))
    variants = [v for p in final if p.generation for v in seed_variants(p, config.mask_seeds)]
    if variants:
        watcher.stage("scoring finalists with other random masks")
        score_all(variants, scorer, objective, record, required=())
    labels = {proposal.label for proposal in final}
    choice = choose(record, labels)
    if config.objective != "pareto":
        return choice, []
    return choice, front_of(record, labels, prepared.panel.splits["selection"], objective, config.seed)


def _scorer(
    engine: LiveEngine, prepared: Prepared, split: SplitName, record: Record, keep: Keep | None = None
) -> EngineScorer:
    about = prepared.config.engine
    return EngineScorer(engine, prepared.panel.splits[split], [record], about.retries, about.deadline, keep)


def _generations(
    prepared: Prepared, records: Records, scorer: EngineScorer, tell: Callable[[str], None]
) -> tuple[GenerationScorer, Callable[[Candidate], Candidate | None]]:
    """How the study scores its candidates, and how one that leads on an estimate answers more."""
    policy, anchors, split = prepared.config.race, prepared.config.anchors, prepared.panel.splits["search"]
    if anchors is not None:
        parents, seed = list(prepared.config.parents), prepared.config.seed
        anchored = Anchored(
            scorer, split, records.search, records.rungs, prepared.objective, anchors, parents, seed, tell
        )
        return OneByOne(anchored), anchored.extend
    if policy is None:
        return OneByOne(scorer), lambda _: None  # all are complete: nobody asks
    race = Race(scorer, split, prepared.objective, records.search, records.rungs, policy, prepared.config.finalists)
    return race, race.extend


def _stages(prepared: Prepared, budget: Budget) -> list[Stage]:
    """The stages of the search with their optimizers; each ends where its share of the budget does."""
    shares = [stage.share for stage in prepared.config.stages] or [1.0]
    stages = []
    for number, space in enumerate(prepared.spaces):
        part = sum(shares[: number + 1]) / sum(shares)
        stages.append(Stage(space, _beginner(prepared, space, number), budget.share(part) if part < 1.0 else budget))
    return stages


def _beginner(prepared: Prepared, space: Space, number: int) -> Callable[[Space | None, Genome | None], Optimizer]:
    """Makes the optimizer of a stage: from the mean of the stage before, a warm start, or the space's own start."""
    config, warm = prepared.config, prepared.warm

    def begin(before: Space | None, mean: Genome | None) -> Optimizer:
        initial, spread, starts = space.initial, None, []
        if before is not None and mean is not None:
            initial = transfer(before, mean, space)
        elif before is None and warm is not None:
            initial, spread, starts = warm.mean, warm.spread, warm.starts
        sigma = config.optimizer.sigma or config.resolved_space.sigma
        if number:
            sigma *= LATER_STEP
        return make_optimizer(
            config.optimizer.name,
            initial,
            sigma,
            prepared.population_in(space),
            config.seed + number,
            objectives=len(prepared.objective.names),
            constraints=len(config.constraints),
            spread=spread,
            starts=starts,
        )

    return begin


def _certify(
    prepared: Prepared, records: Records, finals: Finals, engine: LiveEngine, watcher: Watcher
) -> dict[str, Any]:
    """Open the test split for the winner, the parents, the best baseline and a Pareto study's front.

    Every opening is noted before it happens.
    """
    choice, front = finals.choice, finals.front
    wanted = list(dict.fromkeys([*prepared.config.parents, choice.best_baseline, choice.winner, *front]))
    known = {candidate.label for candidate in records.test.candidates}
    selected = {candidate.label: candidate for candidate in records.selection.candidates}
    missing = [label for label in wanted if label not in known]
    if missing:
        watcher.stage("opening the test split")
        openings = records.test.noted("openings") or []
        records.test.note("openings", [*openings, {"candidates": missing, "searched": len(records.search.proposed)}])
        proposals = [selected[label].proposal for label in missing]
        scorer = _scorer(engine, prepared, "test", records.test, partial(write_samples, prepared.folder))
        score_all(proposals, scorer, prepared.objective, records.test, required=set(wanted))
    extra = {"contamination": records.search.noted("contamination"), "anchors": _anchor_errors(records.search)}
    if front:
        extra |= {"front": front, "hypervolume": covered(records.selection, front)}
    return result_of(prepared, records.by_split(), choice, wanted, finals.leading, extra)


def _anchor_errors(searched: Record) -> dict[str, Any]:
    """How good the estimates from anchors were, by task; empty without anchors."""
    kept: Mapping[str, Any] = searched.noted(NOTE) or {}
    return {task: {"count": len(about["items"]), "error": about["error"]} for task, about in kept.items()}


def _export_winner(
    prepared: Prepared, tested: Record, choice: Choice, result: Mapping[str, Any], watcher: Watcher
) -> dict[str, Any]:
    """Write winner/, with the weights that were scored."""
    folder = prepared.folder / "winner"
    winner = next(c for c in tested.candidates if c.label == choice.winner)
    watcher.stage("exporting the winner")
    builder = Builder(prepared.family, once=True)
    with open_stored(prepared.path) as stored:
        about = findings(stored._replace(result={**result}), choice.winner)
    digest = export(builder, winner.recipe, folder, expected_digest=winner.weights_digest, about=about)
    return {"winner_folder": str(folder), "weights_digest": digest}
