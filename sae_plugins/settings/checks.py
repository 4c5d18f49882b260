"""What a run's settings must be, as far as that shows before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sae_plugins import world
from sae_plugins.base.clock import seconds_in
from sae_plugins.base.errors import Problems, SaePluginsError, prefixed
from sae_plugins.base.files import bytes_in
from sae_plugins.base.secrets import HIDDEN, holds_hidden
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.settings import Settings


def check_code(values: Mapping[str, Any]) -> None:
    """Refuse arguments of a model that could run code that comes with it, whoever gives them."""
    from sae_plugins.runs.language_models.kwargs import HOOKED, check_kwargs

    with prefixed("--model_from_pretrained_kwargs"):
        check_kwargs(
            values.get("model_from_pretrained_kwargs"), values.get("model_class_name") or HOOKED
        )


def check_dtype(values: Mapping[str, Any]) -> None:
    """Refuse to train in numbers in which training breaks down, whatever the learning rate."""
    if values.get("dtype") == "float16":
        raise SaePluginsError(
            "--dtype float16: an SAE cannot be trained in it, since Adam's epsilon, 1e-8, and the "
            "squares of small gradients are 0 in float16, and NaN follows; give --dtype float32, "
            "or bfloat16. --autocast computes in bfloat16, with weights in float32"
        )


def check_secrets(values: Mapping[str, Any]) -> None:
    """Refuse values out of which a secret was taken when a recipe was written.

    Raises:
        SaePluginsError: a sentence for each flag.
    """
    problems = Problems()
    for name, value in values.items():
        if holds_hidden(value):
            problems.add(
                f"--{name}: {HIDDEN} stands where a secret was, which is never written: give the "
                "flag again, with the secret in it"
            )
    problems.stop()


_NOT_IN_WANDB = r"/\#?%:"
"""Characters that names at Weights & Biases cannot have."""
_LONGEST_IN_WANDB = 128


def check_wandb(values: Mapping[str, Any]) -> None:
    """Refuse names that Weights & Biases refuses, or takes for a path, when training begins.

    Raises:
        SaePluginsError: a sentence for each flag.
    """
    problems = Problems()
    for name in ("wandb_id", "wandb_project"):
        value = values.get(name)
        if value is not None and (not value.strip() or value != value.strip()):
            problems.add(f"--{name} {value!r}: it must not be empty, or begin or end with a blank")
        elif wrong := [c for c in _NOT_IN_WANDB if c in (value or "")]:
            problems.add(
                f"--{name} {value}: it must not have {' '.join(wrong)}; give a name without "
                f"{' '.join(_NOT_IN_WANDB)}"
            )
        elif len(value or "") > _LONGEST_IN_WANDB:
            problems.add(f"--{name}: it must have at most {_LONGEST_IN_WANDB} characters")
    problems.stop()


def check_dashboards(values: Mapping[str, Any]) -> None:
    """Refuse logs of packages that are not installed."""
    from sae_plugins.runs.logs import check

    with prefixed("--log_to"):
        check(values.get("log_to") or ())


def check_interval(values: Mapping[str, Any]) -> None:
    """Refuse what is no interval between checkpoints, and no length of time."""
    from sae_plugins.resume.files import interval

    if "checkpoint_every" in values:
        with prefixed("--checkpoint_every"):
            interval(values["checkpoint_every"])
    if values.get("max_time") is not None:
        with prefixed("--max_time"):
            seconds_in(values["max_time"])


_DEVICES = ("device", "llm_device", "act_store_device")


def check_gpus(settings: Settings, *, ranks: int = 1, processes: int = 1) -> None:
    """Refuse a GPU by its number where each of several ranks, or processes, sees one of its own.

    Args:
        settings: of one SAE.
        ranks: how many torchrun has started.
        processes: how many a study starts, if there are GPUs.

    Raises:
        SaePluginsError: a sentence for each flag.
    """
    problems = Problems()
    who, alone = (f"{processes} processes", "give --jobs 1")
    if ranks > 1:
        who, alone = (f"{ranks} ranks", "leave torchrun out")
    cure = alone if settings.get("resume") else f"give cuda, or {alone.removeprefix('give ')}"
    for name in _DEVICES if max(ranks, processes) > 1 else ():
        device = str(settings.get(name) or "")
        if device.startswith("cuda:"):
            problems.add(f"--{name} {device}: each of {who} has a GPU of its own; {cure}")
    problems.stop()


def check_budget(values: Mapping[str, Any]) -> None:
    """Refuse what is no size of a folder."""
    if "cache_budget" in values:
        with prefixed("--cache_budget"):
            bytes_in(values["cache_budget"])


def check_architecture(settings: Settings) -> None:
    """Refuse plugins that do not work on the architecture.

    Raises:
        PluginError: names them.
    """
    from sae_plugins.framework.architectures import architecture

    name = settings.architecture
    with prefixed(f"--architecture {name}"):  # the plugin may be one that a method brings
        settings.plan.check(architecture(name))


def check_sae(settings: Settings, later: Iterable[str] = ()) -> None:
    """Refuse fields of the SAE that do not fit together, as far as the model need not be known.

    Args:
        settings: the run's.
        later: flags that others than these will set, to values that are checked then.

    Raises:
        PluginError: names the flags.
    """
    from sae_plugins.framework.architectures import architecture
    from sae_plugins.runs.sae_fields import check_fields

    row = architecture(settings.architecture)
    fields = {
        name: value for name, value in settings.values.items() if all_flags()[name].group == "sae"
    }
    fields["d_sae"] = fields.get("d_sae") or _default_d_sae(settings)
    if row.k_per:
        fields.setdefault("k", settings.get("k"))
    fields |= dict.fromkeys(later, 1)  # which fits
    hook_name, device = (settings.values.get(name) for name in ("hook_name", "device"))
    check_fields(row, fields, hook_name or "", device)


def _default_d_sae(settings: Settings) -> int | None:
    """What d_sae is where nobody says it, if that shows before the model is loaded."""
    from sae_plugins.runs.sae_fields import D_SAE_PER_D_IN

    d_in, hook_name = settings.values.get("d_in"), settings.values.get("hook_name") or ""
    if d_in is None and settings.model_name == world.NAME and "hook_resid_" in hook_name:
        d_in = world.d_in()
    return None if d_in is None else D_SAE_PER_D_IN * int(d_in)


SCHEDULE = (
    *("training_tokens", "train_batch_size_tokens", "n_checkpoints", "n_restart_cycles"),
    *("lr", "lr_end", "lr_scheduler_name"),
    *("lr_warm_up_steps", "lr_warm_up_fraction", "lr_decay_steps", "lr_decay_fraction"),
    *("l1_warm_up_steps", "l0_warm_up_steps"),
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
    for name in ("l1_warm_up_steps", "l0_warm_up_steps"):
        if settings.architecture in all_flags()[name].architectures and settings.get(name) > total:
            raise SaePluginsError(
                f"--{name} {settings.get(name)} is more than the run's {total} steps, so that the "
                "coefficient would never be what --"
                f"{name.replace('warm_up_steps', 'coefficient')} says: lower it"
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
