"""`sae-plugins cache list` and `sae-plugins cache prune`: what is kept of language models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.entrypoints.command import Command
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag

if TYPE_CHECKING:
    from sae_plugins.base.kept import Entry

_ABOUT = """\
Show or remove what is kept of language models: the activations of `train` and `study run`
(--activation_cache), and what `evaluate` computes of a model alone (--cache_path). FOLDER is such a
folder; without one, that of `evaluate` in the user's cache folder. Only entries of ours are shown
or removed, and a run that misses one computes it again. What a process uses, on whatever machine,
stays until it has ended.
"""
_EXAMPLES = """\
  sae-plugins cache list
  sae-plugins cache list /shared/activations
  sae-plugins cache prune --older_than 30 --dry_run     what has not been used for 30 days
  sae-plugins cache prune --down_to 20GB                the least recently used; 20 GB stay
  sae-plugins cache prune /shared/activations --all
"""
_UNREADABLE = "unreadable"
_DAY = 24 * 60 * 60


def _list(line: Line, problems: Problems) -> int:
    from sae_plugins.base.files import size

    folders = _folders(line.operands, problems)
    problems.stop()
    for folder in folders:
        found = _ours(folder)
        print(f"{folder}: {size(sum(e.size for e in found))}, {_count(found)}")
        groups: dict[str, list[Entry]] = {}
        for entry in found:
            groups.setdefault(_words(entry) or "", []).append(entry)
        for words, members in sorted(groups.items(), key=lambda group: group[1][-1].used):
            taken, used = size(sum(e.size for e in members)), _ago(members[-1].used)
            print(f"  {taken:>10}  {_count(members):>14}  used {used:<14}  {words}")
    return 0


def _prune(line: Line, problems: Problems) -> int:
    from sae_plugins.base.files import size
    from sae_plugins.base.kept import kinds_in_use

    given = line.given
    folders = _folders(line.operands, problems)
    ways = [name for name in _WAYS if given.get(name) is not None and given[name] is not False]
    if "all" in ways and len(ways) > 1:
        others = " and ".join(f"--{name}" for name in ways if name != "all")
        problems.add(f"--all removes what {others} would keep: leave one of them out")
    elif not ways and not problems.mention(*(f"--{name}" for name in _WAYS)):
        problems.add(f"say what is to go: {', '.join(f'--{name}' for name in _WAYS)}")
    with problems, prefixed("--down_to"):
        _limit(given)
    if (given.get("older_than") or 0) < 0:
        problems.add("--older_than: it must be at least 0")
    problems.stop()
    verb = "would be removed" if given.get("dry_run") else "removed"
    for folder in folders:
        chosen, busy = _chosen(folder, given), kinds_in_use(folder)
        gone = [entry for entry in chosen if entry.path.parent.name not in busy]
        stay = [entry for entry in chosen if entry.path.parent.name in busy]
        if not given.get("dry_run"):
            _remove(gone)
        print(f"{folder}: {verb}: {_count(gone)}, {size(sum(entry.size for entry in gone))}")
        if stay:
            print(
                f"{folder}: {_count(stay)}, {size(sum(entry.size for entry in stay))}, stay: a "
                "process uses them; prune again when it has ended"
            )
    return 0


def _chosen(folder: Path, given: Mapping[str, Any]) -> list[Entry]:
    """The entries of ours that are to go."""
    from sae_plugins.base.kept import above

    found = _ours(folder)
    if given.get("all"):
        return found
    chosen: set[Entry] = set()
    if (days := given.get("older_than")) is not None:
        chosen |= {entry for entry in found if time.time() - entry.used > days * _DAY}
    if given.get("unreadable"):
        chosen |= {entry for entry in found if entry.is_damaged()}
    if (limit := _limit(given)) is not None:
        chosen |= set(above([e for e in found if e not in chosen], limit))
    return [entry for entry in found if entry in chosen]


def _limit(given: Mapping[str, Any]) -> int | None:
    from sae_plugins.base.files import bytes_in

    return None if given.get("down_to") is None else bytes_in(given["down_to"])


def _remove(gone: Sequence[Entry]) -> None:
    """Remove entries, and the folders of which nothing is left.

    Raises:
        SaePluginsError: one cannot be removed; those before it are.
    """
    from contextlib import suppress

    for entry in gone:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise SaePluginsError(f"{entry.path} cannot be removed: {error.strerror}") from error
    for place in {entry.path.parent for entry in gone}:
        with suppress(OSError):  # something is in it
            place.rmdir()


def _folders(operands: Sequence[str], problems: Problems) -> list[Path]:
    """Those that are given, or the user's own where it is there."""
    from sae_plugins.base.files import user_cache
    from sae_plugins.base.nearby import not_there

    given = [Path(text).expanduser() for text in operands]
    for folder in given:
        if not folder.is_dir():
            problems.add(f"{folder}{not_there(folder)}")
    own = user_cache() / "evaluation"
    return list(dict.fromkeys(given)) or ([own] if own.is_dir() else [])


def _ours(folder: Path) -> list[Entry]:
    """The entries of a folder that are ours."""
    from sae_plugins.base.kept import entries

    return [entry for entry in entries(folder) if _words(entry) is not None]


def _words(entry: Entry) -> str | None:
    """What an entry is made from; None where it is not ours."""
    from sae_plugins.base.kept import KINDS

    try:
        about = entry.about()
    except LookupError:
        return None
    if about is None:
        return _UNREADABLE
    text = f"{KINDS.get(entry.kind, entry.kind)} {about or 'a language model'}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # of any file


def _count(found: Sequence[object]) -> str:
    return f"{len(found)} entr{'y' if len(found) == 1 else 'ies'}"


def _ago(then: float) -> str:
    """A time that has passed, for readers."""
    seconds = max(0.0, time.time() - then)
    for unit, length in (("day", _DAY), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


_WAYS = {
    flag.name: flag
    for flag in (
        Flag("older_than", "none | float", "what has not been used for so many days"),
        Flag("down_to", "none | str", "the least recently used, until a folder holds no more than "
             "this, such as 20GB"),
        Flag("unreadable", "bool", "what is damaged, or left by a process that was killed; reads "
             "every entry", False),
        Flag("all", "bool", "everything", False),
    )
}  # fmt: skip
_DRY_RUN = Flag("dry_run", "bool", "say how much would go; remove nothing", False)

COMMAND = Command(
    "cache",
    "show or remove what is kept of language models",
    about=_ABOUT,
    examples=_EXAMPLES,
    actions=(
        Command(
            "cache list",
            "what is kept: its size, when it was used last, and what it is made from",
            _list,
            "[FOLDER...]",
        ),
        Command(
            "cache prune",
            "remove what has not been used, what is too much, or what is damaged",
            _prune,
            "[FOLDER...]",
            flags=lambda: {**_WAYS, "dry_run": _DRY_RUN},
        ),
    ),
)
