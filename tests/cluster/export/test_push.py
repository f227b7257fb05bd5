"""An exported folder goes to Hugging Face and comes back, against a server with the part of its API that is used."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from cluster.export.command import main
from learner.exported import load_policy

BEFORE = Path(__file__).parents[2] / "end_to_end/run_before"


class Hub(BaseHTTPRequestHandler):
    """The part of Hugging Face's API that uploads and downloads use; `refuses` any login, and has the files of
    `folder`."""

    refuses = False
    folder: Path
    commits: list[bytes]
    tokens: set[str | None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.tokens.add(self.headers.get("Authorization"))
        answer: Any = {}
        if self.path.endswith("/repos/create"):
            answer = {"url": f"http://{self.headers['Host']}/me/first"}
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [{**file, "shouldIgnore": False} for file in files]}
        elif "/commit/" in self.path:
            self.commits.append(body)
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/me/first/commit/0",
                "commitOid": "0" * 40,
                "success": True,
            }
        self._answer(answer)

    def do_GET(self) -> None:
        if "/tree/" in self.path or "/revision/" in self.path:
            files = [
                {
                    "type": "file",
                    "path": path.name,
                    "rfilename": path.name,
                    "size": path.stat().st_size,
                    "oid": "1" * 40,
                }
                for path in self.folder.iterdir()
            ]
            is_tree = "/tree/" in self.path
            return self._answer(files if is_tree else {"id": "me/first", "sha": "0" * 40, "siblings": files})
        if "/resolve/" in self.path:
            return self._send((self.folder / self.path.rpartition("/")[2]).read_bytes())
        return self._answer({"type": "user", "name": "me", "id": "1", "sha": "0" * 40, "siblings": []})

    def _answer(self, value: Any) -> None:
        self._send(json.dumps({"error": "no"} if self.refuses else value).encode())

    def _send(self, data: bytes) -> None:
        self.send_response(401 if self.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{xxhash.xxh3_64_hexdigest(data)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    handler = type("OwnHub", (Hub,), {"commits": [], "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def push_of(tmp_path: Path) -> list[str]:
    return [str(BEFORE), "--policy", "--out", str(tmp_path / "first"), "--push", "me/first"]


def test_a_push_uploads_the_folder_and_writes_no_token(tmp_path: Path, hub: Any) -> None:
    pytest.importorskip("huggingface_hub")
    done = subprocess.run(  # huggingface_hub reads its variables when it is imported
        [sys.executable, "-m", "cluster.cli", "export", *push_of(tmp_path)],
        env={"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_opensesame", "HOME": str(tmp_path), "PYTHONPATH": "."},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/me/first" in done.stdout
    assert hub.tokens == {"Bearer hf_opensesame"}
    (commit,) = hub.commits
    assert {name for name in ("README.md", "config.json", "model.safetensors") if name.encode() in commit} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [data for data in written if b"opensesame" in data]
    assert "opensesame" not in done.stdout + done.stderr


def test_a_push_without_login_or_right_is_one_line(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(push_of(tmp_path)) == 2
    assert not (tmp_path / "first").exists()
    assert capsys.readouterr().err == (
        "delphi export: --push: there is no login to Hugging Face: log in with `hf auth login`, or set HF_TOKEN\n"
    )
    hub.refuses = True
    monkeypatch.setenv("HF_TOKEN", "hf_opensesame")
    assert main(push_of(tmp_path)) == 2
    assert (tmp_path / "first").exists()
    error = capsys.readouterr().err
    assert "refused the upload (401): log in with `hf auth login`" in error
    assert len(error.splitlines()) == 1


def test_a_policy_is_loaded_by_its_hugging_face_id(tmp_path: Path, hub: Any) -> None:
    pytest.importorskip("huggingface_hub")
    hub.folder = tmp_path / "first"
    assert main([str(BEFORE), "--policy", "--out", str(hub.folder)]) == 0
    script = "import numpy as np; from learner.exported import load_policy as load"
    script += "; print(load('me/first').act(np.zeros(4, np.float32), greedy=True))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HF_ENDPOINT": hub.endpoint, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == load_policy(hub.folder).act(np.zeros(4, np.float32), greedy=True)
