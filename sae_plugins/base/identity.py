"""What a run, an SAE of a study or a cached value was made from: facts, and where they differ.

    identity = {"dataset": fact, "model": fact, "code": fact, ...}

    {"at": FOLDER, "files": {NAME: HASH}}   files on this machine; no "at" for those of the code
    {"at": REPOSITORY, "commit": SHA}       what is on the Hub
    {"content": HASH}                       what is in memory

A fact that nobody could find out is None or not there: it cannot be compared, which is said, and
which is no difference. Facts are plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from sae_plugins.base.code import code
from sae_plugins.base.fingerprints import fingerprint, of_files
from sae_plugins.base.text import in_words

Fact = dict[str, Any]
Identity = Mapping[str, "Fact | None"]

_WORDS = {
    "code": "the code",
    "dataset": "the dataset",
    "rows": "what is read of the dataset",
    "model": "the language model",
    "tokenizer": "the tokenizer",
    "world": "the embedded world",
    "samples": "the synthetic model",
    "cached_activations_path": "the cached activations",
    "from_pretrained_path": "the SAE to begin with",
}
"""What facts are about; their names in sentences."""
_MOST_NAMED = 3


# -- facts -----------------------------------------------------------------------------------------


def of_code(patterns: Iterable[str], classes: Iterable[type] = ()) -> Fact:
    """Of files of `sae_plugins`, and of plugins' or suites' own."""
    return {"files": code(patterns, classes)}


def of_path(path: Path) -> Fact:
    """Of a folder's files, or of one file."""
    path = path.expanduser().absolute()
    return {"at": str(path), "files": of_files(path)}


def of_repository(name: str, commit: str | None) -> Fact | None:
    """Of a repository on the Hub, at a commit if that is known."""
    return None if commit is None else {"at": name, "commit": commit}


def of_tensors(tensors: Any) -> Fact | None:
    """Of what is in memory, such as the state of a model: every number, with its name.

    None where numbers are elsewhere, such as those of a model that is spread over disks.
    """
    try:
        return {"content": fingerprint(tensors)}
    except (NotImplementedError, RuntimeError):
        return None


def of_tokenizer(tokenizer: Any) -> Fact | None:
    """Of what turns text into tokens: all of it where that is to be had, else its vocabulary."""
    if not hasattr(tokenizer, "get_vocab"):
        return None
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        known: Any = sorted(tokenizer.get_vocab().items())
    else:
        known = json.loads(fast.to_str())
        for of_calls in ("truncation", "padding"):  # which stay as the last call had them
            known.pop(of_calls, None)
    return {"content": fingerprint(known, getattr(tokenizer, "special_tokens_map", None))}


def of_rows(rows: Any) -> Fact | None:
    """Of a dataset of the `datasets` library; None where only reading on tells its rows."""
    import datasets

    if not isinstance(rows, datasets.Dataset):
        return None
    files = [Path(file["filename"]) for file in rows.cache_files]
    if files:
        found = {file.name: of_files(file)[file.name] for file in files}
        return {"at": str(files[0].parent), "files": found}
    digest = xxhash.xxh3_128()
    for table in rows.with_format("arrow").iter(batch_size=10_000):
        types = [f"{field.name} {field.type}" for field in table.schema]
        digest.update("\n".join(types).encode())
        # taken, so that it lies in memory in one way
        for batch in table.take(list(range(len(table)))).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return {"content": digest.hexdigest()}


# -- where they differ -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """How what something was made from differs from what there is now.

    Attributes:
        changes: what differs, a sentence each.
        unknown: what could not be compared, a few words each.
    """

    changes: list[str]
    unknown: list[str] = field(default_factory=list)


def compare(before: Identity, now: Identity) -> Compared:
    """Compare what something was made from with what it would be made from now."""
    changes: list[str] = []
    unknown: list[str] = []
    for name in dict.fromkeys([*before, *now]):
        old, new, what = _fact(before.get(name)), _fact(now.get(name)), _WORDS.get(name, name)
        if old is None or new is None or old.keys() - {"at"} != new.keys() - {"at"}:
            unknown.append(what)
        elif "files" in new:
            names, lost = _differing(old["files"], new["files"])
            unknown += lost
            changes += [_of_files(what, new.get("at"), names)] if names else []
        elif old != new:
            changes.append(_of_one(what, old, new))
    return Compared(changes, unknown)


def _fact(value: Any) -> Fact | None:
    """A fact that was read from a file, where it still is one."""
    is_fact = isinstance(value, dict) and isinstance(value.get("files", {}), dict)
    return value if is_fact else None


def _differing(
    old: Mapping[str, str | None], new: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
    """The files that differ, and those of which nobody knows."""
    lost = [name for name in old if name in new and None in (old[name], new[name])]
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return [name for name in names if name not in lost], lost


def _of_files(what: str, at: str | None, names: list[str]) -> str:
    if at is None:
        return f"{listed(names)} changed"
    count = f"{len(names)} file{'s' if len(names) > 1 else ''}"
    return f"{what} in {at} changed: {count} ({listed(names)})"


def _of_one(what: str, old: Fact, new: Fact) -> str:
    if "commit" not in new:
        return f"{what} changed"
    if old["at"] != new["at"]:
        return f"{what} is {new['at']} on the Hub, and was {old['at']}"
    return f"{what} {new['at']} is at commit {new['commit'][:12]}, and was at {old['commit'][:12]}"


def listed(names: list[str]) -> str:
    """Names as a part of a sentence."""
    shown = names if len(names) <= _MOST_NAMED + 1 else names[:_MOST_NAMED]
    if len(shown) < len(names):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return in_words(shown)
