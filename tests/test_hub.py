"""The hub, by its own library: its cache on disk, and a server of one repository."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ranklet import Manifest, Ranker

pytest.importorskip("huggingface_hub", reason="the hub needs the extra hub")

COMMITS = [40 * "a", 40 * "b"]


def cached(bundle: Path, home: Path, name: str, commit: str) -> Path:
    """Lay a bundle into a cache as the hub's library does: links to blobs, by their digests."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for file in bundle.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def python(
    code: str | list[str], home: Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    command = [sys.executable, *(["-c", code] if isinstance(code, str) else code)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def ranked(arguments: str, history: list[Any]) -> str:
    return (
        "from ranklet import Ranker\n"
        f"ranker = Ranker.from_hub({arguments})\n"
        f"print(*ranker.rank({history!r}, k=3).items)"
    )


def test_a_bundle_in_the_cache_ranks_without_a_network(
    tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path
) -> None:
    cached(tiny_bundle, tmp_path, "me/films", COMMITS[0])
    history = list(tiny_ranker.ids[:2])
    expected = " ".join(map(str, tiny_ranker.rank(history, k=3).items))
    digest = Manifest.read(tiny_bundle).digest
    for arguments in (
        "'me/films'",
        f"'me/films', revision={COMMITS[0]!r}",
        f"'me/films', digest={digest!r}",
    ):
        done = python(ranked(arguments, history), tmp_path, HF_HUB_OFFLINE="1")
        assert done.stdout.strip() == expected, done.stderr


def test_what_is_not_there_or_of_another_digest_is_refused_by_name(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    cached(tiny_bundle, tmp_path, "me/films", COMMITS[0])
    for arguments, message in (
        ("'me/other'", "BundleError: 'me/other' can't be loaded from the hub"),
        ("'no such/name/at all'", "BundleError: 'no such/name/at all' can't be loaded"),
        (f"'me/films', revision={COMMITS[1]!r}", f"at '{COMMITS[1]}' can't be loaded"),
        ("'me/films', digest='00'", "not '00'"),
    ):
        done = python(ranked(arguments, []), tmp_path, HF_HUB_OFFLINE="1")
        assert message in done.stderr, done.stderr


def test_a_blob_that_was_damaged_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    snapshot = cached(tiny_bundle, tmp_path, "me/films", COMMITS[0])
    blob = (snapshot / "weights.bin").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    done = python(ranked("'me/films'", []), tmp_path, HF_HUB_OFFLINE="1")
    assert "BundleError" in done.stderr
    assert "weights.bin" in done.stderr


class Hub(BaseHTTPRequestHandler):
    """The calls that a push and a download make, for one repository without large files."""

    files: dict[str, bytes]
    commits: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['host']}/me/films"})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            kinds = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            self.answer({"files": kinds})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del self.files[value["path"]]
            type(self).commits += 1
            address = f"http://{self.headers['host']}/me/films/commit/{self.commit}"
            self.answer({"commitUrl": address, "commitOid": self.commit, "success": True})
        else:
            self.answer({}, 404)

    @property
    def commit(self) -> str:
        return COMMITS[self.commits % 2]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        names = [{"rfilename": name} for name in self.files]
        if path.startswith("/api/models/me/films/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in self.files.items()
            ]
            self.answer(tree)
        elif path.startswith("/api/models/me/films"):
            self.answer({"id": "me/films", "sha": self.commit, "siblings": names, "private": False})
        elif path.startswith("/me/films/resolve/"):
            self.send(path)
        else:
            self.answer({}, 404)

    do_HEAD = do_GET  # noqa: N815

    def send(self, path: str) -> None:
        data = self.files[path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def answer(self, document: Any, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type(
        "OneHub", (Hub,), {"files": {".gitattributes": b"", "old.onnx": b"x"}, "commits": 0}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pushed_bundle_is_what_another_machine_loads(
    tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path, hub: tuple[str, type[Hub]]
) -> None:
    address, handler = hub
    tiny_bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "signed"))
    (tiny_bundle / "model.sig").write_text("{}")  # goes with the bundle
    variables = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    push = ["-m", "ranklet_cli", "push", str(tiny_bundle), "me/films"]
    done = python(push, tmp_path / "one", **variables)
    assert "commit/" in done.stdout, done.stderr
    assert {name: data for name, data in handler.files.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in tiny_bundle.iterdir()
    }
    history = list(tiny_ranker.ids[:2])
    expected = " ".join(map(str, tiny_ranker.rank(history, k=3).items))
    done = python(ranked("'me/films'", history), tmp_path / "two", **variables)
    assert done.stdout.strip() == expected, done.stderr
    done = python(ranked("'me/films'", history), tmp_path / "two", HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == expected, done.stderr


def test_the_card_begins_with_what_the_hub_reads(tiny_bundle: Path) -> None:
    from huggingface_hub import metadata_load

    facts = metadata_load(tiny_bundle / "README.md")
    assert facts["library_name"] == "ranklet"
    assert "recommendation" in facts["tags"]
