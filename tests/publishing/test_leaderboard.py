"""Files for leaderboards: lm-eval's keys and samples, the record's numbers, and null for what nobody knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import parse_eval_result_entries
from small_study import Finished

from heterosis.errors import StudyError
from heterosis.evaluation.samples import task_hash
from heterosis.files import parse_yaml
from heterosis.publishing import Findings, findings
from heterosis.publishing.leaderboard import TOKENIZER_FACTS, hub_entries, results, write_leaderboard_files
from heterosis.stored import open_stored


@pytest.fixture(scope="module")
def won(finished: Finished) -> Findings:
    with open_stored(finished.folder) as study:
        return findings(study, "winner")


@pytest.fixture(scope="module")
def by_lm_eval(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same task's result and samples, as lm-eval itself writes them, of a model that answers at random."""
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.loggers import EvaluationTracker

    from heterosis.evaluation.tasks import read_task_file

    task = ConfigurableTask(config=read_task_file(finished.study.parent / "choice.yaml"))
    out = tmp_path_factory.mktemp("lm_eval")
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args("dummy", "pretrained=x", None, None, False)
    found = lm_eval.evaluate(get_model("dummy")(), {"choice": task}, log_samples=True, bootstrap_iters=0)
    assert found is not None
    taken = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=taken)
    tracker.save_results_samples("choice", taken["choice"])
    (result,), (sample,) = (list(out.rglob(kind)) for kind in ("results_*.json", "samples_*.jsonl"))
    return json.loads(result.read_text()), [json.loads(line) for line in sample.read_text().splitlines()]


# What simple_evaluate adds to what evaluate returns (lm-eval 0.4.13).
ADDED = {
    *TOKENIZER_FACTS,
    "config",
    "git_hash",
    "date",
    "pretty_env_info",
    "transformers_version",
    "lm_eval_version",
    "upper_git_hash",
}


def test_results_have_the_keys_of_lm_eval(
    won: Findings, by_lm_eval: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    theirs, ours = by_lm_eval[0], results(won, "me/model")
    assert set(ours) == set(theirs) | ADDED
    other_metric = {"acc_norm,none", "acc_norm_stderr,none"}
    assert set(ours["results"]["choice"]) == set(theirs["results"]["choice"]) - other_metric
    assert set(ours["configs"]["choice"]) == set(theirs["configs"]["choice"])
    for key in ("versions", "n-shot"):
        assert ours[key] == theirs[key]
    assert ours["n-samples"] == {"choice": {"original": theirs["n-samples"]["choice"]["original"], "effective": 7}}
    assert ours["model_name_sanitized"] == "me_model"


def test_samples_are_what_lm_eval_writes_but_for_the_answers(
    finished: Finished, won: Findings, by_lm_eval: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    (path,) = (finished.folder / "winner" / "lm_eval").glob("samples_choice_*.jsonl")
    ours = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = {sample["doc_id"]: sample for sample in by_lm_eval[1]}
    answers = {"resps", "filtered_resps", "acc", "acc_norm"}
    assert len(ours) == 7
    for sample in ours:
        whole = theirs[sample["doc_id"]]
        assert list(sample) == list(whole)
        assert {k: v for k, v in sample.items() if k not in answers} == {
            k: v for k, v in whole.items() if k not in answers
        }
        # Two numbers of each choice, as text: log-probability and whether it is the greedy one.
        assert [[len(each) for each in request] for request in sample["resps"]] == [[2]] * len(whole["resps"])
        chosen = max(range(len(sample["resps"])), key=lambda at: float(sample["resps"][at][0][0]))
        assert sample["acc"] == float(sample["target"] == str(chosen))
    assert results(won, "x")["task_hashes"] == {"choice": task_hash(ours)}


def test_samples_are_the_items_of_the_test_split_and_average_to_the_result(finished: Finished, won: Findings) -> None:
    rows = json.loads((finished.folder / "panel.json").read_text())["splits"]["test"]["choice"]
    found = won.samples["choice"]
    assert [sample["doc_id"] for sample in found] == [row[0] for row in rows]
    mean = sum(sample["acc"] for sample in found) / len(found)
    told = next(row for row in finished.result["table"] if row["role"] == "winner")["test"]["tasks"]["choice"]
    assert results(won, "x")["results"]["choice"]["acc,none"] == pytest.approx(mean) == told["estimate"]


def test_a_study_that_kept_no_answers_has_no_sample_files(finished: Finished, tmp_path: Path, won: Findings) -> None:
    written = write_leaderboard_files(tmp_path, won._replace(samples={}), "x")
    assert [Path(name).name.partition("_")[0] for name in written] == ["results"]


def test_answers_to_other_items_are_refused(finished: Finished, tmp_path: Path, won: Findings) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished.folder, folder)
    path = folder / "samples" / won.candidate.recipe_digest[:16] / "choice.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with open_stored(folder) as study, pytest.raises(StudyError, match="not of this study's items"):
        findings(study, "winner")
    path.write_text("".join(lines)[:-20])
    with open_stored(folder) as study, pytest.raises(StudyError, match="cannot be read"):
        findings(study, "winner")


def test_no_folder_of_this_machine_is_told(finished: Finished, won: Findings) -> None:
    assert str(finished.study.parent) not in json.dumps([results(won, "x"), won.samples])


def test_a_task_with_a_data_set_on_the_hub_gets_an_entry_that_the_hub_reads(won: Findings, tmp_path: Path) -> None:
    assert hub_entries(won) == {}  # a file of one's own is no benchmark of the hub's
    facts = won.about["tasks"]["choice"] | {"dataset": "owner/quiz", "dataset_config": "hard"}
    named = won._replace(about={"version": "0.4.13", "tasks": {"choice": facts}})
    written = write_leaderboard_files(tmp_path, named, "x")
    assert ".eval_results/choice.yaml" in written
    (entry,) = parse_eval_result_entries(parse_yaml((tmp_path / ".eval_results" / "choice.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id) == ("owner/quiz", "hard")
    assert entry.value == pytest.approx(100 * won.table["test"][won.label]["tasks"]["choice"]["estimate"], abs=1e-4)
    assert entry.notes == "lm-eval choice, acc in percent, 0-shot, on 7 held-out of 24 items"


def test_what_is_no_share_is_not_turned_into_percent(won: Findings) -> None:
    facts = won.about["tasks"]["choice"] | {"dataset": "owner/quiz"}
    assert won.outcomes is not None
    counted = {"choice": won.outcomes["choice"]._replace(values=won.outcomes["choice"].values * 3.0)}
    named = won._replace(about={"version": "0.4.13", "tasks": {"choice": facts}}, outcomes=counted)
    ((entry,),) = hub_entries(named).values()
    assert entry["value"] == round(won.table["test"][won.label]["tasks"]["choice"]["estimate"], 4)
    assert ", acc, 0-shot" in entry["notes"]


def test_a_panel_of_an_older_version_leaves_unknown_what_it_does_not_say(finished: Finished, tmp_path: Path) -> None:
    for name in ("record.db", "resolved.yaml", "result.json"):
        shutil.copy(finished.folder / name, tmp_path)
    panel = json.loads((finished.folder / "panel.json").read_text())
    del panel["lm_eval"]
    (tmp_path / "panel.json").write_text(json.dumps(panel))
    with open_stored(tmp_path) as study:
        found = results(findings(study, "winner"), "x")
    assert (found["configs"], found["lm_eval_version"]) == ({"choice": None}, None)
