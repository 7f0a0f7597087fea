"""A Hugging Face Hub in memory, for tests: models, branches, plain LFS, private repositories; standard library only.

It answers the requests that `huggingface_hub` 2.4 makes, so the real client pushes to it and pulls from it over
loopback:

    with HubServer({"hf_alice": "alice"}) as hub:
        subprocess.run(command, env=os.environ | hub.environment("hf_alice", home))

The client picks an exception by the headers X-Error-Code and X-Error-Message, not by the body.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".png")
TIME = "2026-01-01T00:00:00.000Z"
REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"  # a slash inside arrives as %2F, so patterns match the raw path
MODEL = f"/api/models/{REPO}"

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


def route(methods: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enters a method of `Handler` that gets the pattern's named groups, unquoted."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return enter


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the client compares its own file with: sha256 of a large file, git's blob id of another."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """As the API lists it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid[:40]}
        if self.large:
            entry["lfs"] = {"oid": self.oid, "sha256": self.oid, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Commits (sha -> files) and the branches that point to them."""

    owner: str
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.titles)} {title}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.titles.append(title)
        return sha

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.sha(revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: Any) -> None:
        return

    def answer(self) -> None:
        path, authorization = urlsplit(self.path), self.headers.get("Authorization")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = {key: values[0] for key, values in parse_qs(path.query).items()}
        self.hub.requests.append((self.command, path.path))
        try:
            self.user = None
            if authorization:
                self.user = self.hub.tokens.get(authorization.removeprefix("Bearer "))
                if self.user is None:
                    raise HubError(401, "Invalid credentials in Authorization header")
            for methods, pattern, function in ROUTES:
                match = pattern.fullmatch(path.path)
                if self.command in methods.split("|") and match:
                    with self.hub.lock:
                        return function(self, **{key: unquote(value) for key, value in match.groupdict().items()})
            raise HubError(404, f"no route for {self.command} {path.path}")
        except HubError as error:
            self.reply({"error": str(error)}, error.status, **error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        self.send_response(status)
        for key, text in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, repo_id: str, *, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and repository.owner != self.user):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user is None:
            raise HubError(401, "Invalid username or password.")
        if write and self.user != repository.owner:
            raise HubError(403, f"You don't have the rights to write under {repository.owner}")
        return repository

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        self.reply({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if owner != self.user:
            raise HubError(403, f"You don't have the rights to create a model under {owner}")
        repo_id = f"{owner}/{asked['name']}"
        said = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            return self.reply({"error": "You already created this model repo", **said}, 409)
        repository = self.hub.repositories[repo_id] = Repository(owner, asked.get("visibility") == "private")
        repository.commit("main", "initial commit", {})
        self.reply(said)

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        self.reply({"errors": [], "warnings": []})

    @route("GET", MODEL)
    def info(self, repo_id: str) -> None:
        self.info_at(repo_id, "main")

    @route("GET", f"{MODEL}/revision/{REVISION}")
    def info_at(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        siblings = [
            {"rfilename": path, "blobId": file.oid[:40], **file.entry(path)}
            for path, file in sorted(repository.files(revision).items())
        ]
        self.reply(
            {
                "id": repo_id,
                "modelId": repo_id,
                "author": repository.owner,
                "private": repository.private,
                "sha": repository.sha(revision),
                "siblings": siblings,
                "tags": [],
                "gated": False,
                "disabled": False,
                "lastModified": TIME,
                "createdAt": TIME,
            }
        )

    @route("GET", f"{MODEL}/tree/{REVISION}")
    def tree(self, repo_id: str, revision: str) -> None:
        self.reply([file.entry(path) for path, file in sorted(self.repository(repo_id).files(revision).items())])

    @route("GET", f"{MODEL}/tree/{REVISION}/.+")
    def folder(self, repo_id: str, revision: str) -> None:
        raise HubError(404, "no such folder", "EntryNotFound")  # no repository here has any

    @route("GET", f"{MODEL}/refs")
    def refs(self, repo_id: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self.repository(repo_id).branches.items()
        ]
        self.reply({"branches": branches, "tags": [], "converts": [], "pullRequests": []})

    @route("POST", f"{MODEL}/branch/{REVISION}")
    def branch(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        if revision in repository.branches:
            raise HubError(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.sha(json.loads(self.body).get("startingPoint", "main"))
        self.reply({})

    @route("POST", f"{MODEL}/preupload/{REVISION}")
    def preupload(self, repo_id: str, revision: str) -> None:
        there = self.repository(repo_id, write=True).files(revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = there[path].oid if path in there else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def large_files(self, repo_id: str) -> None:
        self.repository(repo_id, write=True)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.blobs:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    @route("PUT", "/upload/(?P<oid>[0-9a-f]{64})")
    def upload(self, oid: str) -> None:
        if self.hub.hold_uploads:
            self.hub.upload_began.set()
            raise HubError(503, "the connection is about to break")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "not what was announced")
        self.hub.blobs[oid] = self.body
        self.reply(b"")

    @route("POST", f"{MODEL}/commit/{REVISION}")
    def commit(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        files, title = dict(repository.files(revision)), ""
        for line in map(json.loads, self.body.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repository.sha(revision)):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
            elif kind == "lfsFile":
                files[value["path"]] = File(self.hub.blobs[value["oid"]], large=True)
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(revision, title, files)
        self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"})

    @route("GET|HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        sha = repository.sha(revision)
        file = repository.commits[sha].get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        self.reply(file.content, **{"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'})


class HubServer:
    """The server on a free port of the loopback interface, running while its `with` block does.

    `tokens` maps each token to its user. While `hold_uploads` is set, no large file arrives.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.hold_uploads = False
        self.upload_began = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def environment(self, token: str, home: Path) -> dict[str, str]:
        """What a client needs to come here; read when huggingface_hub is imported, so for a child process."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
            "HF_HOME": str(home),
        }
