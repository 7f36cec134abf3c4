from pathlib import Path

import pytest

from heterosis.checkpoints import ModelRef, resolve
from heterosis.errors import CheckpointError


def refusal(ref: ModelRef, relative_to: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(ref, relative_to)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{ref.model}: ")
    return message


def test_a_folder_is_found_beside_the_study_before_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    study, here = tmp_path / "study", tmp_path / "here"
    for folder in (study / "math", here / "math", here / "code"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert resolve(ModelRef("math"), study) == study / "math"
    assert resolve(ModelRef("math")) == here / "math"
    assert resolve(ModelRef("code"), study) == here / "code"
    assert resolve(ModelRef("../here/code"), study) == here / "code"
    assert resolve(ModelRef(str(here / "math")), study) == here / "math"


def test_a_folder_may_start_at_home(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "math").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(ModelRef("~/math")) == tmp_path / "math"


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve(ModelRef("owner/name"), tmp_path) == tmp_path / "owner" / "name"


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    assert "revision" in refusal(ModelRef(str(tmp_path), "main"))


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./math", "../owner/name", "~/no-such-folder", "~no-such-user/x", "math", "a/b/c"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in refusal(ModelRef(model))


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "no such folder" in refusal(ModelRef(str(tmp_path / "model.safetensors")))


def test_a_model_that_the_hub_does_not_give_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = refusal(ModelRef("no-such-owner/no-such-model", "main"), tmp_path)
    assert "neither a local folder nor a model that the hub gives" in message
