"""The weights that a run begins with: those of the SAE that `--from_pretrained_path` names.

The SAE itself is built from the flags, as every other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting, sae_lens_disk_loader
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.setup import SAELensSettings

_SAME = (
    *("d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"),
    "rescale_acts_by_decoder_norm",
)
"""Fields of an SAE's config without which its weights would mean something else."""


def check_pretrained(settings: SAELensSettings, config: Any) -> None:
    """Refuse an SAE to begin with that is another than the one to train.

    Args:
        settings: the run's.
        config: of the SAE to train.

    Raises:
        PluginError: it names each difference, or the folder holds no SAE.
    """
    folder = settings.runner.get("from_pretrained_path")
    if folder and (differences := [*_differences(_load(folder)[0], settings, config)]):
        raise PluginError(
            f"--from_pretrained_path {folder} holds another SAE than the one to train: its "
            f"{', its '.join(differences)}; give its values, or choose another SAE"
        )


def begin_with(sae: TrainingSAE[Any], folder: str) -> None:
    """Load the weights of a saved SAE, which has passed `check_pretrained`, into a new one.

    Raises:
        PluginError: they are not those of such an SAE.
    """
    weights = _load(folder)[1]
    sae.process_state_dict_for_loading(weights)
    own = sae.state_dict()
    if "topk_threshold" in own and "threshold" in weights:  # SAELens saves it for each feature
        weights["topk_threshold"] = weights.pop("threshold").double().mean()
    if differ := {n for n in {*own, *weights} if _shape(own, n) != _shape(weights, n)}:
        raise PluginError(
            f"--from_pretrained_path {folder}: its {', '.join(sorted(differ))} cannot be loaded "
            f"into a {sae.cfg.architecture()} SAE of these flags; choose another SAE"
        )
    sae.load_state_dict(weights)


def _load(folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config, weights = sae_lens_disk_loader(folder)
        return handle_config_defaulting(config), weights
    except Exception as error:  # of files that are damaged, or of other programs
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise PluginError(
            f"--from_pretrained_path {folder} holds no SAE that SAELens can load ({reason})"
        ) from error


def _differences(saved: Mapping[str, Any], settings: SAELensSettings, config: Any) -> Iterator[str]:
    metadata = saved.get("metadata") or {}
    pairs = {n: (saved[n], getattr(config, n)) for n in _SAME if n in saved and hasattr(config, n)}
    if metadata.get("hook_name"):
        for name in ("hook_name", "hook_head_index"):
            pairs[name] = metadata.get(name), settings.runner.get(name)
    # SAELens saves some SAEs as another architecture than they are trained as
    trained_as = metadata.get("training_architecture") or saved["architecture"]
    if config.architecture() != saved["architecture"]:
        pairs["architecture"] = trained_as, config.architecture()
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"--{name} is {str(theirs).lower()} and not {str(ours).lower()}"


def _shape(state: Mapping[str, Tensor], name: str) -> Any:
    return state[name].shape if name in state else None
