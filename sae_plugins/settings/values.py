"""A flag's value: from the text of a command line, or from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.values import booleans_as_text, fitting, read
from sae_plugins.settings.flags import Flag

BOUNDS: dict[str, dict[str, Any]] = {
    name: bounds
    for bounds, names in (
        ({"gt": 0}, ("lr", "k", "lp_norm", "jumprelu_bandwidth", "jumprelu_init_threshold")),
        ({"ge": 0, "lt": 1}, ("adam_beta1", "adam_beta2")),
        ({"ge": 0, "le": 1}, (
            *("activations_mixing_fraction", "lr_warm_up_fraction", "lr_decay_fraction"),
        )),
        ({"ge": 0}, (
            *("seed", "text_seed", "heldout_tokens", "n_checkpoints"),
            *("lr_warm_up_steps", "lr_decay_steps"),
            *("l1_warm_up_steps", "l0_warm_up_steps", "dead_feature_window", "eval_samples"),
            *("eval_frequency", "lr_end", "l1_coefficient", "l0_coefficient"),
        )),
        ({"ge": 1}, (
            *("keep_checkpoints", "jobs", "context_size", "d_in", "d_sae", "max_iterations"),
            *("training_tokens", "train_batch_size_tokens", "store_batch_size_prompts"),
            *("n_batches_in_buffer", "n_batches_for_norm_estimate", "n_restart_cycles"),
            *("feature_sampling_window", "n_eval_batches", "eval_batch_size_prompts"),
            *("wandb_log_frequency", "eval_every_n_wandb_logs"),
        )),
    )
    for name in names
}  # fmt: skip
"""What values of flags must be; SAELens takes others, and fails on them in the midst of things."""
_IN_TORCH: dict[str, dict[str, Any]] = {
    "int": {"ge": -(2**63), "le": 2**63 - 1},
    "float": {"ge": -3.4028234663852886e38, "le": 3.4028234663852886e38, "allow_inf_nan": False},
}
"""What torch's whole numbers and its float32 hold."""


def convert(flag: Flag, value: Any) -> Any:
    """A flag's value, from the text of a command line or from YAML.

    Raises:
        SaePluginsError: it does not have the flag's type, or is out of its bounds.
    """
    if not (isinstance(value, dict) and "dict" in flag.alternatives):
        annotation = _annotation(flag)
        value = fitting(annotation, read(annotation, as_text(value)), f"--{flag.name}")
    if isinstance(value, dict) and (texts := booleans_as_text(value)):
        raise SaePluginsError(
            f"--{flag.name}: {texts[0]} is a text, which counts as true whatever it says; write "
            "true or false without quotes"
        )
    return value


def as_text(value: Any) -> str:
    """YAML's value as the command line would have it."""
    if isinstance(value, (list, tuple)):
        return " ".join(as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _boolean(text: Any) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    if str(text).lower() not in words:  # such as 1, which pydantic would take
        raise PydanticCustomError("bool_parsing", "")
    return words[str(text).lower()]


_TYPES: dict[str, Any] = {
    "none": None,
    "bool": Annotated[bool, BeforeValidator(_boolean)],
    "int": int,
    "float": float,
    "str": str,
    "dict": dict[str, Any],
    "list[int]": list[int],
    "list[int|none]": list[int | None],
}


def _annotation(flag: Flag) -> Any:
    """The type of a flag's values."""
    types = []
    for kind in flag.alternatives:
        known = _TYPES[kind] if "choice" not in kind else Literal[flag.choices]
        known = list[known] if kind == "list[choice]" else known  # type: ignore[valid-type]
        if kind in _IN_TORCH:
            known = Annotated[known, Field(**{**_IN_TORCH[kind], **BOUNDS.get(flag.name, {})})]
        types.append(known)
    return Union[tuple(types)]  # noqa: UP007
