import json
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from heterosis.errors import RecordError
from heterosis.evaluation.panel import SPLITS, TaskOutcomes
from heterosis.ledger import Proposal, Record
from heterosis.ledger import lineage as lineage_module
from heterosis.ledger.lineage import Lineage, StudyFacts
from heterosis.ledger.merges import merges_of
from heterosis.ledger.mirror import BackgroundMirror
from heterosis.ledger.record import Measurement, sqlite_url
from heterosis.ledger.results import numbers_told
from heterosis.optimizers.protocol import Fitness
from heterosis.recipe import Recipe, Source
from heterosis.space import GeneSlot

# MLflow's own queries use a loader option that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

GENES = [GeneSlot(f"a.weight.all.{i}", 0.0, 1.5, 0.5) for i in range(3)]
BASE = Source(name="base", model="models/base", digest="b" * 64)
PARENTS = (
    Source(name="a", model="owner/a", revision="main", digest="1" * 64),
    Source(name="b", model="models/b", digest="2" * 64),
)
PANEL = {"tasks": {}, "splits": {split: {"quiz": [[0, "k0", "p0"], [1, "k1", "p1"]]} for split in SPLITS}}
RESULT = {
    "winner": "c3",
    "verdict": "c3 beats every parent and baseline",
    "winner_folder": "runs/toy/winner",
    "weights_digest": "weights of c3",
    "heterosis": {
        "best_parent": {"against": "b", "estimate": 0.1, "low": 0.05, "high": 0.15},
        "mid_parent": {"against": ["a", "b"], "estimate": 0.2, "low": 0.1, "high": 0.3},
        "best_baseline": {"against": "average(0.5)", "estimate": 0.1, "low": -0.01, "high": 0.2},
    },
}

Records = dict[str, Record]


def facts(**changes: Any) -> StudyFacts:
    config = {"name": "toy", "tasks": [{"task": "quiz", "weight": 1.0}], "method": None}
    return StudyFacts("toy", {"seed": 0}, config, BASE, PARENTS, PANEL, "d" * 64)._replace(**changes)


def add(record: Record, label: str, value: float | None, genes: Mapping[str, float] | None = None) -> None:
    """Score something, or fail to if there is no value."""
    parameters = {"a": {"all": {"weight": 0.1 + 0.001 * sum(map(ord, label))}}}
    recipe = Recipe(method="ties", base=BASE, parents=PARENTS, groups={"all": ".*"}, parameters=parameters)
    chosen = genes or {gene.name: 0.25 for gene in GENES}
    baseline = not label.startswith(("c", "mean"))
    proposal = Proposal(label, 0, recipe) if baseline else Proposal(label, 2, recipe, (0.5,) * len(chosen), chosen)
    seconds = {"merge": 0.25, "swap": 0.25, "score": 0.5, "total": 1.5}
    outcomes = {"quiz": TaskOutcomes(np.ones(2), np.ones(2))}
    measured = (
        Measurement({}, {}, None, seconds, 0, "logits are NaN.")
        if value is None
        else Measurement({"quiz": value + 1.0}, outcomes, f"weights of {label}", seconds, 2)
    )
    record.add(proposal, measured, value)


def open_records(genes: list[GeneSlot] = GENES) -> Records:
    storage = optuna.storages.InMemoryStorage()
    return {split: Record(storage, f"toy/{split}", genes) for split in SPLITS}


def searched() -> Records:
    """A search of six: two parents, another baseline, and three candidates of which one failed."""
    found = open_records()
    for label, value in {"a": 0.4, "b": 0.5, "average(0.5)": 0.45, "c1": 0.3, "c2": None, "c3": 0.6}.items():
        add(found["search"], label, value)
    return found


@pytest.fixture
def records() -> Records:
    return searched()


def select_and_test(records: Records) -> None:
    for label, value in {"a": 0.41, "b": 0.51, "c3": 0.59, "mean": 0.55}.items():
        add(records["selection"], label, value)
    for label, value in {"b": 0.52, "c3": 0.58}.items():
        add(records["test"], label, value)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("lineage") / "empty.db"
    MlflowClient(sqlite_url(path)).search_experiments()
    return path


@pytest.fixture
def uri(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(migrated, tmp_path / "lineage.db")
    return sqlite_url(tmp_path / "lineage.db")


class View:
    """What a user sees, without ids and clock times."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri, uri)
        self.experiment = self.client.get_experiment_by_name("toy")
        number = self.experiment.experiment_id
        found = self.client.search_runs([number], max_results=1000)
        self.names = {run.info.run_id: run.info.run_name for run in found}
        found_models = self.client.search_logged_models([number], max_results=50)
        self.names |= {model.model_id: model.name for model in found_models}
        self.runs = sorted((self._run(run.info.run_id) for run in found), key=lambda run: run["name"])
        self.models = sorted((self._model(model) for model in found_models), key=lambda model: model["name"])
        self.versions = [
            {
                "tags": version.tags,
                "aliases": list(self.client.get_model_version(version.name, version.version).aliases),
                "run": self.names[version.run_id],
                "model": next(self.names[i] for i in self.names if i in version.source),
                "description": version.description,
            }
            for version in self.client.search_model_versions("name = 'toy'")
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and (self.runs, self.models, self.versions) == (
            other.runs,
            other.models,
            other.versions,
        )

    __hash__ = None  # type: ignore[assignment]

    def run(self, name: str) -> dict[str, Any]:
        (found,) = [run for run in self.runs if run["name"] == name]
        return found

    def model(self, name: str) -> dict[str, Any]:
        (found,) = [model for model in self.models if model["name"] == name]
        return found

    def _named(self, tags: Mapping[str, str]) -> dict[str, str]:
        named = {}
        for key, value in tags.items():
            for number, name in self.names.items():
                value = value.replace(number, name)
            named[key] = value
        return named

    def _run(self, run_id: str) -> dict[str, Any]:
        run = self.client.get_run(run_id)
        history = {key: self.client.get_metric_history(run_id, key) for key in run.data.metrics}
        return {
            "name": run.info.run_name,
            "status": run.info.status,
            "tags": self._named(run.data.tags),
            "params": run.data.params,
            "metrics": {key: [(metric.step, metric.value) for metric in points] for key, points in history.items()},
            "artifacts": sorted(file.path for file in self.client.list_artifacts(run_id)),
            "datasets": {
                used.dataset.name: (used.dataset.digest, {tag.key: tag.value for tag in used.tags})
                for used in run.inputs.dataset_inputs
            },
            "inputs": sorted(self.names[used.model_id] for used in run.inputs.model_inputs),
            "outputs": sorted(self.names[made.model_id] for made in run.outputs.model_outputs),
        }

    def _model(self, model: Any) -> dict[str, Any]:
        return {
            "name": model.name,
            "type": model.model_type,
            "status": str(model.status),
            "tags": self._named(model.tags),
            "params": model.params,
            "metrics": sorted((m.key, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics or ()),
            "run": self.names[model.source_run_id],
        }


@pytest.fixture(scope="session")
def after_search(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> View:
    """The lineage when the search is over; to look at only."""
    uri = sqlite_url(Path(shutil.copy(migrated, tmp_path_factory.mktemp("search") / "lineage.db")))
    assert Lineage(uri, facts()).sync(searched()) == 6
    return View(uri)


@pytest.fixture(scope="session")
def finished(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a study mirrored in two steps, up to its result; to look at only."""
    uri = sqlite_url(Path(shutil.copy(migrated, tmp_path_factory.mktemp("result") / "lineage.db")))
    mirror, records = Lineage(uri, facts()), searched()
    mirror.sync(records)
    select_and_test(records)
    assert mirror.sync(records, RESULT) == 1  # the optimizer's mean, which only the selection split has
    return uri


def test_a_study_is_a_parent_run_with_its_sources_and_panel_as_inputs(after_search: View) -> None:
    view = after_search
    study = view.run("toy")
    assert (study["status"], study["tags"]["heterosis.study"]) == ("RUNNING", "toy")
    assert len(study["tags"]["heterosis.study_digest"]) == 64
    assert study["params"] == {"name": "toy", "tasks.0.task": "quiz", "tasks.0.weight": "1.0"}
    assert study["artifacts"] == ["panel.json", "study.json"]
    assert study["inputs"] == ["a", "b", "base"]
    assert study["datasets"] == {split: ("d" * 36, {"mlflow.data.context": split}) for split in SPLITS}
    base = next(m for m in view.models if m["tags"].get("heterosis.role") == "base")
    assert (base["params"], base["run"]) == ({"model": "models/base", "revision": "", "digest": "b" * 64}, "toy")
    parents = [m for m in view.models if m["tags"].get("heterosis.role") == "parent"]
    assert [(m["name"], m["tags"]["heterosis.digest"], m["type"]) for m in parents] == [
        ("a", "1" * 64, "checkpoint"),
        ("b", "2" * 64, "checkpoint"),
    ]
    assert parents[0]["params"] == {"model": "owner/a", "revision": "main", "digest": "1" * 64}


def test_the_parent_run_shows_the_best_objective_so_far(after_search: View) -> None:
    curve = after_search.run("toy")["metrics"]["best/objective"]
    assert curve == [(0, 0.4), (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.6)]


def test_a_candidate_is_a_child_run_with_a_model_made_from_the_sources(after_search: View, records: Records) -> None:
    from mlflow.artifacts import download_artifacts

    view = after_search
    run, model = view.run("c3"), view.model("c3")
    scored = records["search"].candidates[5]
    expected = {
        "mlflow.parentRunId": "toy",
        "heterosis.candidate": "5",
        "heterosis.generation": "2",
        "heterosis.origin": "search",
        "heterosis.recipe_digest": scored.recipe_digest,
        "heterosis.weights_digest": "weights of c3",
        "heterosis.complete": "search",
    }
    assert expected.items() <= run["tags"].items()
    assert run["status"] == "FINISHED"
    assert run["params"] == {"method": "ties"} | {gene.name: "0.25" for gene in GENES}
    assert run["metrics"] == {
        "search/objective": [(0, 0.6)],
        "search/quiz": [(0, 1.6)],
        "items": [(0, 2.0)],
        **{f"seconds/{phase}": [(0, seconds)] for phase, seconds in scored.seconds.items()},
    }
    assert set(run["inputs"]) >= {"a", "b", "base"}
    assert run["outputs"] == ["c3"]
    assert set(run["datasets"]) == {"search"}
    assert (model["status"], model["type"], model["run"]) == ("READY", "merge", "c3")
    assert model["metrics"] == [
        (f"search/{key}", value, "search", "d" * 36) for key, value in (("objective", 0.6), ("quiz", 1.6))
    ]
    assert model["params"]["source.base"] == "b" * 64
    assert model["params"]["recipe_digest"] == scored.recipe_digest
    (run_id,) = [number for number, name in view.names.items() if name == "c3" and not number.startswith("m-")]
    stored = download_artifacts(run_id=run_id, artifact_path="recipe.yaml", tracking_uri=view.client.tracking_uri)
    assert Recipe.load(Path(stored)).digest == scored.recipe_digest


def test_baselines_and_failures_are_told_apart(after_search: View) -> None:
    view = after_search
    assert view.run("average(0.5)")["tags"]["heterosis.origin"] == "baseline"
    assert view.model("average(0-5)")["status"] == "READY"
    failed = view.run("c2")
    assert (failed["status"], failed["tags"]["heterosis.error"]) == ("FAILED", "search: logits are NaN.")
    assert (failed["outputs"], set(failed["inputs"])) == ([], {"a", "b", "base"})
    assert "search/objective" not in failed["metrics"]
    assert "c2" not in {model["name"] for model in view.models}


def test_selection_and_test_scores_join_the_run_of_the_candidate(finished: str) -> None:
    view = View(finished)
    run = view.run("c3")
    assert [run["metrics"][f"{split}/objective"] for split in SPLITS] == [[(0, 0.6)], [(0, 0.59)], [(0, 0.58)]]
    assert (run["tags"]["heterosis.complete"], set(run["datasets"])) == ("search,selection,test", set(SPLITS))
    assert {row[2] for row in view.model("c3")["metrics"]} == set(SPLITS)
    mean = view.run("mean")["tags"]
    assert (mean["heterosis.origin"], mean["heterosis.candidate"]) == ("selection", "selection/3")


def test_a_second_sync_adds_nothing(finished: str, records: Records) -> None:
    select_and_test(records)
    before = View(finished)
    mirror = Lineage(finished, facts())
    assert mirror.sync(records, RESULT) == mirror.sync(records, RESULT) == mirror.sync(records) == 0
    assert View(finished) == before


def test_the_winner_is_registered_as_champion(finished: str) -> None:
    view = View(finished)
    (version,) = view.versions
    assert (version["run"], version["model"], version["aliases"]) == ("c3", "c3", ["champion"])
    assert version["tags"]["heterosis.candidate"] == "5"
    assert version["tags"]["heterosis.weights_digest"] == "weights of c3"
    champion = view.client.get_model_version_by_alias("toy", "champion")
    listed = json.loads(view.model("c3")["tags"]["mlflow.modelVersions"])
    assert listed == [{"name": "toy", "version": champion.version}]
    study = view.run("toy")
    assert (study["status"], study["tags"]["heterosis.winner"]) == ("FINISHED", "c3")
    assert study["tags"]["heterosis.verdict"] == RESULT["verdict"]
    note = study["tags"]["mlflow.note.content"]
    assert note.startswith(f"**{RESULT['verdict']}.**")
    assert f"Winner: [c3](#/experiments/{view.experiment.experiment_id}/runs/c3)" in note
    assert study["metrics"]["heterosis/best_baseline/low"] == [(0, -0.01)]


def test_every_run_says_in_words_what_it_is(after_search: View, finished: str) -> None:
    study = after_search.run("toy")["tags"]["mlflow.note.content"]
    assert "| parent a | owner/a@main | `1111111111111111` |" in study
    assert "items: search 2, selection 2, test 2" in study
    view = View(finished)
    told = view.run("c3")["tags"]["mlflow.note.content"]
    assert told.startswith("**c3**, generation 2: `ties` of a, b.")
    for row in ("| search | 0.6000 | 1.6000 |", "| selection | 0.5900 | 1.5900 |", "| test | 0.5800 | 1.5800 |"):
        assert row in told
    assert "heterosis reproduce c3 OUT" in told  # the run's id, under the name that this view gives it
    assert "Failed on search: logits are NaN." in view.run("c2")["tags"]["mlflow.note.content"]
    assert view.client.get_registered_model("toy").description.startswith("Winners of the study toy")


def test_the_report_and_the_winners_card_join_the_study_as_soon_as_they_are_there(uri: str, tmp_path: Path) -> None:
    records = open_records()
    add(records["search"], "c3", 0.6)
    winner = tmp_path / "run" / "winner"
    winner.mkdir(parents=True)
    result = {**RESULT, "winner_folder": str(winner)}
    (winner / "README.md").write_text("# card")
    Lineage(uri, facts()).sync(records, result)
    assert View(uri).run("toy")["artifacts"] == ["panel.json", "study.json", "winner"]
    (tmp_path / "run" / "report.html").write_text("<p>report</p>")
    Lineage(uri, facts()).sync(records, result)
    view = View(uri)
    assert view.run("toy")["artifacts"] == ["panel.json", "report.html", "study.json", "winner"]
    assert len(view.versions) == 1


def test_a_study_that_goes_on_runs_again_and_a_new_winner_becomes_champion(uri: str) -> None:
    records = open_records()
    add(records["search"], "c3", 0.6)
    Lineage(uri, facts()).sync(records, RESULT)
    Lineage(uri, facts()).sync(records, {**RESULT, "verdict": "said otherwise"})  # no other winner, so no other version
    add(records["search"], "c4", 0.7)
    Lineage(uri, facts()).sync(records)
    assert View(uri).run("toy")["status"] == "RUNNING"
    Lineage(uri, facts()).sync(records, {**RESULT, "winner": "c4"})
    view = View(uri)
    assert {version["run"]: version["aliases"] for version in view.versions} == {"c3": [], "c4": ["champion"]}
    assert view.run("toy")["status"] == "FINISHED"


class Stop(Exception):
    """The process ends here."""


class Dying:
    """A client whose process ends after so many calls."""

    def __init__(self, client: Any, calls: int) -> None:
        self._client = client
        self._left = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise Stop(name)
            self._left -= not name.startswith(("get_", "search_"))
            return method(*args, **kwargs)

        return call


def test_a_mirror_cut_off_again_and_again_ends_as_if_it_never_was(
    uri: str, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_records()
    for label, value in {"c2": None, "c3": 0.6}.items():
        add(records["search"], label, value)
    add(records["selection"], "c3", 0.5)
    (tmp_path / "whole").mkdir()
    whole = sqlite_url(Path(shutil.copy(migrated, tmp_path / "whole" / "lineage.db")))
    Lineage(whole, facts()).sync({"search": records["search"]})
    Lineage(whole, facts()).sync(records, RESULT)

    connect = lineage_module.connect

    def attempt(calls: int, *what: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(lineage_module, "connect", lambda uri: Dying(connect(uri), calls))
            try:
                Lineage(uri, facts()).sync(*what)
            except Stop:
                return False
        return True

    calls = 1
    for what in ({"search": records["search"]},), (records, RESULT):
        while not attempt(calls, *what):
            calls += 1
        calls = 1
    assert View(uri) == View(whole)
    assert Lineage(uri, facts()).sync(records, RESULT) == 0


def test_studies_of_one_name_but_another_identity_are_separate_runs(uri: str, records: Records) -> None:
    Lineage(uri, facts()).sync({})
    assert Lineage(uri, facts(identity={"seed": 1})).sync({}) == 0
    assert len([run for run in View(uri).runs if run["name"] == "toy"]) == 2


def test_all_genes_arrive_however_many(uri: str) -> None:
    genes = [GeneSlot(f"a.weight.all.{i}", 0.0, 1.5, 0.5) for i in range(150)]
    records = open_records(genes)
    add(records["search"], "c1", 0.5, {gene.name: 0.125 for gene in genes})
    Lineage(uri, facts()).sync(records)
    run = View(uri).run("c1")
    assert len(run["params"]) == 151
    assert run["tags"]["heterosis.complete"] == "search"


def test_credentials_are_not_stored(uri: str, tmp_path: Path) -> None:
    secret = "hunter2"
    config = {
        "record": f"postgresql://someone:{secret}/{secret}@host/db",
        "tracking": f"https://someone:{secret}@host",
        "base": {"model": f"https://{secret}@host/base"},
        "engine": {"options": {"hf_token": secret, "download": f"https://host/x?token={secret}&a=b"}},
    }
    base = BASE.model_copy(update={"model": f"https://someone:{secret}@host/base"})
    records = open_records()
    recipe = Recipe(method="ties", base=base, parents=PARENTS, groups={"all": ".*"}, parameters={})
    seconds = {"total": 1.0}
    failed = Measurement({}, {}, None, seconds, 0, f"no answer from http://someone:{secret}@host/x")
    scored = Measurement({"quiz": 1.0}, {}, "w", seconds, 2)
    records["search"].add(Proposal("a", 0, recipe), failed, None)
    records["search"].add(Proposal("b", 0, recipe), scored, 1.0)
    Lineage(uri, facts(config=config, identity=config, base=base)).sync(records)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in stored} >= {"lineage.db", "study.json", "recipe.yaml"}
    assert [path.name for path in stored if secret.encode() in path.read_bytes()] == []
    assert View(uri).run("toy")["params"]["record"] == "postgresql://***@host/db"


def test_artifacts_lie_beside_the_database_and_the_users_mlflow_is_left_alone(
    uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    records = open_records()
    add(records["search"], "c3", 0.5)
    Lineage(uri, facts()).sync(records, RESULT)
    assert {path.name for path in tmp_path.iterdir()} == {"lineage.db", "lineage_artifacts", "elsewhere"}
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None
    assert capfd.readouterr() == ("", "")


def test_a_deleted_experiment_is_named_with_the_way_back(uri: str, records: Records) -> None:
    Lineage(uri, facts()).sync({})
    view = View(uri)
    view.client.delete_experiment(view.experiment.experiment_id)
    with pytest.raises(RecordError, match="mlflow experiments restore -x"):
        Lineage(uri, facts()).sync(records)


def test_a_leader_that_answered_more_after_its_race_is_told_so(uri: str, migrated: Path, tmp_path: Path) -> None:
    records = searched()
    pieces = Lineage(uri, facts())
    pieces.sync(records)
    assert View(uri).run("c3")["metrics"]["search/objective"] == [(0, 0.6)]
    raced = records["search"].candidates[-1]
    outcomes = {"quiz": TaskOutcomes(np.ones(3), np.ones(3))}
    whole = replace(raced, outcomes=outcomes, scores={"quiz": 0.75}, fitness=Fitness.of(0.5), value=0.5)
    records["search"].keep_later([whole])
    pieces.sync(records)
    metrics = View(uri).run("c3")["metrics"]
    assert (metrics["search/objective"], metrics["search/quiz"]) == ([(0, 0.6), (1, 0.5)], [(0, 1.6), (1, 0.75)])
    assert metrics["items"] == [(0, 2.0), (1, 3.0)]
    assert "| search | 0.5000 | 0.7500 |" in View(uri).run("c3")["tags"]["mlflow.note.content"]
    at_once = sqlite_url(Path(shutil.copy(migrated, tmp_path / "at_once.db")))
    Lineage(at_once, facts()).sync(records)
    assert View(at_once) == View(uri)


def test_an_estimate_from_a_part_of_the_items_is_not_the_best_so_far() -> None:
    search = searched()["search"]
    whole = search.candidates[-1]
    part = {"quiz": TaskOutcomes(np.array([1.0, np.nan]), np.ones(2))}
    proposal = Proposal("c4", 2, whole.recipe, whole.genome, whole.genes)
    raced = Measurement({"quiz": 1.9}, part, "weights of c4", whole.seconds, 1, race={"place": "open", "rungs": 1})
    search.add(proposal, raced, 0.9)
    assert [merge.best for merge in merges_of({"search": search}).values()][-2:] == [0.6, 0.6]


def test_merges_that_no_search_moved_have_their_numbers_as_params(after_search: View) -> None:
    assert after_search.run("a")["params"].keys() == {"method", "a.weight.all"}
    assert float(after_search.run("a")["params"]["a.weight.all"]) == pytest.approx(0.1 + 0.001 * ord("a"))


def test_the_studys_run_has_the_winners_scores() -> None:
    row = {"label": "c3", "test": {"objective": {"estimate": 0.58}, "tasks": {"quiz": {"estimate": 1.58}}}}
    told = numbers_told({**RESULT, "table": [{"label": "a", "test": row["test"]}, row]})
    assert {name: value for name, value in told.items() if not name.startswith("heterosis/")} == {
        "test/objective": 0.58,
        "test/quiz": 1.58,
    }
    assert told["heterosis/best_parent/low"] == 0.05


def test_the_background_mirror_follows_the_record(uri: str) -> None:
    records = open_records()
    with BackgroundMirror(Lineage(uri, facts()), records, print) as mirror:
        records["search"].listen(lambda _: mirror.wake())
        for label, value in {"a": 0.4, "c1": 0.5}.items():
            add(records["search"], label, value)
    assert mirror.problem is None
    assert {run["name"] for run in View(uri).runs} == {"toy", "a", "c1"}


def test_the_background_mirror_finishes_with_the_result(uri: str) -> None:
    records = open_records()
    add(records["search"], "c1", 0.5)
    with BackgroundMirror(Lineage(uri, facts()), records, print) as mirror:
        mirror.finish({**RESULT, "winner": "c1"})
    assert [version["run"] for version in View(uri).versions] == ["c1"]


def test_a_dead_server_is_told_at_once_in_one_line_and_is_no_error() -> None:
    records, told = open_records(), queue.Queue[str]()
    lineage = Lineage("http://someone:hunter2@127.0.0.1:9", facts())
    with BackgroundMirror(lineage, records, told.put) as mirror:
        records["search"].listen(lambda _: mirror.wake())
        add(records["search"], "a", 0.5)
        first = told.get(timeout=30)  # MLflow itself would try for minutes
        assert first.startswith(
            "lineage: no MLflow server answers at http://***@127.0.0.1:9 (Connection refused). Start it, or correct"
        )
        assert first.endswith("The work goes on without it, and is mirrored later.")
    assert len(records["search"].candidates) == 1
    assert told.get_nowait().endswith("The same command catches up, without scoring anything again.")
    assert mirror.problem is not None
    assert "\n" not in mirror.problem
    assert "hunter2" not in mirror.problem + first


def test_a_problem_that_passes_is_caught_up_with(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records = open_records()
    add(records["search"], "c1", 0.5)
    monkeypatch.setattr(BackgroundMirror, "FIRST_DELAY", 0.01)
    connect, failed = lineage_module.connect, threading.Event()

    def refuse(uri: str) -> Any:
        failed.set()
        raise ConnectionError("no route")

    monkeypatch.setattr(lineage_module, "connect", refuse)
    with BackgroundMirror(Lineage(uri, facts()), records, print) as mirror:
        mirror.wake()
        assert failed.wait(10)
        monkeypatch.setattr(lineage_module, "connect", connect)
        mirror.wake()
    assert mirror.problem is None
    assert {run["name"] for run in View(uri).runs} == {"toy", "c1"}


def test_a_server_that_hangs_is_left_behind_with_a_warning(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(lineage_module, "connect", lambda uri: answer.wait(30))
    told: list[str] = []
    mirror = BackgroundMirror(Lineage("http://127.0.0.1:9", facts()), records, told.append, patience=0.1)
    mirror.finish()
    (only,) = told
    assert only.startswith("lineage: MLflow did not take everything within 0.1 s.")
    assert mirror.problem is not None
    answer.set()
