"""What an SAE of a study was made from, and which of those in its folder is still the one wanted.

An SAE lies in a folder whose name ends in a hash of all that it was made from, and keeps the same,
fact by fact, in `made_from.json`. Where nothing lies under the present hash, one that lies under
another is taken if no fact differs: a fact that one of them lacks is no difference, but is said.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.base.fingerprints import of_value
from sae_plugins.base.identity import Compared, Fact, compare
from sae_plugins.base.shown_paths import from_here
from sae_plugins.runs.folder import ORIGIN, RECIPE
from sae_plugins.runs.sources import REVISIONS
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.recipe import ABOUT
from sae_plugins.settings.values import as_text

_NO_SETTINGS = (*ABOUT, *REVISIONS)
"""What a recipe says besides settings; revisions are among the facts about data and model."""
_SETTINGS_OF = {"dataset": "dataset_path", "model": "model_name"}
"""Settings that name sources, by the fact about these."""
_HERE = "files here"
"""Such a setting, however the path of the files is spelt."""
DIGITS = 8
"""Of the hash in a folder's name."""


def facts(
    settings: Mapping[str, Any],
    untrained: bool,
    versions: Mapping[str, str],
    made_from: Mapping[str, Fact | None],
) -> dict[str, Any]:
    """All that an SAE is made from, as JSON has it."""
    kept = {name: value for name, value in settings.items() if name not in _NO_SETTINGS}
    whole = {
        "settings": {**_without_places(kept, made_from), "untrained": untrained},
        "versions": versions,
        "made_from": made_from,
    }
    found: dict[str, Any] = json.loads(json.dumps(whole, default=str))
    return found


def told(of: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as their file has them: without the folders of this machine, which decide nothing."""
    made_from = {
        name: {**fact, "at": from_here(fact["at"])} if fact and {"at", "files"} <= {*fact} else fact
        for name, fact in of["made_from"].items()
    }
    return {**of, "made_from": made_from}


def _without_places(
    settings: Mapping[str, Any], made_from: Mapping[str, Fact | None]
) -> dict[str, Any]:
    """Settings in which it does not matter where files lie that are themselves a fact."""
    facts = ((_SETTINGS_OF.get(name, name), fact or {}) for name, fact in made_from.items())
    here = [name for name, fact in facts if {"at", "files"} <= fact.keys()]
    return {name: _HERE if name in here else value for name, value in settings.items()}


def key(of: Mapping[str, Any]) -> str:
    """A hash of facts; settings that nobody made are left out, so that a new flag changes none."""
    made = {name: value for name, value in of["settings"].items() if value is not None}
    return of_value({**of, "settings": made})


def find(stem: Path, wanted: Mapping[str, Any]) -> tuple[Path | None, Compared]:
    """The folder of an SAE that was made from what is wanted, under whichever hash it lies.

    Args:
        stem: the folder's path without "-" and the hash.
        wanted: facts.

    Returns:
        The folder and what could not be compared; None and what has changed since the one that
        differs least, if there is one.
    """
    near = Compared([])
    places = Path(stem.parent).glob(f"{glob.escape(stem.name)}-{'?' * DIGITS}")
    for place in sorted(places, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        before = _read(place)
        if before is None:
            continue
        compared = _compared(before, wanted)
        if not compared.changes:
            return place, compared
        if not near.changes or len(compared.changes) < len(near.changes):
            near = compared
    return None, near


def _read(folder: Path) -> dict[str, Any] | None:
    """The facts about the SAE in a folder; of an earlier version, what `run.yaml` says."""
    try:
        if (folder / ORIGIN).is_file():
            found: Any = json.loads((folder / ORIGIN).read_text("utf-8"))
            parts = [found[name] for name in ("settings", "versions", "made_from")]
            return found if all(isinstance(part, dict) for part in parts) else None
        import yaml

        contents = yaml.safe_load((folder / RECIPE).read_text("utf-8"))
        settings = {name: value for name, value in contents.items() if name not in _NO_SETTINGS}
        return {"recipe": settings, "versions": contents.get("versions", {})}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _compared(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Compared:
    found = compare(before.get("made_from", {}), wanted["made_from"])
    old, new = before.get("versions", {}), wanted["versions"]
    versions = [
        f"{name} is {new[name]}, and was {old[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    earlier = before
    if "settings" in before:
        settings = _without_places(before["settings"], before["made_from"])
        earlier = {**before, "settings": settings}
    changes = [
        f"{name} is {as_text(value) or 'none'}, and was {as_text(was) or 'none'}"
        for name, value in wanted["settings"].items()
        if (was := _setting(name, value, earlier)) != value
    ]
    return Compared([*changes, *versions, *found.changes], found.unknown)


def _setting(name: str, now: Any, before: Mapping[str, Any]) -> Any:
    """A setting of an SAE; one that was not there yet had its default."""
    if "settings" in before:
        return before["settings"].get(name, _default(name))
    recipe = before["recipe"]
    if now is None and name in recipe and recipe[name] == _of_model(recipe).get(name):
        return None
    return recipe.get(name, _default(name))


def _default(name: str) -> Any:
    flag = all_flags().get(name)
    return False if name == "untrained" else flag and flag.default


def _of_model(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's recipe says where its settings left it to the model."""
    d_in, d_sae = recipe.get("d_in"), recipe.get("d_sae") or 0
    found = {name: recipe.get(name) for name in ("d_in", "device", "log_to_wandb")}
    widths = [d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    return {**found, "d_sae": d_in and 4 * d_in, "matryoshka_widths": widths}
