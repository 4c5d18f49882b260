"""A Hugging Face Hub on this machine, for tests of what is read from the real one and sent to it.

`LoopbackHub` speaks what huggingface_hub's client asks for, and refuses as the real Hub does: a
missing token (401), one without the right to write (403), a commit on an old parent (412). A commit
is applied whole or not at all. On demand it fails.

It has no Xet storage. A client with `hf_xet` sends large files there without asking whether the
repository has any, so clients get `HF_HUB_DISABLE_XET`, and use LFS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

NO_RIGHT = "Forbidden: you must use a write token to upload to a repository."
LFS_FROM = 10_000_000
"""Bytes from which the Hub takes text, too, by LFS only."""


@dataclass(frozen=True)
class User:
    """Whom a token belongs to, and what it may do."""

    name: str
    role: str
    organizations: tuple[str, ...]

    def may_write(self, owner: str) -> bool:
        """Whether a repository of `owner` can be changed with the token."""
        return self.role == "write" and owner in (self.name, *self.organizations)


@dataclass(frozen=True)
class Commit:
    """All files of a repository, by path, and how it came to them."""

    files: dict[str, bytes]
    title: str = "initial commit"
    parent: str | None = None

    @property
    def sha(self) -> str:
        """Of the contents and the history."""
        oids = sorted((path, git_oid(content)) for path, content in self.files.items())
        return hashlib.sha1(repr((oids, self.title, self.parent)).encode()).hexdigest()


@dataclass
class Repository:
    """A repository with all its commits."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        """Let a branch have just these files; the new commit's sha."""
        commit = Commit(files, title, self.branches.get(branch))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch or a sha names."""
        return self.commits.get(self.branches.get(revision, revision))


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {**headers, "X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code


class LoopbackHub:
    """A Hub of its own, over 127.0.0.1.

    `huggingface_hub` reads its endpoint when it is imported: `run` gives a fresh process this one.
    `here` tells this process, where clients take their endpoint from the environment.

    Attributes:
        requests: (method, unquoted path, authorization header or None) of every request.
        repositories: by name, such as `models/owner/name`.
    """

    def __init__(self, cache: Path) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """What was sent by LFS, by sha256."""
        self.tokens: dict[str, User] = {}
        self.private_by_default = False
        """Whether repositories are private of which nothing is said."""
        self.lock = threading.RLock()
        self._cache = cache
        self._faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    # -- what it holds -----------------------------------------------------------------------------

    def add(
        self, repository: str, folder: Path, kind: str = "datasets", branch: str = "main"
    ) -> str:
        """A commit of a folder on a branch (kind: "datasets" or "models"); its sha."""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        found = self.repositories.setdefault(f"{kind}/{repository}", Repository())
        contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
        sha = found.commit(branch, contents, "add")
        found.branches.setdefault("main", sha)
        return sha

    def token(self, user: str, role: str = "write", organizations: tuple[str, ...] = ()) -> str:
        """A new token of a user; role: "write" or "read"."""
        token = f"hf_{hashlib.sha256(f'{user}{role}'.encode()).hexdigest()[:34]}"
        self.tokens[token] = User(user, role, organizations)
        return token

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository of models holds; nothing if there is none."""
        found = self.repositories.get(f"models/{repository}", Repository()).find(revision)
        return dict(found.files) if found else {}

    def titles(self, repository: str, revision: str = "main") -> list[str]:
        """The commits of a repository of models, the newest first."""
        titles, found = [], self.repositories[f"models/{repository}"]
        commit = found.find(revision)
        while commit is not None:
            titles.append(commit.title)
            commit = found.find(commit.parent) if commit.parent else None
        return titles

    # -- who asks it -------------------------------------------------------------------------------

    def run(self, code: str, python: str = sys.executable, **environment: str) -> str:
        """What a fresh `python` prints that has this Hub for its own, and nothing else."""
        result = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                **self._environment(),
                **environment,
            },
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def _environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self._cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def here(self, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
        """Let this process have the Hub for its own, with an empty cache, as `token`'s user."""
        from huggingface_hub import constants

        for name, value in self._environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(self._cache / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self._cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run_here(self, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """What this process prints, for `run`: it has imported much, which takes no time again.

        Clients learn the endpoint when they are imported, so that they are told this one.
        """
        from huggingface_hub import constants, file_download, hf_api

        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            self.here(patch, next(iter(self.tokens)))
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
                constants.ENDPOINT, self.endpoint
            )
            for module in (constants, file_download):
                patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
            patch.setattr(constants, "ENDPOINT", self.endpoint)
            patch.setattr(hf_api.api, "endpoint", self.endpoint)
            exec(code, {})
        return out.getvalue()

    # -- faults ------------------------------------------------------------------------------------

    def fail(self, part: str, status: int, times: int | None = None) -> None:
        """Answer requests whose path has a part with a status: so many, or all from now on."""
        self._faults.append(Fault(part, times, status=status))

    def truncate(self, part: str, times: int | None = None) -> None:
        """Close the connection in the midst of the answers to requests whose path has a part."""
        self._faults.append(Fault(part, times, truncated=True))

    def cut(self, number: int, applied: bool = False, times: int | None = 1) -> None:
        """Close the connection at the request of this number, counted from now, without an answer.

        Args:
            number: from 1 on.
            applied: whether what it asks for is done all the same.
            times: how many requests from that one on; None for all.
        """
        self._faults.append(Fault("", times, skip=number - 1, applied=applied))

    def heal(self) -> None:
        """Have no faults any more."""
        self._faults.clear()

    def fault(self, path: str) -> Fault | None:
        """The fault of a request that has just come."""
        with self.lock:
            return next((fault for fault in self._faults if fault.hits(path)), None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Fault:
    """What goes wrong: a status, a truncated answer, or no answer at all."""

    part: str
    times: int | None
    skip: int = 0
    status: int | None = None
    truncated: bool = False
    applied: bool = False

    def hits(self, path: str) -> bool:
        """Whether it is the turn of a request; counts it."""
        if self.part not in path or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


def git_oid(content: bytes) -> str:
    """The name that git has for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(path: str, sample: bytes, size: int) -> bool:
    return size > 0 and (path.endswith(".safetensors") or b"\0" in sample or size > LFS_FROM)


def _oid(path: str, content: bytes) -> str:
    """By which the client recognises a file that is there."""
    if _is_lfs(path, content[:512], len(content)):
        return hashlib.sha256(content).hexdigest()
    return git_oid(content)


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: two would wait for each other
        fault: Fault | None = None

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            fault = self.fault
            if fault is not None and fault.status is None and not fault.truncated:
                return self.hang_up()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            if fault is not None and fault.truncated:
                self.wfile.write(body[: len(body) // 2])
                return self.hang_up()
            self.wfile.write(body)
            return None

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def json(self, value: Any, status: int = 200, **headers: str) -> None:
            body = json.dumps(value).encode()
            self.answer(status, body, **{"Content_Type": "application/json", **headers})

        def handle_request(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            self.query = parse_qs(url.query)
            path = unquote(url.path).strip("/")
            # the client quotes slashes of revisions and of paths
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            authorization = self.headers.get("Authorization")
            fault = hub.fault(path)
            self.fault = fault
            hub.requests.append((self.command, path, authorization))
            try:
                if fault is not None and fault.status is not None:
                    headers = {"Retry-After": "0"} if fault.status == 429 else {}
                    raise Refusal(fault.status, "told to fail", **headers)
                if fault is not None and not fault.applied and not fault.truncated:
                    return self.hang_up()
                with hub.lock:
                    self.user = self.known_user(authorization)
                    return self.route(path, parts)
            except Refusal as refusal:
                return self.json({"error": refusal.message}, refusal.status, **refusal.headers)

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

        def known_user(self, authorization: str | None) -> User | None:
            if authorization is None:
                return None
            user = hub.tokens.get(authorization.removeprefix("Bearer "))
            if user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            return user

        def route(self, path: str, parts: list[str]) -> None:
            if parts[0] == "lfs-storage":
                return self.store(parts[1])
            if parts[:2] == ["api", "whoami-v2"]:
                return self.who_am_i()
            if parts[:2] == ["api", "validate-yaml"]:
                return self.validate_yaml()
            if parts[:3] == ["api", "repos", "create"]:
                return self.create()
            if parts[0] == "api":
                parts = parts[1:]
            elif parts[0] != "datasets":
                parts = ["models", *parts]
            name, rest = "/".join(parts[:3]), parts[3:]
            if ".git/info/lfs/objects/" in path:
                return self.lfs(name.removesuffix(".git"), rest[-1])
            repository = self.readable(name)
            verb = rest[0] if rest else "revision"
            answers = {
                "revision": self.info, "tree": self.tree, "paths-info": self.paths_info,
                "resolve": self.resolve, "refs": self.refs, "preupload": self.preupload,
                "commit": self.commit, "branch": self.branch,
            }  # fmt: skip
            if verb not in answers:
                raise Refusal(404, f"this Hub has no {verb}")
            return answers[verb](name, repository, rest[1:])

        # -- rights --------------------------------------------------------------------------------

        def readable(self, name: str) -> Repository:
            repository = hub.repositories.get(name)
            owner = name.split("/")[1] if "/" in name else ""
            mine = self.user is not None and owner in (self.user.name, *self.user.organizations)
            if repository is None or (repository.private and not mine):
                if self.user is None:
                    raise Refusal(401, "Invalid username or password.", "RepoNotFound")
                raise Refusal(404, "Repository not found", "RepoNotFound")
            return repository

        def check_write(self, name: str) -> None:
            if self.user is None:
                raise Refusal(401, "Invalid username or password.")
            if not self.user.may_write(name.split("/")[1]):
                raise Refusal(403, NO_RIGHT)

        # -- reading -------------------------------------------------------------------------------

        def at(self, repository: Repository, parts: list[str]) -> tuple[Commit, str]:
            """The commit at a revision, and the path behind it."""
            n = 3 if parts[:1] == ["refs"] else 1
            revision = "/".join(parts[:n]) or "main"
            commit = repository.find(revision)
            if commit is None:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return commit, "/".join(parts[n:])

        def who_am_i(self) -> None:
            user = self.user
            if user is None:
                raise Refusal(401, "Invalid username or password.")
            token = {"displayName": "test", "role": user.role}
            self.json({
                "type": "user", "name": user.name, "fullname": user.name,
                "orgs": [{"type": "org", "name": name} for name in user.organizations],
                "auth": {"type": "access_token", "accessToken": token},
            })  # fmt: skip

        def info(self, name: str, repository: Repository, parts: list[str]) -> None:
            commit, _ = self.at(repository, parts)
            self.json({
                "id": name.split("/", 1)[1], "sha": commit.sha, "private": repository.private,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                "tags": [], "gated": False, "disabled": False, "downloads": 0, "likes": 0,
            })  # fmt: skip

        def entries(self, commit: Commit) -> list[dict[str, Any]]:
            folders = {p.as_posix() for path in commit.files for p in Path(path).parents} - {"."}
            listed: list[dict[str, Any]] = [
                {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}
                for path in sorted(folders)
            ]
            for path, content in sorted(commit.files.items()):
                entry = {"type": "file", "oid": git_oid(content), "size": len(content)}
                if _is_lfs(path, content[:512], len(content)):
                    sha256 = _oid(path, content)
                    pointer = f"version 1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
                    entry["oid"] = git_oid(pointer)
                    entry["lfs"] = {
                        "oid": sha256, "size": len(content), "pointerSize": len(pointer)
                    }  # fmt: skip
                listed.append({**entry, "path": path})
            return listed

        def tree(self, name: str, repository: Repository, parts: list[str]) -> None:
            commit, inside = self.at(repository, parts)
            recursive = self.query.get("recursive", [""])[0].lower() == "true"
            prefix = f"{inside}/" if inside else ""
            inner = [e for e in self.entries(commit) if e["path"].startswith(prefix)]
            if inside and not inner:
                raise Refusal(404, f"{inside} does not exist", "EntryNotFound")
            level = prefix.count("/")
            self.json([e for e in inner if recursive or e["path"].count("/") == level])

        def paths_info(self, name: str, repository: Repository, parts: list[str]) -> None:
            commit, _ = self.at(repository, parts)
            wanted = parse_qs(self.body.decode()).get("paths", [])
            self.json([e for e in self.entries(commit) if e["path"] in wanted])

        def refs(self, name: str, repository: Repository, parts: list[str]) -> None:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
                for branch, sha in repository.branches.items()
            ]
            self.json({"branches": branches, "converts": [], "tags": []})

        def resolve(self, name: str, repository: Repository, parts: list[str]) -> None:
            commit, inside = self.at(repository, parts)
            if inside not in commit.files:
                headers = {"X-Repo-Commit": commit.sha}
                raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
            content = commit.files[inside]
            headers = {
                "X_Repo_Commit": commit.sha,
                "ETag": f'"{_oid(inside, content)}"',
                "Accept_Ranges": "bytes",
            }
            wanted = self.headers.get("Range")
            if not wanted:
                return self.answer(200, content, **headers)
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            if int(first) >= end:
                raise Refusal(416, "Range Not Satisfiable")
            headers["Content_Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            return self.answer(206, content[int(first) : end], **headers)

        # -- writing -------------------------------------------------------------------------------

        def create(self) -> None:
            wanted = json.loads(self.body)
            if self.user is None:
                raise Refusal(401, "Invalid username or password.")
            owner = wanted.get("organization") or self.user.name
            if not self.user.may_write(owner):
                raise Refusal(403, f"You don't have the rights to create a model under {owner}")
            name = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
            if name in hub.repositories:
                raise Refusal(409, "You already created this model repo")
            private = wanted.get("visibility", "private" if hub.private_by_default else "public")
            hub.repositories[name] = Repository(private == "private")
            attributes = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
            hub.repositories[name].commit("main", attributes, "initial commit")
            self.json({"url": f"{hub.endpoint}/{name.removeprefix('models/')}", "name": name})

        def branch(self, name: str, repository: Repository, parts: list[str]) -> None:
            self.check_write(name)
            new = "/".join(parts)
            if new in repository.branches:
                raise Refusal(409, f"Reference already exists: {new}")
            start = json.loads(self.body or b"{}").get("startingPoint")
            repository.branches[new] = self.at(repository, [start] if start else [])[0].sha
            self.json({})

        def validate_yaml(self) -> None:
            content = json.loads(self.body)["content"]
            found = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
            if not found:
                message = "empty or missing yaml metadata in repo card"
                return self.json({"errors": [], "warnings": [{"message": message}]})
            try:
                valid = isinstance(yaml.safe_load(found[1]), dict)
            except yaml.YAMLError:
                valid = False
            errors = [] if valid else [{"message": "metadata is no mapping"}]
            return self.json({"errors": errors, "warnings": []}, 200 if valid else 400)

        def preupload(self, name: str, repository: Repository, parts: list[str]) -> None:
            self.check_write(name)
            commit, _ = self.at(repository, parts)
            answers = []
            for file in json.loads(self.body)["files"]:
                path, there = file["path"], commit.files.get(file["path"])
                sample = base64.b64decode(file["sample"])
                mode = "lfs" if _is_lfs(path, sample, file["size"]) else "regular"
                oid = None if there is None else _oid(path, there)
                answers.append(
                    {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
                )
            self.json({"files": answers})

        def lfs(self, name: str, verb: str) -> None:
            self.readable(name)
            self.check_write(name)
            wanted = json.loads(self.body)
            if verb == "verify":
                if len(hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
                    raise Refusal(404, "this object was not sent")
                return self.json({})
            objects = []
            base = f"{hub.endpoint}/{name.removeprefix('models/')}.git/info/lfs/objects"
            for one in wanted["objects"]:
                if one["oid"] not in hub.objects:
                    upload = {"href": f"{hub.endpoint}/lfs-storage/{one['oid']}"}
                    one["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
                objects.append(one)
            return self.json({"transfer": "basic", "objects": objects})

        def store(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise Refusal(400, "this is another object than was announced")
            hub.objects[oid] = self.body
            self.answer(200)

        def commit(self, name: str, repository: Repository, parts: list[str]) -> None:
            self.check_write(name)
            branch = "/".join(parts)
            if branch not in repository.branches:
                raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = repository.commits[repository.branches[branch]]
            lines = [json.loads(line) for line in self.body.splitlines()]
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit") not in (None, head.sha):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines:
                _apply(line["key"], line["value"], files, hub.objects)
            sha = repository.commit(branch, files, header["summary"])
            url = f"{hub.endpoint}/{name.removeprefix('models/')}/commit/{sha}"
            self.json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    return Handler


def _apply(
    key: str, value: dict[str, Any], files: dict[str, bytes], objects: dict[str, bytes]
) -> None:
    """Change files as a line of a commit says."""
    path = value.get("path", "")
    if ".." in path.split("/"):
        raise Refusal(400, f"bad path {path}")
    if key == "file":
        files[path] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        if len(objects.get(value["oid"], b"")) != value["size"]:
            raise Refusal(400, f"the LFS object of {path} was not sent")
        files[path] = objects[value["oid"]]
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for inner in [file for file in files if file.startswith(f"{path.rstrip('/')}/")]:
            del files[inner]
