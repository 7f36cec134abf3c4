"""The lineage: a mirror of the record in MLflow, in which nothing is kept that the record does not have.

One parent run per study, one child run and LoggedModel per merge, base and parents as LoggedModels that every child
takes as input, the panel's splits as datasets, the winner in the model registry. The last write to a run tags it
`heterosis.complete`; what a killed process left without that tag is removed and written anew. Everything goes through
an MlflowClient of our own, so MLflow's global active run and tracking URI stay the user's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from heterosis.errors import RecordError
from heterosis.evaluation.panel import SPLITS
from heterosis.ledger.descriptions import merge_note, registry_note, result_note, study_note, sweep_note
from heterosis.ledger.merges import LATER, Key, Merge, Records, merges_of
from heterosis.ledger.params import PARAM_LENGTH, flat, mlflow_name, numbers_of
from heterosis.ledger.redact import masked
from heterosis.ledger.results import numbers_told, papers_of
from heterosis.ledger.server import check_answers
from heterosis.recipe import Source

CHAMPION = "champion"
PARAMS_PER_REQUEST = 100
# What MLflow shows as the origin of a run.
SOURCE = {"mlflow.source.name": "heterosis", "mlflow.source.type": "LOCAL"}


class StudyFacts(NamedTuple):
    """What the lineage says about a study as a whole."""

    name: str
    identity: Mapping[str, Any]
    """What the record is bound to."""
    config: Mapping[str, Any]
    """The resolved study file."""
    base: Source
    parents: tuple[Source, ...]
    panel: Mapping[str, Any]
    """`Panel.manifest()`."""
    panel_digest: str
    kind: Literal["study", "sweep"] = "study"
    """A sweep searches nothing: it has no best so far, and no winner."""
    points: Mapping[str, Mapping[str, str]] = {}
    """Recipe digest -> params of its run that are no genes."""


class _Child(NamedTuple):
    """One merge as MLflow has it."""

    run_id: str
    model_id: str | None
    end: int
    """Milliseconds; the time of all its metrics, so that writing them twice changes nothing."""
    parts: frozenset[str]
    """What of it is told (`Merge.parts`)."""


@dataclass
class _Mirrored:
    """What MLflow has of a study."""

    experiment: str
    run_id: str
    start: int
    sources: list[str]
    children: dict[Key, _Child]
    result: str | None


class Lineage:
    """The mirror of one study at one tracking URI."""

    def __init__(self, uri: str, facts: StudyFacts) -> None:
        self._uri = uri
        self._facts = facts
        self._digest = _digest(facts.identity)
        self._client: Any = None
        self._there: _Mirrored | None = None

    def sync(self, records: Records, result: Mapping[str, Any] | None = None) -> int:
        """Mirror all that is not there yet; returns how many merges were added.

        `records` by split; `result` is the content of result.json, once there is one.
        """
        try:
            self._client = self._client or connect(self._uri)
            return self._sync(merges_of(records), result)
        except BaseException:
            self._there = None  # what did get written is looked up by the next sync
            raise

    def conclude(self, papers: Mapping[str, Path]) -> None:
        """Say that a sweep has ended, with files to read beside its run: name of the artifact -> file."""
        assert self._there is not None, "sync first"
        self._keep(papers, self._there)
        self._client.set_terminated(self._there.run_id, "FINISHED")

    def _keep(self, papers: Mapping[str, Path], there: _Mirrored) -> None:
        for name, path in papers.items():
            folder, _, _ = name.rpartition("/")
            self._client.log_artifact(there.run_id, str(path), folder or None)

    def _sync(self, merges: Mapping[Key, Merge], result: Mapping[str, Any] | None) -> int:
        there = (
            self._there or self._find_study() or self._add_study(sum(m.first.seconds["total"] for m in merges.values()))
        )
        self._there = there
        missing = [key for key in merges if key not in there.children]
        if missing and there.result is not None:
            self._client.update_run(there.run_id, status="RUNNING")
            there.result = None
        self._log_curve([merges[key] for key in missing], there)
        for key, merge in merges.items():
            child = there.children.get(key)
            if child is None:
                there.children[key] = self._add(merge, there)
            elif not merge.parts <= child.parts:
                there.children[key] = self._measure(child, merge)
        if result is not None:
            self._conclude(result, merges, there)
        return len(missing)

    def _find_study(self) -> _Mirrored | None:
        """What MLflow has, after what is incomplete was removed."""
        experiment = self._client.get_experiment_by_name(self._facts.name)
        if experiment is None:
            return None
        number = experiment.experiment_id
        if experiment.lifecycle_stage != "active":
            raise RecordError(
                f"lineage: experiment {self._facts.name} was deleted in MLflow. Restore it "
                f"(mlflow experiments restore -x {number}), or give the study another name."
            )
        study = next(iter(self._complete_runs(number, "heterosis.study_digest", self._digest)), None)
        if study is None:
            return None
        children = {}
        for run in self._complete_runs(number, "mlflow.parentRunId", study.info.run_id):
            tags = run.data.tags
            parts = frozenset(tags["heterosis.complete"].split(","))
            child = _Child(run.info.run_id, tags.get("heterosis.model_id"), run.info.end_time, parts)
            children[tags["heterosis.label"], tags["heterosis.recipe_digest"]] = child
        sources, told = json.loads(study.data.tags["heterosis.sources"]), study.data.tags.get("heterosis.result_digest")
        return _Mirrored(number, study.info.run_id, study.info.start_time, sources, children, told)

    def _complete_runs(self, experiment: str, tag: str, value: str) -> list[Any]:
        """Complete runs with a tag, oldest first; incomplete ones are deleted with their models."""
        client, found, token, wanted = self._client, [], None, f"tags.`{tag}` = '{value}'"
        while True:
            page = client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC"], page_token=token)
            found += page
            token = page.token
            if not token:
                break
        for run in found:
            if "heterosis.complete" not in run.data.tags:
                for model in client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'"):
                    client.delete_logged_model(model.model_id)
                client.delete_run(run.info.run_id)
        return [run for run in found if "heterosis.complete" in run.data.tags]

    def _add_study(self, seconds: float) -> _Mirrored:
        """The parent run; it began `seconds` of recorded scoring ago."""
        from mlflow.entities import LoggedModelInput, Param, RunTag

        facts, client = self._facts, self._client
        experiment = client.get_experiment_by_name(facts.name)
        if experiment is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}
            number = client.create_experiment(facts.name, _beside_database(self._uri), kind)
        else:
            number = experiment.experiment_id
        start = _milliseconds(time.time() - seconds)
        described = study_note if facts.kind == "study" else sweep_note
        note = masked(described(facts.name, facts.config, (facts.base, *facts.parents), facts.panel))
        tags = {"heterosis.study": facts.name, "heterosis.study_digest": self._digest, "mlflow.note.content": note}
        run_id = client.create_run(number, start, {**SOURCE, **tags}, facts.name).info.run_id
        config = masked(facts.config)
        client.log_batch(run_id, params=[Param(key, value) for key, value in flat(config).items()])
        client.log_dict(run_id, {"identity": masked(facts.identity), "config": config}, "study.json")
        client.log_dict(run_id, {**facts.panel, "digest": facts.panel_digest}, "panel.json")
        sources = []
        for source in (facts.base, *facts.parents):
            marks = {"heterosis.role": "base" if source is facts.base else "parent", "heterosis.digest": source.digest}
            about = {"model": masked(source.model), "revision": source.revision or "", "digest": source.digest}
            sources.append(self._add_model(number, run_id, source.name, "checkpoint", about, marks))
        client.log_inputs(run_id, [self._dataset(s) for s in SPLITS], [LoggedModelInput(model) for model in sources])
        last = {"heterosis.sources": json.dumps(sources), "heterosis.complete": "study"}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in last.items()])
        return _Mirrored(number, run_id, start, sources, {}, None)

    def _add_model(
        self, experiment: str, run_id: str, name: str, kind: str, params: dict[str, str], tags: dict[str, str]
    ) -> str:
        """A LoggedModel whose weights lie elsewhere: what `mlflow.create_external_model` makes, without globals."""
        from mlflow.models import Model

        tags = {**tags, "mlflow.model.isExternal": "true"}
        model = self._client.create_logged_model(
            experiment, re.sub(r"[/:.%\"']", "-", name), run_id, tags, params, kind
        )
        about = Model(run_id=run_id, model_uuid=model.model_id, model_id=model.model_id, metadata=tags)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "MLmodel").write_text(about.to_yaml(), encoding="utf-8")
            self._client.log_model_artifacts(model.model_id, folder)
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _dataset(self, split: str) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        items = {task: len(rows) for task, rows in self._facts.panel["splits"][split].items()}
        source = {"study": self._facts.name, "panel": self._facts.panel_digest, "artifact": "panel.json"}
        profile = {"num_rows": sum(items.values()), "items": items}
        dataset = Dataset(
            **self._dataset_key(split),
            source_type="code",
            source=json.dumps({"tags": source}),
            profile=json.dumps(profile),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])

    def _log_curve(self, merges: list[Merge], there: _Mirrored) -> None:
        """Best objective so far on the parent run; before the children, whose absence has it written again."""
        from mlflow.entities import Metric

        points = [
            Metric("best/objective", merge.best, _end(merge, there), merge.first.number)
            for merge in merges
            if merge.best is not None and merge.origin == "search" and self._facts.kind == "study"
        ]
        self._client.log_batch(there.run_id, points)

    def _add(self, merge: Merge, there: _Mirrored) -> _Child:
        """The child run and LoggedModel of one merge."""
        from mlflow.entities import LoggedModelOutput

        client, first = self._client, merge.first
        tags = {"mlflow.parentRunId": there.run_id, "heterosis.label": first.label, **SOURCE, **self._tags(merge)}
        begin, end = there.start + _milliseconds(merge.begin), _end(merge, there)
        run_id = client.create_run(there.experiment, begin, tags, first.label).info.run_id
        client.log_text(run_id, masked(first.recipe.to_yaml()), "recipe.yaml")
        model_id = None
        if first.value is not None:
            about = {"method": first.recipe.method, "recipe_digest": first.recipe_digest}
            about |= {f"source.{source.name}": source.digest for source in (first.recipe.base, *first.recipe.parents)}
            model_id = self._add_model(there.experiment, run_id, first.label, "merge", about, self._tags(merge))
            client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        client.set_terminated(run_id, "FAILED" if first.value is None else "FINISHED", end)
        return self._measure(_Child(run_id, model_id, end, frozenset()), merge, there.sources)

    def _tags(self, merge: Merge) -> dict[str, str]:
        return merge.tags() | ({"heterosis.origin": "sweep"} if self._facts.kind == "sweep" else {})

    def _measure(self, child: _Child, merge: Merge, sources: list[str] | None = None) -> _Child:
        """Write what the child run does not have, and mark it complete. `sources`: it has nothing yet."""
        from mlflow.entities import LoggedModelInput, Metric, Param, RunTag

        client, first = self._client, merge.first
        metrics, params, tags = [], [], {}
        if sources is not None:
            counted = {f"seconds/{phase}": seconds for phase, seconds in first.seconds.items()} | {"items": first.items}
            metrics = [Metric(name, value, child.end, 0) for name, value in counted.items()]
            genes = {mlflow_name(gene): str(value) for gene, value in (first.genes or numbers_of(first.recipe)).items()}
            points = {mlflow_name(name): v for name, v in self._facts.points.get(first.recipe_digest, {}).items()}
            all_params = {"method": first.recipe.method, **genes, **points}
            params = [Param(name, value[:PARAM_LENGTH]) for name, value in all_params.items()]
            tags = {} if child.model_id is None else {"heterosis.model_id": child.model_id}
        missing = [split for split in merge.by_split if split not in child.parts]
        measured = [(split, merge.by_split[split], 0) for split in missing]
        if merge.later is not None and LATER not in child.parts:
            measured.append(("search", merge.later, 1))
            metrics.append(Metric("items", merge.later.known, child.end, 1))
        for split, candidate, step in measured:
            if candidate.error is not None:
                tags["heterosis.error"] = f"{split}: {masked(candidate.error)}"
            key = self._dataset_key(split)
            on = {"model_id": child.model_id, "dataset_name": key["name"], "dataset_digest": key["digest"]}
            scores = {} if candidate.value is None else {"objective": candidate.value, **candidate.scores}
            metrics += [Metric(f"{split}/{mlflow_name(task)}", v, child.end, step, **on) for task, v in scores.items()]
        models = [LoggedModelInput(model_id) for model_id in sources or ()]
        client.log_inputs(child.run_id, [self._dataset(split) for split in missing], models)
        if len(params) > PARAMS_PER_REQUEST:  # the request that marks the run complete must be the last one
            client.log_batch(child.run_id, params=params)
            params = []
        tags["mlflow.note.content"] = masked(merge_note(merge, child.run_id, self._facts.kind))
        tags["heterosis.complete"] = ",".join(part for part in (*SPLITS, LATER) if part in merge.parts)
        client.log_batch(child.run_id, metrics, params, [RunTag(key, value) for key, value in tags.items()])
        return child._replace(parts=merge.parts)

    def _dataset_key(self, split: str) -> dict[str, str]:
        return {"name": split, "digest": self._facts.panel_digest[:36]}  # what MLflow has room for

    def _conclude(self, result: Mapping[str, Any], merges: Mapping[Key, Merge], there: _Mirrored) -> None:
        """Claims and winner on the parent run, once per result."""
        from mlflow.entities import Metric, RunTag

        keys = ("winner", "verdict", "winner_folder", "weights_digest")
        tags = {f"heterosis.{key}": masked(str(result[key])) for key in keys if result.get(key) is not None}
        claims, papers = numbers_told(result), papers_of(result)
        contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in papers.items()}
        digest = _digest([tags, claims, contents])
        if there.result == digest:
            return
        winner = {label: (label, recipe) for label, recipe in merges}[result["winner"]]
        self._register(merges[winner], there.children[winner], str(result["verdict"]))
        end = max(child.end for child in there.children.values())
        self._keep(papers, there)
        note = masked(result_note(self._facts.name, result, there.experiment, there.children[winner].run_id))
        tags |= {"mlflow.note.content": note, "heterosis.result_digest": digest}
        self._client.set_terminated(there.run_id, "FINISHED")
        metrics = [Metric(name, value, end, 0) for name, value in claims.items()]
        self._client.log_batch(there.run_id, metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        there.result = digest

    def _register(self, merge: Merge, child: _Child, verdict: str) -> None:
        """The winner in the model registry: one version per winning merge, the last one the champion."""
        from mlflow.exceptions import MlflowException

        client, name = self._client, self._facts.name
        try:
            client.create_registered_model(name, description=registry_note(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        marks = {"heterosis.study_digest": self._digest, **merge.tags()}
        known = [v for v in client.search_model_versions(f"name = '{name}'") if marks.items() <= v.tags.items()]
        if known:
            version = known[0].version
        else:
            # A server resolves models:/ itself; for a database MLflow would ask the global tracking URI.
            remote = self._uri.startswith("http")
            source = (
                f"models:/{child.model_id}" if remote else client.get_logged_model(child.model_id).artifact_location
            )
            about = {"tags": marks, "description": verdict, "model_id": child.model_id, "await_creation_for": 0}
            version = client.create_model_version(name, source, child.run_id, **about).version
        client.set_registered_model_alias(name, CHAMPION, version)
        listed = json.dumps([{"name": name, "version": version}])
        client.set_logged_model_tags(child.model_id, {"mlflow.modelVersions": listed})


def connect(uri: str) -> Any:
    """A client of our own; MLflow's chatter about tables and URLs is turned off. RecordError if no server answers."""
    check_answers(uri)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri, uri)


def _end(merge: Merge, there: _Mirrored) -> int:
    return there.start + _milliseconds(merge.begin + merge.first.seconds["total"])


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _beside_database(uri: str) -> str | None:
    """Where artifacts go: beside an SQLite file; anything else knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent / "lineage_artifacts").as_uri()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
