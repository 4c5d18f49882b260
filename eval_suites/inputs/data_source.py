"""Which data `--data` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.data import Data
from sae_plugins.eval_suites.inputs.file_data import FolderData, HubData
from sae_plugins.eval_suites.inputs.world_data import WorldData


def data_source(
    name: str | None, model_name: str, revisions: Mapping[str, str] | None = None
) -> Data:
    """What `--data` names.

    Args:
        name: `"world"`, `"hub"` or a folder; None is the world for its own model, or else the Hub.
        model_name: of the language model.
        revisions: commits to read on the Hub, by the dataset's name; the newest of the others.

    Raises:
        SuiteError: it is none of these.
    """
    from sae_plugins import world

    if name is None:
        name = "world" if model_name == world.NAME else "hub"
    if name == "world":
        return WorldData()
    if name == "hub":
        return HubData(revisions)
    if not Path(name).is_dir():
        raise SuiteError(f"--data {name}: neither 'world' nor 'hub' nor a folder")
    return FolderData(Path(name))
