"""A loopback hub: enough of the hub's protocol, in memory, for huggingface_hub 2.4 to create, upload and download.

The client must see HF_ENDPOINT and HF_HUB_DISABLE_XET=1 before huggingface_hub is imported, because they are read at
import and copied into functions' defaults: run the client in a process of its own, with `client_environment`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stub"
USER = "user"


class Hub:
    """What the stub holds. A repository has one branch, main, and one commit, the latest."""

    def __init__(self, url: str):
        self.url = url
        self.requests: list[tuple[str, str]] = []  # (method, path with query), in order of arrival
        self.private: dict[str, bool] = {}
        self._files: dict[str, dict[str, bytes]] = {}
        self._lfs: dict[str, set[str]] = {}  # paths committed as LFS files
        self.objects: dict[str, bytes] = {}  # LFS objects by sha256

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of `user/name`, by path. KeyError if it was never created."""
        return dict(self._files[repo])

    def create(self, repo: str, private: bool) -> None:
        self.private[repo], self._files[repo], self._lfs[repo] = private, {}, set()

    def add(self, repo: str, folder: Path) -> None:
        """A private repository with the files of a folder."""
        self.create(repo, private=True)
        self._files[repo] = {file.name: file.read_bytes() for file in folder.iterdir()}
        self._lfs[repo] = {name for name in self._files[repo] if name.endswith(".safetensors")}

    def commit_id(self, repo: str) -> str:
        content = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(self._files[repo].items())]
        return hashlib.sha1(repr((repo, content)).encode()).hexdigest()

    def commit(self, repo: str, lines: list[dict]) -> str:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self._files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self._files[repo][value["path"]] = self.objects[value["oid"]]
                self._lfs[repo].add(value["path"])
            elif line["key"] != "header":
                raise NotImplementedError(f"commit operation {line['key']}")
        return self.commit_id(repo)

    def entry(self, repo: str, path: str) -> dict:
        """A file as the tree and paths-info endpoints describe it."""
        data = self._files[repo][path]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if path in self._lfs[repo]:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry


class Refused(Exception):
    """An error answer: status, X-Error-Code (empty for none) and message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub  # set on the subclass that `hub_stub` makes

    def log_message(self, format, *args):
        """Silent: the requests are in hub.requests."""

    def handle_request(self):
        self.hub.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                try:
                    return answer(self, body, **match.groupdict())
                except Refused as error:
                    headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                    return self.send(error.status, json.dumps({"error": str(error)}).encode(), headers)
        self.send(501, json.dumps({"error": f"the stub has no {self.command} {path}"}).encode(), {})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def authorise(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "", "Invalid credentials in Authorization header")

    def find(self, repo: str, revision: str = "main"):
        """Refuses what is not there, and a private repository without the token (as the hub does: not found)."""
        if repo not in self.hub.private or (self.hub.private[repo] and not self.headers.get("Authorization")):
            raise Refused(404, "RepoNotFound", "Repository not found")
        if revision not in ("main", self.hub.commit_id(repo)):
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def whoami(request: Handler, body: bytes):
    request.authorise()
    request.reply({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})


def create_repo(request: Handler, body: bytes):
    request.authorise()
    wanted = json.loads(body)
    owner = wanted.get("organization") or USER
    repo = f"{owner}/{wanted['name']}"
    if owner != USER:
        raise Refused(403, "", f"no rights to create a repository under {owner}")
    answer = {"url": f"{request.hub.url}/{repo}", "name": repo}
    if repo in request.hub.private:  # the client reads the url from this answer too
        answer["error"] = "You already created this model repo"
        return request.send(409, json.dumps(answer).encode(), {})
    request.hub.create(repo, wanted.get("visibility") == "private")
    request.reply(answer)


def validate_yaml(request: Handler, body: bytes):
    """Refuses front matter that does not parse, and a base_model that is no hub id."""
    front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
    base = front.get("base_model")
    if base is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        return request.reply({"errors": [], "warnings": []})
    answer = {"errors": [{"message": f'"base_model" must be a model id, not {base}'}], "warnings": []}
    request.send(400, json.dumps(answer).encode(), {})


def preupload(request: Handler, body: bytes, repo: str, revision: str):
    request.authorise()
    request.find(repo, revision)
    files = [
        {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
        for file in json.loads(body)["files"]
    ]
    request.reply({"files": [file | {"shouldIgnore": False} for file in files]})


def lfs_batch(request: Handler, body: bytes, repo: str):
    request.authorise()
    request.find(repo)
    objects = json.loads(body)["objects"]
    for item in objects:
        if item["oid"] not in request.hub.objects:
            item["actions"] = {"upload": {"href": f"{request.hub.url}/lfs/{item['oid']}"}}
    request.reply({"transfer": "basic", "objects": objects})


def lfs_put(request: Handler, body: bytes, oid: str):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(422, "", "the content does not have the announced sha256")
    request.hub.objects[oid] = body
    request.send(200, b"", {})


def commit(request: Handler, body: bytes, repo: str, revision: str):
    request.authorise()
    request.find(repo, revision)
    oid = request.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
    request.reply({"success": True, "commitOid": oid, "commitUrl": f"{request.hub.url}/{repo}/commit/{oid}"})


def model_info(request: Handler, body: bytes, repo: str, revision: str | None = None):
    request.find(repo, revision or "main")
    siblings = [{"rfilename": path} for path in sorted(request.hub.files(repo))]
    sha = request.hub.commit_id(repo)
    request.reply({"id": repo, "sha": sha, "private": request.hub.private[repo], "tags": [], "siblings": siblings})


def tree(request: Handler, body: bytes, repo: str, revision: str, folder: str | None = None):
    """Every file below the folder, as `recursive=true` asks; the stub's uploads have no folders."""
    request.find(repo, revision)
    inside = [path for path in sorted(request.hub.files(repo)) if path.startswith(folder or "")]
    if folder and not inside:
        raise Refused(404, "EntryNotFound", f"no folder {folder}")
    request.reply([request.hub.entry(repo, path) for path in inside])


def paths_info(request: Handler, body: bytes, repo: str, revision: str):
    request.find(repo, revision)
    wanted = parse_qs(body.decode())["paths"]
    request.reply([request.hub.entry(repo, path) for path in wanted if path in request.hub.files(repo)])


def resolve(request: Handler, body: bytes, repo: str, revision: str, path: str):
    request.find(repo, revision)
    files = request.hub.files(repo)
    commit_header = {"X-Repo-Commit": request.hub.commit_id(repo)}
    if path not in files:
        headers = commit_header | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return request.send(404, b"", headers)
    entry = request.hub.entry(repo, path)
    etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
    request.send(200, files[path], commit_header | {"ETag": f'"{etag}"'})


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", commit),
    ("GET", rf"/api/models/{REPO}(?:/revision/{REVISION})?", model_info),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", tree),
    ("POST", rf"/api/models/{REPO}/paths-info/{REVISION}", paths_info),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", resolve),
]


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """Serves an empty hub on a free port of 127.0.0.1 for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("StubHandler", (Handler,), {}))
    server.daemon_threads = True  # a client's idle keep-alive connection must not hold the test up
    hub = server.RequestHandlerClass.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client_environment(hub: Hub, home: Path) -> dict[str, str]:
    """The environment of a client process: this hub, the stub's token, a fresh cache in `home`, no proxy on the way."""
    own = ("HF_", "HUGGING", "TRANSFORMERS_")  # a token, an offline switch or a cache of this machine
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return inherited | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
