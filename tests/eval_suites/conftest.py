"""A Hub on this machine, for tests of what is read from the real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


class LoopbackHub:
    """Serves folders as repositories of models and datasets, read-only, over 127.0.0.1.

    `huggingface_hub` reads its endpoint when it is imported, so clients are subprocesses: `run`.

    Attributes:
        requests: (method, unquoted path, authorization header or None) of every request.
        faults: status by a part of the path: requests whose path has it are answered with that.
    """

    def __init__(self, cache: Path) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, int] = {}
        self._cache = cache
        self._commits: dict[tuple[str, str], Path] = {}  # (api name, sha) -> folder
        self._branches: dict[tuple[str, str], str] = {}  # (api name, branch) -> sha
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add(
        self, repository: str, folder: Path, kind: str = "datasets", branch: str = "main"
    ) -> str:
        """A commit on a branch (kind: `"datasets"` or `"models"`); its sha. Older ones stay."""
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in _files(folder)}
        digest = hashlib.sha1(repr((repository, branch, sorted(files.items()))).encode())
        sha = digest.hexdigest()
        self._commits[f"{kind}/{repository}", sha] = folder
        self._branches[f"{kind}/{repository}", branch] = sha
        return sha

    def run(self, code: str, **environment: str) -> str:
        """What a fresh Python prints that has this Hub for its own, and nothing else."""
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
                "HF_HOME": str(self._cache),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                **environment,
            },
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def find(self, api_name: str, revision: str) -> tuple[str, Path] | None:
        """The sha and the folder of a repository such as `datasets/owner/name` at a revision."""
        sha = self._branches.get((api_name, revision), revision)
        folder = self._commits.get((api_name, sha))
        return (sha, folder) if folder else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def loopback_hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    hub = LoopbackHub(tmp_path / "hub-cache")
    yield hub
    hub.close()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            for part, status in hub.faults.items():
                if part in path:
                    return self.answer(status, b"told to fail", Retry_After="0")
            if path.startswith("api/"):
                return self.api(path.removeprefix("api/"), body)
            return self.file(path)

        do_GET = do_HEAD = do_POST = handle_request

        def api(self, path: str, body: bytes) -> None:
            if not path.startswith(("models/", "datasets/")):
                return self.answer(404)
            name, rest = "/".join(path.split("/")[:3]), path.split("/")[3:]
            verb, revision, inside = "revision", "main", ""
            if rest:
                verb, (revision, inside) = rest[0], _revision(rest[1:])
            if hub.find(name, "main") is None:
                return self.answer(404, X_Error_Code="RepoNotFound")
            found = hub.find(name, revision)
            if found is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            sha, folder = found
            entries = [_entry(file, folder) for file in _files(folder)]
            directories = {
                parent.as_posix(): {"type": "directory", "oid": "0", "path": parent.as_posix()}
                for entry in entries
                for parent in Path(entry["path"]).parents
                if parent.as_posix() != "."
            }
            entries = [e | {"size": 0} for e in directories.values()] + entries
            if verb == "revision":
                files = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
                info = {"id": name.split("/", 1)[1], "sha": sha, "siblings": files, "tags": []}
                return self.json(info | {"private": False, "gated": False, "downloads": 0})
            if verb == "tree":
                recursive = "recursive=true" in self.path.lower()
                inner = [e for e in entries if e["path"].startswith(f"{inside}/" if inside else "")]
                level = inside.count("/") + 1 if inside else 0
                if inside and not inner:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                return self.json([e for e in inner if recursive or e["path"].count("/") == level])
            if verb == "paths-info":
                wanted = json.loads(body)["paths"]
                return self.json([e for e in entries if e["path"] in wanted])
            return self.answer(404)

        def json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def file(self, path: str) -> None:
            api_name = path if path.startswith("datasets/") else f"models/{path}"
            name, rest = "/".join(api_name.split("/")[:3]), api_name.split("/")[3:]
            if not rest or rest[0] != "resolve" or hub.find(name, "main") is None:
                return self.answer(404, X_Error_Code="RepoNotFound")
            revision, inside = _revision(rest[1:])
            found = hub.find(name, revision)
            if found is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            sha, folder = found
            if folder / inside not in _files(folder):
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            content = (folder / inside).read_bytes()
            headers = {
                "X_Repo_Commit": sha,
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "Accept_Ranges": "bytes",
            }
            wanted = self.headers.get("Range")
            if not wanted:
                return self.answer(200, content, **headers)
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            headers["Content_Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            return self.answer(206, content[int(first) : end], **headers)

    return Handler


def _revision(parts: list[str]) -> tuple[str, str]:
    """A revision, whose slashes came quoted, and the path behind it."""
    n = 3 if parts[:1] == ["refs"] else 1
    return "/".join(parts[:n]), "/".join(parts[n:])


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    oid = hashlib.sha1(file.read_bytes()).hexdigest()
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "oid": oid, "size": file.stat().st_size, "path": path}


class Lab:
    """The embedded world, two small SAEs at `hook_name`, and what is said of them in tiny settings.

    What suites and SAEBench find out is computed once and kept, since it is compared again and
    again. Suites share a cache on disk by its name, and what they prepare along with it.

    Attributes:
        standard: an SAE of decoder rows of norm 1, never active at 0.
        topk: one that is always active.
        words: the vocabulary of absorption.
        began: when it did, as file systems tell the time.
    """

    hook_name = "blocks.1.hook_resid_post"
    d_in, d_sae = 192, 256
    tiny: dict[str, dict[str, Any]] = {
        "core": {
            "n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 2,
            "batch_size_prompts": 4, "context_size": 32,
        },
        "absorption": {
            "max_k_value": 2, "k_sparse_probe_num_epochs": 4, "min_letters": 2,
            "min_GT_probe_f1": 0.2,
        },
        "scr": {
            "pairs": ("professor/nurse", "Books/CDs_and_Vinyl"), "n_values": (2, 5),
            "train_set_size": 40, "test_set_size": 24, "context_length": 40,
        },
        "sparse-probing": {
            "dataset_names": ("LabHC/bias_in_bios_class_set1", "fancyzhx/ag_news"),
            "k_values": (1, 2), "probe_train_set_size": 40, "probe_test_set_size": 24,
            "context_length": 16,
        },
    }  # fmt: skip
    exact: dict[str, dict[str, Any]] = {
        "core": {},
        "absorption": {"precalculate_codes": False},
        "scr": {"sum_codes": False},
        "sparse-probing": {"share_probes": False},
    }
    """All shortcuts off."""

    def __init__(self, folder: Path) -> None:
        from itertools import islice

        import torch
        from sae_bench.evals.absorption.vocab import get_alpha_tokens

        from sae_plugins import world
        from sae_plugins.eval_suites.data import WorldData
        from sae_plugins.eval_suites.models import load_language_model

        self.folder, self.began = folder, time.time()
        self.model, self.data = load_language_model(world.NAME, "cpu"), WorldData()
        hooked = self.model.hooked
        documents = [row["text"] for row in islice(self.data.text("any", 0, 0), 40)]
        tokens = hooked.to_tokens(documents)[:, :64]
        with torch.no_grad():
            _, cache = hooked.run_with_cache(tokens, names_filter=[self.hook_name])
        self.acts: Any = cache[self.hook_name][tokens != hooked.tokenizer.pad_token_id]
        self.standard, self.topk = self.sae("standard"), self.sae("topk")
        by_letter: dict[str, list[str]] = {}
        for word in sorted(get_alpha_tokens(hooked.tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        self.words = [w for words in by_letter.values() for w in words[:: -(-len(words) // 4)]]
        self._known: dict[str, Any] = {}

    def sae(
        self, architecture: str, name: str = "", change: Any = None, scale: float = 1.0,
        normalize_activations: str = "none", **metadata: Any,
    ) -> Any:  # fmt: skip
        """A subject whose latents are directions of some activations, once more with `scale`.

        Args:
            architecture: `"standard"` or `"topk"`.
            name: of it and its folder; the architecture's by default.
            change: called with the SAE before it is saved.
            scale: norm of the decoder rows; codes are divided by it.
            normalize_activations: SAELens' setting.
            metadata: in the place of the default.
        """
        import torch
        from sae_lens.registry import SAE_CLASS_REGISTRY
        from sae_lens.saes.sae import SAEMetadata

        from sae_plugins.eval_suites.subjects import load_subject

        sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
        where = {"model_name": self.model.name, "hook_name": self.hook_name, "prepend_bos": True}
        config: Any = config_class(
            d_in=self.d_in, d_sae=self.d_sae, metadata=SAEMetadata(**{**where, **metadata}),
            normalize_activations=normalize_activations,
            **({"k": 16} if architecture == "topk" else {}),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(len(architecture))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            sae: Any = sae_class(config)
            centred = self.acts - self.acts.mean(0)
            chosen = torch.randperm(len(centred), generator=generator)[: self.d_sae]
            rows = centred[chosen] / centred[chosen].norm(dim=1, keepdim=True)
            sae.W_dec.copy_(rows * scale)
            sae.W_enc.copy_(rows.T / scale)
            sae.b_dec.copy_(self.acts.mean(0))
            if architecture == "standard":
                sae.b_enc.fill_(-0.4 * centred.norm(dim=1).mean() / scale)
            if change is not None:
                change(sae)
        folder = self.folder / "saes" / (name or architecture)
        sae.save_model(folder)
        return load_subject(str(folder))

    def suite(self, name: str, **overrides: Any) -> tuple[Any, Any]:
        """A suite and its tiny settings."""
        from sae_plugins.eval_suites import registry

        suite = registry.load(name)
        return suite, suite.settings("canonical", {**self.tiny[name], **overrides})

    def bench(self, cache: str = "cache", **replaced: Any) -> Any:
        """What SAEs are evaluated with, in a scratch folder of its own."""
        import tempfile

        from sae_plugins.eval_suites.cache import Cache
        from sae_plugins.eval_suites.suite import Bench

        given = {
            "model": self.model, "hook_name": self.hook_name, "data": self.data,
            "cache": Cache(self.folder / "caches" / cache),
            "folder": Path(tempfile.mkdtemp(dir=self.folder)), "stage": lambda _: None,
        }  # fmt: skip
        return Bench(**{**given, **replaced})

    def few_words(self) -> Any:
        """While open, the vocabulary has few words."""
        from contextlib import ExitStack

        from sae_bench.evals.absorption import common, feature_absorption

        from sae_plugins.upstream import replaced

        stack = ExitStack()
        for module in (common, feature_absorption):
            stack.enter_context(replaced(module, get_alpha_tokens=lambda *_, **__: [*self.words]))
        return stack

    def evaluate(
        self, name: str, subject: Any, bench: Any = None, seed: int = 7, **overrides: Any
    ) -> Any:
        """Scores of a suite, computed anew."""
        suite, settings = self.suite(name, **overrides)
        bench = bench or self.bench()
        with self.few_words():
            prepared = suite.prepare(bench, settings, seed)
            return suite.evaluate(subject, bench, settings, seed, prepared)

    def scores(
        self, name: str, subject: Any, cache: str = "cache", seed: int = 7, **overrides: Any
    ) -> Any:
        """Scores of a suite."""
        suite, settings = self.suite(name, **overrides)
        key = repr((name, cache, seed, settings, self.words))
        with self.few_words():
            prepared = self._once(key, lambda: suite.prepare(self.bench(cache), settings, seed))
            return self._once(
                key + subject.name + subject.hash,
                lambda: suite.evaluate(subject, self.bench(cache), settings, seed, prepared),
            )

    def saebench(self, name: str, *subjects: Any, seed: int = 7, **overrides: Any) -> list[Any]:
        """What one call of SAEBench, without anything of ours, says of each SAE: value by name."""
        import importlib.util
        import tempfile

        suite, settings = self.suite(name, **overrides)
        file = Path(__file__).parents[2] / "benchmarks" / "saebench_alone.py"
        spec: Any = importlib.util.spec_from_file_location("saebench_alone", file)
        alone = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(alone)

        def run() -> Any:
            saes = [
                (f"{i}-{subject.name}", subject.copy("cpu", "float32"))
                for i, subject in enumerate(subjects)
            ]
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            with self.few_words():
                return alone.run(suite, saes, self.model, self.data, settings, seed, folder)

        names = [subject.name + subject.hash for subject in subjects]
        return list(self._once(repr(("alone", name, seed, settings, names)), run))

    def _once(self, key: str, compute: Any) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))
