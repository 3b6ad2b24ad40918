"""A run pushed to the Hugging Face hub and opened from there: a small server of this machine stands for the hub."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import eval as evaluation
import search
from evaluation import share
from settings import Settings, override
from tests.helpers import ROOT, call, train_drawn
from training.hub import FILES, MAX_BYTES, NEEDED, HubName, parse_name
from training.run import MODEL, RESULT, VOCABULARY, Run
from utils import BadInput

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "somebody/small-run"


class FakeHub(BaseHTTPRequestHandler):
    """What of the hub's protocol its client asks for here. Files lie in `files`; `refused` has an error of a path."""

    files: dict[str, bytes]
    refused: dict[str, tuple[int, str]]
    asked: list[str]
    endpoint: str

    def log_message(self, format, *args):
        self.asked.append(f"{self.command} {self.path}")

    def answer(self, value=None, status=200, headers=None, body=b""):
        body = body if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self):
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        for part, (status, code) in self.refused.items():
            if part in path:
                return self.answer({"error": code}, status, {"X-Error-Code": code})
        if path.startswith(f"/{REPO}/resolve/"):
            body = self.files.get(path.rpartition("/")[2])
            if body is None:
                return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha1(body).hexdigest()
            return self.answer(body=body, headers={"ETag": f'"{etag}"', "Accept-Ranges": "bytes"})
        return self.answer_api(path, content)

    def answer_api(self, path, content):
        if path == "/api/whoami-v2":
            return self.answer({"name": "somebody", "type": "user"})
        if path == "/api/repos/create":
            return self.answer({"url": f"{self.endpoint}/{REPO}", "id": REPO})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            asked = [each["path"] for each in json.loads(content)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        if "/commit/" in path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{self.endpoint}/{REPO}/commit/{COMMIT}", "commitOid": COMMIT})
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
            return self.answer({"id": REPO, "sha": COMMIT, "siblings": siblings})
        return self.answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_POST = do_HEAD = serve  # noqa: N815 (the names of http.server)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return train_drawn(tmp_path_factory.mktemp("drawn"), ["strong"])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server, its class, with the client of this process pointed at it and its cache."""
    handler: Any = type("Handler", (FakeHub,), {"files": {}, "refused": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, handler.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", handler.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setenv("HF_TOKEN", "hf_something")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def run_of(drawn):
    return next((drawn / "runs").glob("strong-*"))


def push(drawn, monkeypatch, *more):
    return call(monkeypatch, evaluation, run_of(drawn), "--share", f"hub:{REPO}", *more)


def test_a_run_goes_to_the_hub_and_comes_back(drawn, hub, monkeypatch, capsys, tmp_path):
    assert push(drawn, monkeypatch, "--format", "markdown") == 0
    said = capsys.readouterr()
    assert f"pushed to {hub.endpoint}/{REPO}" in said.err
    assert set(hub.files) == set(FILES)
    for name, content in hub.files.items():
        assert str(drawn).encode() not in content, name
    card: Any = ModelCard(hub.files["README.md"].decode())
    assert card.data.model_name == "small-run"
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {"image_to_text_R@1", "text_to_image_median_rank"} <= set(figures)
    assert said.out.strip() in card.text
    assert f"--run hub:{REPO}" in card.text
    before, after = Run.open(run_of(drawn)), Run.open(f"hub:{REPO}")
    asked = ["a red circle", "a blue square"]
    np.testing.assert_allclose(after.embed_sentences(asked), before.embed_sentences(asked), atol=2e-3)
    assert Path(constants.HF_HUB_CACHE) in after.folder.parents
    data = ["--data", drawn / "data/folder"]
    assert call(monkeypatch, evaluation, f"hub:{REPO}@{COMMIT}", *data, "--format", "markdown") == 0
    index = ["index", drawn / "images", "--run", f"hub:{REPO}", "--out", tmp_path / "index"]
    assert call(monkeypatch, search, *index) == 0
    assert call(monkeypatch, search, "find", tmp_path / "index", "a red circle") == 0
    assert call(monkeypatch, search, "find", tmp_path / "index", "a red circle", "--run", f"hub:{REPO}") == 0


def test_files_are_downloaded_once_and_kept_without_a_network(drawn, hub, monkeypatch, capsys):
    assert push(drawn, monkeypatch) == 0
    hub.files["strange.pkl"] = b"never asked for"
    first = Run.open(f"hub:{REPO}").folder
    read = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert sorted(line.rpartition("/")[2] for line in read) == sorted(FILES)
    hub.asked.clear()
    assert Run.open(f"hub:{REPO}").folder == first
    assert not any(line.startswith("GET") and "/resolve/" in line for line in hub.asked)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Run.open(f"hub:{REPO}").folder == first
    assert "cannot be reached; its cache is asked alone" in capsys.readouterr().err
    assert not hub.asked


def test_other_processes_take_the_endpoint_from_the_environment(drawn, hub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_x"}
    for script, *args in (
        ("eval.py", run_of(drawn), "--share", f"hub:{REPO}"),
        ("search.py", "embed", "a red circle", "--run", f"hub:{REPO}", "--out", tmp_path / "rows.npy"),
    ):
        subprocess.run([sys.executable, ROOT / script, *args], env=environment, check=True, capture_output=True)
    assert np.load(tmp_path / "rows.npy").shape == (1, 32)


@pytest.mark.parametrize(
    ("part", "status", "code", "match"),
    [
        ("/api/models", 404, "RepoNotFound", "no such repository on the Hugging Face hub, or a private one"),
        ("/api/models", 401, "RepoNotFound", "or a private one; check its spelling, or log in with hf auth login"),
        ("/api/models", 403, "GatedRepo", "is given only to those who asked for it; ask there"),
        ("/api/models", 404, "RevisionNotFound", "has no such revision; check what stands behind the @"),
        ("/resolve/", 403, "GatedRepo", "is given only to those who asked for it"),
        ("/api/models", 500, "Broken", r"answers with an error \(500\); repeat this later"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, part, status, code, match):
    hub.files |= dict.fromkeys(NEEDED, b"{}")
    hub.refused[part] = (status, code)
    with pytest.raises(BadInput, match=f"^hub:{REPO}: .*{match}"):
        Run.open(f"hub:{REPO}")


@pytest.mark.parametrize(
    ("part", "status", "code", "match"),
    [
        ("whoami", 401, "Unauthorized", r"this token may not do that \(401\); log in with hf auth login with one"),
        ("/commit/", 403, "Forbidden", r"this token may not do that \(403\)"),
    ],
)
def test_what_may_not_be_pushed_is_one_sentence(drawn, hub, part, status, code, match, monkeypatch, capsys):
    hub.refused[part] = (status, code)
    assert push(drawn, monkeypatch) == 2
    assert re.search(f"--share hub:{REPO}: .*{match}", capsys.readouterr().err)


def test_a_push_needs_a_token_and_a_network(drawn, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(drawn, monkeypatch) == 2
    assert "needs a token that may write there; log in with hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_something")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(drawn, monkeypatch) == 2
    assert "the Hugging Face hub could not be reached" in capsys.readouterr().err
    with pytest.raises(BadInput, match="could not be reached, and its cache does not hold it"):
        Run.open(f"hub:{REPO}")
    assert not hub.files


def test_what_is_no_run_is_not_downloaded(hub):
    hub.files |= {"pytorch_model.bin": b"x", "config.json": b"{}"}
    with pytest.raises(BadInput, match=r"holds no run \(no recipe\.toml\)"):
        Run.open(f"hub:{REPO}")
    hub.files |= dict.fromkeys(NEEDED, b"{}")

    class Large(bytes):
        def __len__(self):
            return MAX_BYTES[VOCABULARY] + 1

    hub.files[VOCABULARY] = Large()
    with pytest.raises(BadInput, match=r"has a vocabulary\.json of 256 MB, which no run of this project has"):
        Run.open(f"hub:{REPO}")
    assert not any("/resolve/" in line for line in hub.asked)


def test_a_run_that_changes_meanwhile_is_not_mixed(drawn, hub, monkeypatch):
    assert push(drawn, monkeypatch) == 0
    plain = hub.answer

    def answer(self, *args, headers=None, **more):
        other = {"X-Repo-Commit": COMMIT[::-1]} if self.path.endswith(MODEL) else {}
        plain(self, *args, headers={**(headers or {}), **other}, **more)

    monkeypatch.setattr(hub, "answer", answer)
    with pytest.raises(BadInput, match="has changed while it was downloaded; repeat the command"):
        Run.open(f"hub:{REPO}")


def test_damaged_files_of_the_hub_are_refused(drawn, hub, monkeypatch):
    assert push(drawn, monkeypatch) == 0
    hub.files[MODEL] = hub.files[MODEL][:100]
    with pytest.raises(BadInput, match=r"model\.safetensors: cut short"):
        Run.open(f"hub:{REPO}")


def test_an_encoder_of_this_machine_alone_is_not_pushed(drawn, hub, monkeypatch, capsys, tmp_path):
    settings = override(Settings(), {"text.encoder": f"clip:{tmp_path}"})
    monkeypatch.setattr(share, "read_run_config", lambda folder: (settings, None))
    assert push(drawn, monkeypatch) == 2
    assert "lies on this machine alone; train with one that others can load" in capsys.readouterr().err
    assert not hub.files


@pytest.mark.parametrize("name", ["hub:", "hub:strong", "hub:a/b/c", "hub:a/b@", "hub:../b", "hub:a/..", "hub:a b/c"])
def test_wrong_names_are_refused(name):
    with pytest.raises(BadInput, match="write it as hub:USER/NAME, or hub:USER/NAME@REVISION"):
        Run.open(name)


def test_names(drawn, hub, monkeypatch, capsys):
    assert parse_name("hub:a.b/c-d_e.f@main") == HubName("a.b/c-d_e.f", "main")
    assert HubName("a/b", None).name == "b"
    assert call(monkeypatch, evaluation, run_of(drawn), "--share", f"hub:{REPO}@main") == 2
    assert "pushed to the main branch; leave the @ out" in capsys.readouterr().err
    assert RESULT in NEEDED
    assert not hub.asked
