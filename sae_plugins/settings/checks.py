"""What a run's settings must be, as far as that shows before anything is loaded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sae_plugins.base.errors import SaePluginsError, prefixed
from sae_plugins.settings.settings import Settings

BOUNDS = {
    "> 0 < inf": ("lr", "k", "lp_norm", "jumprelu_bandwidth", "jumprelu_init_threshold"),
    ">= 0 < inf": ("lr_end", "l1_coefficient", "l0_coefficient"),
    ">= 0 < 1": ("adam_beta1", "adam_beta2"),
    ">= 0 <= 1": ("activations_mixing_fraction", "lr_warm_up_fraction"),
    ">= 0 < 9223372036854775808": ("seed",),  # torch's generators take no more
    ">= 0": (
        *("heldout_tokens", "n_checkpoints", "lr_warm_up_steps", "lr_decay_steps"),
        *("l1_warm_up_steps", "l0_warm_up_steps", "dead_feature_window", "eval_samples"),
        *("eval_frequency",),
    ),
    ">= 1": (
        "keep_checkpoints",
        *("training_tokens", "train_batch_size_tokens", "d_in", "d_sae", "context_size"),
        *("store_batch_size_prompts", "n_batches_in_buffer", "n_batches_for_norm_estimate"),
        *("n_restart_cycles", "feature_sampling_window", "max_iterations", "n_eval_batches"),
        *("eval_batch_size_prompts", "wandb_log_frequency", "eval_every_n_wandb_logs"),
    ),
}
"""What values of flags must be; SAELens takes others, and fails on them in the midst of things."""

_COMPARISONS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    ">": ("greater than", operator.gt),
    ">=": ("at least", operator.ge),
    "<": ("less than", operator.lt),
    "<=": ("at most", operator.le),
}
_GREATEST = {int: 2**63 - 1, float: 3.4028234663852886e38}
"""What torch's whole numbers and its float32 hold."""


def check(settings: Settings) -> None:
    """Refuse what cannot be trained; the schedule apart, which `check_schedule` looks at.

    Raises:
        SaePluginsError: names the flag.
    """
    _check_architecture(settings)
    _check_code(settings)
    check_bounds(settings.values)
    _check_interval(settings)


def check_schedule(settings: Settings) -> None:
    """Refuse a schedule that does not fit into the run.

    Raises:
        SaePluginsError: names the flags.
    """
    total = settings.total_steps
    if total < 1:
        raise SaePluginsError(
            f"--training_tokens {settings.get('training_tokens')} is less than one batch: raise "
            f"it, or lower --train_batch_size_tokens {settings.get('train_batch_size_tokens')}"
        )
    warm_up, decay = settings.get("lr_warm_up_steps"), settings.get("lr_decay_steps")
    scheduler, lr, lr_end = (settings.get(n) for n in ("lr_scheduler_name", "lr", "lr_end"))
    needed = {"constant": 0, "cosineannealing": 1}.get(scheduler, settings.get("n_restart_cycles"))
    if warm_up + decay + needed > total:
        raise SaePluginsError(
            f"--lr_warm_up_steps {warm_up} and --lr_decay_steps {decay} do not fit into the run's "
            f"{total} steps{f', of which {scheduler} needs {needed}' if needed else ''}: lower "
            "them, or raise --training_tokens"
        )
    if settings.get("n_checkpoints") > total:
        raise SaePluginsError(
            f"--n_checkpoints {settings.get('n_checkpoints')} is more than the run's {total} steps"
        )
    if decay and scheduler != "constant" and lr_end is not None and not 0 < lr_end <= lr:
        raise SaePluginsError(
            f"--lr_decay_steps {decay} decays from --lr_end {lr_end}, which must be greater than 0 "
            f"and at most --lr {lr}"
        )


def check_bounds(values: Mapping[str, Any]) -> None:
    """Refuse values out of their bounds; a `SaePluginsError` names the first."""
    for bounds, names in BOUNDS.items():
        words = bounds.split()
        limits = [(*_COMPARISONS[sign], end) for sign, end in _pairs(words)]
        for name in names:
            value = values.get(name)
            if value is not None and not all(fits(value, float(end)) for _, fits, end in limits):
                wanted = " and ".join(f"{word} {end}" for word, _, end in limits if end != "inf")
                raise SaePluginsError(f"--{name} {value}: it must be {wanted}")
    for name, value in values.items():
        limit = _GREATEST.get(type(value))
        if limit is not None and not abs(value) <= limit:
            raise SaePluginsError(f"--{name} {value}: it must be at most {limit:.2g}, and a number")


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(words[::2], words[1::2], strict=True)


def _check_architecture(settings: Settings) -> None:
    from sae_plugins.framework.architectures import architecture

    name = settings.architecture
    with prefixed(f"--architecture {name}"):  # the plugin may be one that a method brings
        settings.plan.check(architecture(name))


def _check_interval(settings: Settings) -> None:
    if "checkpoint_every" not in settings.values:
        return
    from sae_plugins.resume.files import interval

    with prefixed("--checkpoint_every"):
        interval(settings.get("checkpoint_every"))


def _check_code(settings: Settings) -> None:
    """Refuse to run code that comes with a model, whoever asks for it."""
    for name in ("model_from_pretrained_kwargs", "model_kwargs"):
        if "trust_remote_code" in str(settings.get(name)):
            raise SaePluginsError(
                f"--{name}: trust_remote_code is not available: sae-plugins never runs code that "
                "comes with a model"
            )
