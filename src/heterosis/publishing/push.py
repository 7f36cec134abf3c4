"""A model folder on its way to the hub: looked at first, then uploaded in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.errors import CheckpointError, RecordError
from heterosis.files import write_text
from heterosis.mergekit import to_mergekit
from heterosis.publishing.licences import Licence, assess
from heterosis.publishing.sources import shareable
from heterosis.recipe import Recipe

# The hub's own rule for names.
REPO_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?/[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
LONGEST = 96
# Within a model folder: what was asked and answered.
SAMPLES = "lm_eval/samples_*.jsonl"


class Upload(NamedTuple):
    """What would go to the hub."""

    repo: str
    private: bool
    files: dict[str, int]
    """Path in the repository -> bytes."""
    kept: tuple[str, ...]
    """Files that stay at home: benchmark items in the open end up in training data."""

    @property
    def bytes(self) -> int:
        """Size of everything."""
        return sum(self.files.values())


def check_push(repo: str, licences: Mapping[str, Licence], accepted: bool, dry: bool = False) -> None:
    """Refuse what must not or cannot be pushed, in one line, before anything expensive.

    `accepted`: the user has read the models' licences and may publish the merge. `dry`: nothing will be sent.
    """
    if not REPO_ID.fullmatch(repo) or len(repo) > LONGEST or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise CheckpointError(
            f"--push {repo}: not a repository id. Give OWNER/NAME of letters, digits, -, _ and ., at most 96 long."
        )
    problems = assess(licences).problems
    if problems and not accepted:
        raise CheckpointError(
            f"--push {repo}: licences: {'; '.join(problems)}. Read them; if you may publish this merge, give "
            "--accept-licences."
        )
    if not dry and _token() is None:
        raise CheckpointError(
            f"--push {repo}: no token for the hub. Log in with `hf auth login`, or set HF_TOKEN to one that may write."
        )


def plan_upload(folder: Path, repo: str, private: bool, samples: bool = False) -> Upload:
    """What of a model folder would be sent. `samples`: also the benchmark's items and the merge's answers."""
    with tempfile.TemporaryDirectory() as scratch:
        staged = _staged(folder, Path(scratch), samples)
        files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in _files(staged)}
    here = [path.relative_to(folder).as_posix() for path in _files(folder)]
    return Upload(repo, private, files, tuple(name for name in here if name not in files))


def push(folder: Path, repo: str, private: bool, samples: bool = False) -> str:
    """Upload a model folder in one commit; returns the page of the repository. Its token is never shown.

    `samples` as in `plan_upload`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=_token(), library_name="heterosis")
    with tempfile.TemporaryDirectory() as scratch:
        staged = _staged(folder, Path(scratch), samples)
        try:
            made = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.model_info(made.repo_id).private:
                raise CheckpointError(
                    f"--push {repo}: {repo} is there already, and public. Give another name, or drop --private. "
                    "Nothing was sent."
                )
            api.upload_folder(
                repo_id=made.repo_id, folder_path=staged, commit_message="Upload a merge made with Heterosis"
            )
        except CheckpointError:
            raise
        except Exception as error:  # the client, its HTTP library and the file system raise types of their own
            raise RecordError(
                f"--push {repo}: the hub did not take it ({_reason(error)}). {folder} is complete; push it again when "
                "the cause is gone."
            ) from error
    return str(made)


def _reason(error: Exception) -> str:
    """The first line of what went wrong, without the token, should anything have quoted it."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    token = _token()
    return text.replace(token, "***") if token else text


def _token() -> Any:
    """From the usual places: HF_TOKEN, or the file that logging in writes."""
    from huggingface_hub import get_token

    return get_token()


def _staged(folder: Path, scratch: Path, samples: bool) -> Path:
    """The folder as others may see it: links to its files, and recipes that do not name this machine's folders."""
    for path in _files(folder):
        if not samples and path.relative_to(folder).match(SAMPLES):
            continue
        link = scratch / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    recipe = shareable(Recipe.load(folder / "recipe.yaml"))
    _replace(scratch / "recipe.yaml", recipe.to_yaml())
    if (scratch / "mergekit_config.yml").exists():
        names = _tensor_names(folder)
        _replace(scratch / "mergekit_config.yml", to_mergekit(recipe, names).to_yaml())
    return scratch


def _replace(link: Path, text: str) -> None:
    link.unlink()
    write_text(link, text)


def _tensor_names(folder: Path) -> list[str]:
    from heterosis.checkpoints import Checkpoint

    written = Checkpoint(folder)
    try:
        return list(written.specs)
    finally:
        written.close()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
