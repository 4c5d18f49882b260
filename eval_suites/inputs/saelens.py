"""SAEs that SAELens saved: in a folder, in a release, or in a repository on the Hub."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sae_plugins.base.errors import SuiteError, did_you_mean
from sae_plugins.base.files import read_json
from sae_plugins.base.hub import local, why
from sae_plugins.eval_suites.inputs.subjects import first_line
from sae_plugins.runs.config import read_config
from sae_plugins.runs.folder import (
    CONFIG,
    RUNNER_CONFIG,
    SUMMARY,
    SYNTHETIC_RUNNER_CONFIG,
    UNFINISHED,
    WEIGHTS,
)


def from_folder(folder: Path, device: str) -> tuple[Any, Mapping[str, Any]]:
    """The SAE in a folder, and facts of its training.

    Raises:
        SuiteError: there is none, or it is damaged.
    """
    _check_folder(folder)
    return _load(folder, device), _training_facts(folder)


def from_hub(source: str, device: str) -> tuple[Any, Mapping[str, Any]]:
    """An SAE of a release that SAELens knows, or of any repository, and facts of its training.

    Raises:
        SuiteError: there is none, or it is damaged.
        HubError: it cannot be downloaded.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = source.partition(":")
    releases = get_pretrained_saes_directory()
    if release in releases:
        known = list(releases[release].saes_map)
        if sae_id not in known:
            near = difflib.get_close_matches(sae_id, known, n=3, cutoff=0.5) or known[:3]
            raise SuiteError(
                f"{source}: release {release} has no SAE {sae_id!r}, but {', '.join(near)}"
                + (", ..." if len(near) < len(known) else "")
            )
    elif "/" in release:
        return from_folder(local(source), device)
    else:
        near = difflib.get_close_matches(release, releases, n=3, cutoff=0.5)
        raise SuiteError(
            f"{source} is no folder, and SAELens knows no release {release!r}"
            + (f": {did_you_mean(release, near)}" if near else "")
        )
    try:
        return SAE.from_pretrained(release, sae_id, device=device), {}
    except KeyError as error:
        _check_architecture(source, str(error.args[0]))
        raise SuiteError(f"{source} cannot be loaded: its config lacks {error}") from error
    except Exception as error:  # of the network, the Hub, the disk and the memory
        raise SuiteError(f"{source} cannot be loaded: {why(error)}") from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder without an SAE."""
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if not missing:
        return
    if (folder / UNFINISHED).is_dir():
        raise SuiteError(
            f"{folder} holds an unfinished run and no SAE yet; go on with it: sae-plugins train "
            f"--resume {folder}"
        )
    inside = sorted(
        path.parent.name
        for file in (CONFIG, "ae.pt")  # of dictionary_learning
        for path in folder.glob(f"*/{file}")
    )
    raise SuiteError(
        f"{folder} holds no SAE: it lacks {' and '.join(missing)}"
        + (f"; name one of the folders in it: {', '.join(inside[:5])}" if inside else "")
    )


def _load(folder: Path, device: str) -> Any:
    from sae_lens import SAE

    _check_architecture(str(folder), read_config(folder).get("architecture"))
    try:
        return SAE.load_from_disk(folder, device=device)
    except SafetensorError as error:
        raise SuiteError(f"{folder / WEIGHTS} is damaged: {error}") from error
    except Exception as error:  # a config's and the weights' many ways not to fit
        raise SuiteError(
            f"{folder}: {WEIGHTS} and {CONFIG} do not fit together ({first_line(error)})"
        ) from error


def _check_architecture(source: str, architecture: str | None) -> None:
    """Refuse what SAELens cannot load as an inference SAE; old configs may name none."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    if architecture is None or architecture in SAE_CLASS_REGISTRY:
        return
    if architecture in SAE_TRAINING_CLASS_REGISTRY:
        raise SuiteError(
            f"{source} is a {architecture} SAE in training; save it with its method "
            "save_inference_model and evaluate that"
        )
    raise SuiteError(
        f"{source}: SAELens knows no architecture {architecture!r}; "
        f"{did_you_mean(architecture, SAE_CLASS_REGISTRY)}"
    )


def _training_facts(folder: Path) -> dict[str, Any]:
    """What the run that left an SAE says of its data and its L0, where that is still there."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        facts["l0"] = float(read_json(folder / SUMMARY)["heldout/l0"])
    for file in (RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG):
        with contextlib.suppress(OSError, ValueError):
            found = read_json(folder / file)
            kinds = {"dataset_path": str, "training_tokens": int, "training_samples": int}
            return facts | {
                name: found[name] for name in kinds if type(found.get(name)) is kinds[name]
            }
    return facts
