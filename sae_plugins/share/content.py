"""What is uploaded of a run: its SAE, checked, and what reproduces and explains it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sae_plugins.base.errors import HubError
from sae_plugins.base.hub import CARD, local
from sae_plugins.base.secrets import line_with_secret, redacted_text, without_secrets
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites.evaluation.manifest import Manifest, Row
from sae_plugins.eval_suites.evaluation.results import Result, read_result
from sae_plugins.framework import plugin_files
from sae_plugins.runs.folder import (
    CONFIG,
    FIGURES,
    METRICS,
    METRICS_BY_FEATURE,
    RECIPE,
    SPARSITY,
    SUMMARY,
    TRAINING_SUMMARY,
    WEIGHTS,
    own_files,
)

Content = Path | bytes
"""A file to upload, or the bytes of one."""
HUB_RESULTS = "results"
"""Folder of the evaluations, beside an SAE's weights."""
_FILES = (
    *(CONFIG, WEIGHTS, SPARSITY, RECIPE, SUMMARY, METRICS, METRICS_BY_FEATURE),
    *(f"{Path(TRAINING_SUMMARY).stem}*.json", f"{FIGURES}/*", f"{plugin_files.FOLDER}/*"),
)
"""What is uploaded of the files that a run has written."""
_TEXTS = (".json", ".jsonl", ".yaml", ".py")


@dataclass(frozen=True)
class Upload:
    """One SAE that can be loaded, and everything that goes along with it."""

    sae_id: str
    folder: Path
    files: Mapping[str, Content]
    """By path in the SAE's folder of the repository."""
    results: Sequence[Result]
    failed: Sequence[str]
    """Suites that failed with some seed."""
    hash: str
    """Of the SAE, as results name it."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size_of(content) for content in self.files.values())


def prepare(source: str, evaluations: Iterable[Path], repo: str) -> Upload:
    """Load an SAE, and gather its files.

    Args:
        source: the folder of a run, or of anything else that SAELens saved, or `USER/REPO:SAE_ID`.
        evaluations: folders of `sae-plugins evaluate`; results of other SAEs in them are left out.
        repo: where it is going.

    Raises:
        SaePluginsError: there is no such SAE, it is damaged, or its name is none for a repository.
    """
    folder = local(source)
    sae_id = checked_id(folder)
    from sae_plugins.eval_suites.evaluation.loading import load_subject  # which imports torch

    if not (folder / CONFIG).is_file() and (folder / "ae.pt").is_file():
        raise HubError(f"{folder} holds an SAE of dictionary_learning; SAELens cannot load it")
    subject = load_subject(str(folder))
    _check_sparsity(folder / SPARSITY)
    rows = [row for row in _rows(evaluations) if row[1].sae_hash == subject.hash]
    found = {file.name: (file, r) for file, r in _results(folder, rows, subject.hash)}
    failed = sorted({row.suite for _, row in rows if row.status == "failed"})
    files: dict[str, Content] = {
        name: _public(folder / name)
        for name in own_files(folder)
        if any(fnmatchcase(name, pattern) for pattern in _FILES)
    }
    results = []
    for name, (file, result) in found.items():
        whose = result.sae.model_copy(update={"name": sae_id, "source": f"{repo}:{sae_id}"})
        results.append(result.model_copy(update={"sae": whose}))
        text = results[-1].model_dump_json(indent=1) + "\n"
        files[f"{HUB_RESULTS}/{name}"] = _told(text, ".json").encode()
        raw = file.parent / Path(result.raw or "").name
        if raw.is_file():
            files[f"{HUB_RESULTS}/{raw.name}"] = _public(raw)
    return Upload(sae_id, folder, files, results, failed, subject.hash)


def checked_id(folder: Path) -> str:
    """The SAE's name in a repository, which is its folder's.

    Raises:
        HubError: it is none for a repository, or for SAELens.
    """
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    if not re.fullmatch(r"\w[\w.+=,-]{0,95}", name, re.ASCII) or ".." in name or name == CARD:
        raise HubError(
            f"{folder}: an SAE is called as its folder, and {name!r} is no name for one: rename "
            "the folder; letters, digits and _ . + = , - are allowed"
        )
    return name


def _check_sparsity(file: Path) -> None:
    """Refuse a damaged file, with which SAELens would not load the SAE either."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.get_tensor("sparsity")
    except (SafetensorError, OSError) as error:
        raise HubError(f"{file} is damaged: {error}; SAELens does without it: remove it") from error


def _rows(evaluations: Iterable[Path]) -> Iterator[tuple[Path, Row]]:
    """All that these folders of `evaluate` hold."""
    return ((folder, row) for folder in evaluations for row in Manifest.read(folder).rows)


def _results(
    folder: Path, rows: Iterable[tuple[Path, Row]], sae_hash: str
) -> Iterator[tuple[Path, Result]]:
    """Of this SAE, with their files: those beside it, as downloaded, and those of `evaluate`."""
    for file in sorted((folder / HUB_RESULTS).glob("*.json")):
        result = read_result(file)
        if result is not None and result.sae.hash == sae_hash:
            yield file, result
    for evaluation, row in rows:
        if row.file and row.status in ("ok", "not applicable"):
            result = read_result(evaluation / row.file)
            if result is not None:  # a row whose file is gone or damaged counts for nothing
                yield evaluation / row.file, result


def _public(file: Path) -> Content:
    """A file as it is, or a text without the folders of this machine and tokens."""
    if file.suffix not in _TEXTS:
        return file
    try:
        text = file.read_text("utf-8")
    except ValueError as error:
        raise HubError(f"{file} is damaged: it is no text in UTF-8") from error
    if file.suffix == ".py":  # of which each letter counts
        if line := line_with_secret(text):
            raise HubError(
                f"{file}, line {line}, seems to hold a secret: take it out of this copy, which "
                "nothing runs unless it is named, or remove the copy"
            )
        return file
    shown = _told(redacted_text(text, file.suffix), file.suffix)
    return file if shown == text else shown.encode()


def _told(text: str, suffix: str) -> str:
    return without_secrets(without_places(text, suffix))


def size_of(content: Content) -> int:
    """Bytes of a file."""
    return content.stat().st_size if isinstance(content, Path) else len(content)
