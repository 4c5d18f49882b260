"""What a run's settings must be, as far as that shows before anything is loaded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
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


def wrong_values(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with values by flag, each looked at by itself."""
    yield from out_of_bounds(values)
    for name in ("model_from_pretrained_kwargs", "model_kwargs"):
        if "trust_remote_code" in str(values.get(name)):
            yield (
                f"--{name}: trust_remote_code is not available: sae-plugins never runs code that "
                "comes with a model"
            )
    if "checkpoint_every" in values:
        from sae_plugins.resume.files import interval

        problems = Problems()
        with problems, prefixed("--checkpoint_every"):
            interval(values["checkpoint_every"])
        yield from problems.sentences


def check_architecture(settings: Settings) -> None:
    """Refuse plugins that do not work on the architecture.

    Raises:
        PluginError: names them.
    """
    from sae_plugins.framework.architectures import architecture

    name = settings.architecture
    with prefixed(f"--architecture {name}"):  # the plugin may be one that a method brings
        settings.plan.check(architecture(name))


SCHEDULE = (
    *("training_tokens", "train_batch_size_tokens", "n_checkpoints", "n_restart_cycles"),
    *("lr", "lr_end", "lr_scheduler_name"),
    *("lr_warm_up_steps", "lr_warm_up_fraction", "lr_decay_steps"),
)
"""What `check_schedule` looks at."""


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


def out_of_bounds(values: Mapping[str, Any]) -> Iterator[str]:
    """What is said of values that are out of their bounds."""
    for bounds, names in BOUNDS.items():
        words = bounds.split()
        limits = [(*_COMPARISONS[sign], end) for sign, end in _pairs(words)]
        for name in names:
            value = values.get(name)
            if value is not None and not all(fits(value, float(end)) for _, fits, end in limits):
                wanted = " and ".join(f"{word} {end}" for word, _, end in limits if end != "inf")
                yield f"--{name} {value}: it must be {wanted}"
                values = {key: other for key, other in values.items() if key != name}
    for name, value in values.items():
        limit = _GREATEST.get(type(value))
        if limit is not None and not abs(value) <= limit:
            yield f"--{name} {value}: it must be at most {limit:.2g}, and a number"


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(words[::2], words[1::2], strict=True)
