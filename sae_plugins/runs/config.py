"""`cfg.json` of an SAE, which anybody may have written: are its values of the right kinds?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import read_json
from sae_plugins.base.values import sentences
from sae_plugins.runs.folder import CONFIG

Count = Annotated[int, Field(ge=1)]
Token = int | str
Normalization = Literal[
    "none",
    "expected_average_only_in",
    "layer_norm",
    "covariance_whitening",
    "constant_norm_rescale",
]
"""SAELens takes any other text for "none"."""


class _Plugin(BaseModel):
    """What we say of a plugin."""

    model_config = ConfigDict(strict=True)
    name: str
    package: str | None = None
    version: str | None = None
    options: dict[str, Any] = {}


class _Provenance(BaseModel):
    """What we say of how an SAE was trained."""

    model_config = ConfigDict(strict=True)
    methods: list[str] | None = None
    plugins: list[_Plugin] | None = None
    training: dict[str, Any] | None = None


class _Place(BaseModel):
    """What is said of an SAE's place and training: in the metadata, or, of old, beside them."""

    model_config = ConfigDict(strict=True)
    model_name: str | None = None
    model_class_name: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    hook_head_index: int | None = None
    context_size: Count | None = None
    dataset_path: str | None = None
    prepend_bos: bool | None = None
    seqpos_slice: list[int | None] | None = None
    exclude_special_tokens: bool | list[int] | None = None
    sequence_separator_token: Token | None = None
    disable_concat_sequences: bool | None = None
    sae_lens_version: str | None = None
    sae_lens_training_version: str | None = None
    training_architecture: str | None = None
    training_architecture_details: dict[str, Any] | None = None
    l0: float | None = None
    sae_plugins: _Provenance | None = None


class _Config(_Place):
    """What is said of the SAE itself."""

    architecture: str | None = None
    d_in: Count | None = None
    d_sae: Count | None = None
    dtype: str | None = None
    device: str | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: Normalization | None = None
    reshape_activations: Literal["none", "hook_z"] | None = None
    metadata: _Place | None = None


def read_config(folder: Path) -> dict[str, Any]:
    """What the `cfg.json` in a folder says.

    Raises:
        PluginError: it cannot be read, or a value is of another kind than SAELens writes there.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise PluginError(f"{path} is damaged: {error}") from error
    if not isinstance(config, Mapping):
        raise PluginError(f"{path} is damaged: it holds no mapping")
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        places = sentences(error, lambda place: ".".join(map(str, place)), optional=lambda _: True)
        raise PluginError(f"{path} is damaged: {'; '.join(places)}") from error
    return dict(config)
