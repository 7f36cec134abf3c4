"""Pushing a model folder, to a stand-in for the hub on this machine: never to the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from small_study import Finished

from heterosis.errors import CheckpointError
from heterosis.publishing.licences import Licence
from heterosis.publishing.push import check_push, plan_upload
from heterosis.recipe import Recipe

TOKEN = "hf_nobody_may_see_this"


class Hub(ThreadingHTTPServer):
    """As much of the hub as one upload needs. It keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.commits = 0
        self.refuses = False
        self.public = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """Answers of the hub, by path."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        about = {"id": "me/merge", "sha": "0" * 40, "siblings": [], "tags": [], "private": not self.server.public}
        self._answer(about)

    def do_PUT(self) -> None:
        self.server.stored[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        hub, body, page = self.server, self._body(), f"{self.server.url}/me/merge"
        if token := self.headers.get("Authorization"):
            hub.tokens.add(token)
        if hub.refuses:
            self._answer({"error": f"You may not write here with {TOKEN}."}, 403)
        elif self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self._answer({"url": page, "name": "me/merge", "id": "1"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": _mode(p), "shouldIgnore": False, "oid": None} for p in files]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            there = [{**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}} for each in objects]
            self._answer({"transfer": "basic", "objects": there})
        elif "/commit/" in self.path:
            self._commit(body)
            self._answer({"commitUrl": f"{page}/commit/{'1' * 40}", "commitOid": "1" * 40, "pullRequestUrl": None})
        else:
            self._answer({"error": f"unexpected: {self.path}"}, 404)

    def _commit(self, body: bytes) -> None:
        self.server.commits += 1
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                self.server.files[entry["value"]["path"]] = self.server.stored[entry["value"]["oid"]]


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def command(hub: Hub, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, with the stand-in as its hub."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_DISABLE_XET"] = "1"
    call = [sys.executable, "-m", "heterosis", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_a_push_sends_the_folder_in_one_commit_and_tells_no_token_and_no_path(
    finished: Finished, hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    push = ("--push", "me/merge", "--private", "--accept-licences")
    answer = command(hub, tmp_path / "home", "export", finished.folder, out, *push)
    assert answer.returncode == 0, answer.stderr
    assert f"{hub.url}/me/merge" in answer.stdout
    assert hub.created == {"name": "merge", "organization": "me", "visibility": "private"}
    assert (hub.commits, hub.tokens) == (1, {f"Bearer {TOKEN}"})
    here = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    samples = {name for name in here if name.startswith("lm_eval/samples_")}
    assert samples
    assert set(hub.files) == set(here) - samples
    assert f"stays here: {', '.join(samples)} (benchmark items" in answer.stdout
    assert {name for name in hub.files if here[name] != hub.files[name]} == {"mergekit_config.yml", "recipe.yaml"}
    assert TOKEN not in answer.stdout + answer.stderr
    family = str(Recipe.load(out / "recipe.yaml").base.model).encode()
    assert [name for name, content in hub.files.items() if family in content or TOKEN.encode() in content] == []
    (tmp_path / "recipe.yaml").write_bytes(hub.files["recipe.yaml"])
    assert Recipe.load(tmp_path / "recipe.yaml").digest == Recipe.load(out / "recipe.yaml").digest


def test_a_hub_that_refuses_is_one_line_without_the_token(finished: Finished, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    out = tmp_path / "out"
    answer = command(hub, tmp_path / "home", "export", finished.folder, out, "--push", "me/merge", "--accept-licences")
    assert answer.returncode == 2
    assert "--push me/merge: the hub did not take it" in answer.stderr
    assert "is complete; push it again" in answer.stderr
    assert TOKEN not in answer.stdout + answer.stderr
    assert (out / "model.safetensors").is_file()


def test_nothing_private_goes_to_a_repository_that_is_public_already(
    finished: Finished, hub: Hub, tmp_path: Path
) -> None:
    hub.public = True
    push = ("--push", "me/merge", "--private", "--accept-licences")
    answer = command(hub, tmp_path / "home", "export", finished.folder, tmp_path / "out", *push)
    assert answer.returncode == 2
    assert "me/merge is there already, and public" in answer.stderr
    assert (hub.commits, hub.files) == (0, {})


def test_a_dry_run_lists_what_would_go_and_sends_nothing(
    finished: Finished, heterosis: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", None)
    out = tmp_path / "out"
    push = ("--push", "me/merge", "--dry-run", "--accept-licences")
    code, told, _ = heterosis("export", finished.folder, out, *push)
    assert code == 0
    assert "Nothing was sent." in told
    for path in out.rglob("*"):
        assert path.is_dir() or path.name in told


def test_the_folder_stays_as_it_is(finished: Finished) -> None:
    winner = finished.folder / "winner"
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in winner.rglob("*") if path.is_file()}
    plan = plan_upload(winner, "me/merge", False, samples=True)
    assert set(plan.files) == {path.relative_to(winner).as_posix() for path in before}
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in winner.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "repo", ["merge", "me/", "a/b/c", "me/has space", "me/a--b", "me/x.git", "-me/x", "m/" + "x" * 96]
)
def test_a_repository_id_that_the_hub_would_refuse_is_refused(repo: str) -> None:
    with pytest.raises(CheckpointError, match="not a repository id"):
        check_push(repo, {"a": Licence("mit")}, accepted=True, dry=True)


def test_licences_are_to_be_read_first() -> None:
    clash = {"a": Licence("mit"), "b": Licence("cc-by-nc-4.0")}
    with pytest.raises(CheckpointError, match=r"cc-by-nc-4\.0 \(b\) allows no commercial use.*--accept-licences"):
        check_push("me/merge", clash, accepted=False, dry=True)
    check_push("me/merge", clash, accepted=True, dry=True)
    check_push("me/merge", {"a": Licence("mit"), "b": Licence("mit")}, accepted=False, dry=True)


def test_without_a_token_nothing_begins(
    finished: Finished, heterosis: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    push = ("--push", "me/merge", "--accept-licences")
    code, told, warned = heterosis("export", finished.folder, tmp_path / "out", *push)
    assert (code, told) == (2, "")
    assert "no token for the hub. Log in with `hf auth login`, or set HF_TOKEN" in warned
    assert list(tmp_path.iterdir()) == []
