"""The flags of `sae-plugins train`: one table, their parser and their help; no slow imports.

SAELens' own flags come from `sae_lens_flags.json`, because reading its dataclasses takes ten
seconds of CPU. After an upgrade of SAELens, write that file anew::

    python -m sae_plugins.settings.flags
"""

from __future__ import annotations

import functools
import json
import operator
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS_FILE = Path(__file__).with_name("sae_lens_flags.json")


class UsageError(Exception):
    """The user asked for something that cannot be done; the message says what to do instead."""

    exit_code = 2


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: as it is typed, without the dashes; also its key in a recipe.
        type: alternatives out of none, bool, int, float, choice, str, dict, list[int],
            list[int|none], list[str], joined by " | "; a text is read as the first that fits.
        help: one or a few sentences.
        default: what applies where nothing else is said; None where that depends.
        group: whose it is: ours, or SAELens' "runner", "sae", "logger" or "synthetic".
        choices: the words that a "choice" may be.
        architectures: the architectures that have it; empty for all.
    """

    name: str
    type: str
    help: str
    default: Any = None
    group: str = ""
    choices: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    @property
    def alternatives(self) -> list[str]:
        """The types that a value may have."""
        return self.type.split(" | ")

    @property
    def is_list(self) -> bool:
        """Whether several values may follow the flag."""
        return any(kind.startswith("list") for kind in self.alternatives)

    @property
    def type_name(self) -> str:
        """The type for readers."""
        words = {"bool": "true|false", "choice": "|".join(self.choices)}
        return "|".join(words.get(kind, kind) for kind in self.alternatives)


@functools.cache
def _file() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(FLAGS_FILE.read_text("utf-8"))
    return contents


def architectures() -> tuple[str, ...]:
    """SAELens' training architectures."""
    return tuple(_file()["architectures"])


@functools.cache
def sae_lens_flags() -> dict[str, Flag]:
    """SAELens' flags by name."""
    flags: dict[str, Flag] = {}
    for row in _file()["flags"]:
        row = {key: tuple(value) if key in TUPLES else value for key, value in row.items()}
        flags[row["name"]] = Flag(**row)
    return flags


TUPLES = ("choices", "architectures")
"""The fields of a `Flag` that JSON has as lists."""


@functools.cache
def our_flags() -> dict[str, Flag]:
    """Our own flags by name, in the order in which help shows them."""
    flags = (
        Flag("recipe", "str", "a packaged recipe by name, or a file: flags from YAML", group="run"),
        Flag(
            "plugin", "list[str]", "a plugin or method; repeatable; replaces a recipe's", (), "run"
        ),
        Flag("without", "list[str]", "leave out a mechanism of a method; repeatable", (), "run"),
        Flag("architecture", "choice", "of the SAE", "standard", "run", architectures()),
        Flag("seed", "int", "orders the data, draws the weights, feeds every plugin", 42, "run"),
        Flag("output_path", "str | none", "folder of the run (default: in runs/)", group="run"),
        Flag("overwrite", "bool", "replace an earlier run in that folder", False, "run"),
        Flag("resume", "str | none", "folder of an unfinished run: go on with it", group="run"),
        Flag("heldout_tokens", "int", "held-out tokens that score the SAE; 0: none", 50_000, "run"),
        Flag("accumulate", "int", "batches whose mean gradient makes one update", 1, "training"),
        Flag("clip", "float | none", "bound of the gradient's norm", 1.0, "training"),
        Flag("weight_decay", "float", "decoupled, as in AdamW", 0.0, "training"),
        Flag(
            "loss_form",
            "none | choice",
            "reconstruction loss of a token; none: SAELens' own, the sum of squares",
            None,
            "training",
            ("sum_of_squares", "l2_norm", "mean"),
        ),
        Flag(
            "lr_warm_up_fraction",
            "float | none",
            "--lr_warm_up_steps as a share of the run's steps",
            None,
            "training",
        ),
        Flag(
            "checkpoint_every",
            "str",
            "how often the run is saved so that --resume can go on with it: 500 (steps) or 10min; "
            "0: only when it is interrupted",
            "10min",
            "resuming",
        ),
        Flag("keep_checkpoints", "int", "how many of the newest stay", 2, "resuming"),
        Flag(
            "resume_buffer",
            "choice",
            "exact: checkpoints hold the activations that wait in SAELens' buffer (2.4 GB for "
            "Gemma-2-2B and 2048 contexts), and a resumed run is bitwise the same; refill: they "
            "do not, and a resumed run fills its buffer with new text: another run",
            "exact",
            "resuming",
            ("exact", "refill"),
        ),
    )
    return {flag.name: flag for flag in flags}


REFUSED = {
    "dataset_trust_remote_code": "sae-plugins never runs code that comes with a dataset",
    "hook_eval": "SAELens does not use it any more",
    "sae_lens_version": "it is read from what is installed",
    "sae_lens_training_version": "it is read from what is installed",
}
"""SAELens' flags that `train` does not take, and why."""


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


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(words[::2], words[1::2], strict=True)


def check_bounds(values: Mapping[str, Any]) -> None:
    """Refuse values out of their bounds; a `UsageError` names the first."""
    for bounds, names in BOUNDS.items():
        words = bounds.split()
        limits = [(*_COMPARISONS[sign], end) for sign, end in _pairs(words)]
        for name in names:
            value = values.get(name)
            if value is not None and not all(fits(value, float(end)) for _, fits, end in limits):
                wanted = " and ".join(f"{word} {end}" for word, _, end in limits if end != "inf")
                raise UsageError(f"--{name} {value}: it must be {wanted}")
    for name, value in values.items():
        limit = _GREATEST.get(type(value))
        if limit is not None and not abs(value) <= limit:
            raise UsageError(f"--{name} {value}: it must be at most {limit:.2g}, and a number")


_GREATEST = {int: 2**63 - 1, float: 3.4028234663852886e38}
"""What torch's whole numbers and its float32 hold."""

SYNTHETIC_NAMES = {
    "training_tokens": "training_samples",
    "train_batch_size_tokens": "batch_size",
    "autocast": "autocast_sae",
}
"""Flags that SAELens' synthetic runner spells differently."""


@functools.cache
def all_flags() -> dict[str, Flag]:
    """Every flag of `train` by name, except the plugins' options."""
    return our_flags() | sae_lens_flags()


# -- values ------------------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _none(text: str) -> None:
    if text.lower() not in ("none", "null"):
        raise ValueError("not none")


def _list_of(kind: str, text: str) -> list[Any]:
    items = [item for item in re.split(r"[\s,]+", text.strip("[]() ")) if item]
    return [_read_as(kind.split("|"), (), item) for item in items]


def _read_as(kinds: Iterable[str], choices: Sequence[str], text: str) -> Any:
    """The text as the first of `kinds` that it fits; ValueError if it fits none."""
    readers: dict[str, Callable[[str], Any]] = {
        "none": _none,
        "bool": _boolean,
        "int": int,
        "float": float,
        "dict": _mapping,
        "str": str,
        "choice": lambda word: choices[choices.index(word)],
    }
    for kind in kinds:
        try:
            if kind.startswith("list["):
                return _list_of(kind[5:-1], text)
            return readers[kind](text)
        except (ValueError, KeyError):
            continue
    raise ValueError(text)


def convert(flag: Flag, value: Any, where: str = "") -> Any:
    """A flag's value, from the text of a command line or from YAML.

    Raises:
        UsageError: it does not have the flag's type.
    """
    if isinstance(value, dict) and "dict" in flag.alternatives:
        return value
    text = as_text(value)
    try:
        return _read_as(flag.alternatives, flag.choices, text)
    except ValueError:
        wanted = f"it must be {' or '.join(_in_words(flag))}"
        if "choice" in flag.alternatives:
            also = [kind for kind in flag.alternatives if kind == "none"]
            wanted = _suggest(text, [*flag.choices, *also])
        raise UsageError(f"{where}--{flag.name} {text!r}: {wanted}") from None


def as_text(value: Any) -> str:
    """YAML's value as the command line would have it."""
    if isinstance(value, (list, tuple)):
        return " ".join(as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _in_words(flag: Flag) -> list[str]:
    words = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
        "dict": "a JSON object",
        "choice": ", ".join(flag.choices),
        "list[int]": "whole numbers",
        "list[int|none]": "whole numbers or none",
    }
    return [words.get(kind, kind) for kind in flag.alternatives]


def _suggest(name: str, known: Iterable[str]) -> str:
    from sae_plugins.base.errors import did_you_mean

    return did_you_mean(name, known)


def unknown_flag(name: str, options: Iterable[str] = ()) -> str:
    """What to say about a flag that does not exist."""
    if name in REFUSED:
        return f"--{name} is not available: {REFUSED[name]}"
    known = [f"--{known}" for known in (*all_flags(), *options)]
    suggestion = _suggest(f"--{name}", known)
    if suggestion.startswith("known:"):
        suggestion = "`sae-plugins train --help` lists all flags"
    return f"there is no flag --{name}: {suggestion}"


# -- the command line --------------------------------------------------------------------------


def parse(
    arguments: Sequence[str],
    options_of: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
) -> dict[str, Any]:
    """Settings by flag name, from a command line.

    `--flag value`, `--flag=value`, a bare `--flag` for what can be true; the last one counts,
    except that --plugin and --without add up. A flag with a dot is a plugin's option and stays
    text.

    Args:
        arguments: what follows `train`.
        options_of: the options ("reorder.interval") of the plugins that the settings choose; asked
            only if a flag is unknown, to suggest among them.

    Raises:
        UsageError: an unknown flag, a missing or an unfit value.
    """
    settings: dict[str, Any] = {}
    unknown: list[str] = []
    rest = list(arguments)
    while rest:
        name, values = _take(rest)
        flag = all_flags().get(name)
        if flag is None and "." in name:
            settings[name] = _one(name, values)
        elif flag is None:
            unknown.append(name)
        elif flag.type == "list[str]":
            settings.setdefault(name, []).append(_one(name, values))
        elif flag.is_list and len(values) > 1:
            settings[name] = convert(flag, values)
        elif not values and "bool" in flag.alternatives:
            settings[name] = True
        else:
            settings[name] = convert(flag, _one(name, values))
    if unknown:
        raise UsageError(unknown_flag(unknown[0], options_of(settings)))
    return settings


def _take(rest: list[str]) -> tuple[str, list[str]]:
    """Remove the first flag and its values from `rest`."""
    first = rest.pop(0)
    if not first.startswith("--") or first == "--":
        raise UsageError(f"{first!r} is no flag; flags look like --plugin NAME or --lr=0.001")
    name, equals, value = first[2:].partition("=")
    values = [value] if equals else []
    while not equals and rest and not rest[0].startswith("--"):
        values.append(rest.pop(0))
    return name, values


def _one(name: str, values: Sequence[str]) -> str:
    if not values:
        raise UsageError(f"--{name} needs a value: --{name} VALUE")
    if len(values) > 1:
        raise UsageError(
            f"--{name} takes one value, and {values[1]!r} follows it: every flag begins with --"
        )
    return values[0]


# -- help --------------------------------------------------------------------------------------

_INTRODUCTION = """\
usage: sae-plugins train [--plugin NAME]... [--recipe NAME|FILE.yaml] [flags]

Train a sparse autoencoder with plugins, on any SAELens architecture. With no --model_name it
trains offline on the embedded world, a small language model that comes with the package.

examples:
  sae-plugins train --recipe hybrid-order-demo
  sae-plugins train --recipe hybrid-order-demo --reorder.interval 50 --without input-norm-l1
  sae-plugins train --recipe hybrid-order-demo --seed 1 --output_path runs/demo-1
  sae-plugins train --plugin reorder --reorder.start 200 --model_name synthetic:toy
  sae-plugins train --recipe runs/demo-1/run.yaml --output_path runs/again   # the same, bitwise
  sae-plugins train --resume runs/demo-1                   # it was interrupted: go on, bitwise
  sae-plugins train --plugin hybrid-order --model_name gpt2 --hook_name blocks.6.hook_resid_post \\
      --dataset_path NeelNanda/pile-10k --d_sae 6144 --training_tokens 10_000_000

Ctrl-C and SIGTERM end the step in progress and write a checkpoint; a second one stops at once.
A method's settings override the defaults, a recipe's those, and flags override all of them.
"""

_PLUGIN_OPTIONS = """\
the plugins' options:
  --MECHANISM.OPTION VALUE, as in --reorder.interval 250. `sae-plugins plugins list` shows the
  plugins, and `sae-plugins plugins show reorder` the options of one.
"""

GROUPS = {
    "run": "what to run:",
    "training": "training settings that SAELens lacks (a method may set them):",
    "resuming": "checkpoints to go on from (SAELens' own, --n_checkpoints, are SAEs to look at):",
    "runner": "SAELens' flags, with SAELens' defaults; the embedded world has some of its own:",
    "sae": "SAELens' flags of the SAE:",
    "synthetic": "SAELens' flags for --model_name synthetic:PRESET only:",
    "logger": "SAELens' flags of logging to Weights & Biases (off unless --log_to_wandb):",
}


def help_text(width: int | None = None) -> str:
    """What `sae-plugins train --help` prints."""
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 120)
    flags = all_flags().values()
    sections = [_INTRODUCTION]
    for group, title in GROUPS.items():
        lines = [_help_line(flag, width) for flag in flags if flag.group == group]
        sections.append("\n".join([title, *lines, ""]))
        if group == "training":
            sections.append(_PLUGIN_OPTIONS)
    return "\n".join(sections)


def _help_line(flag: Flag, width: int) -> str:
    kind = flag.type_name if len(flag.type_name) < 24 else "WORD"
    kind = {"list[str]": "NAME", "list[int|none]": "N..", "list[int]": "N.."}.get(kind, kind)
    left = f"  --{flag.name} {kind}"
    own = f" [{_family(flag.architectures)}]" if flag.architectures else ""
    choices = f": {', '.join(flag.choices)}" if kind == "WORD" else ""
    default = "" if flag.default in (None, (), "") else f" (default {_shown(flag.default)})"
    if flag.group in ("run", "training", "resuming"):
        text = f"{flag.help}{choices}{default}"
        return _wrapped(left, text, width)
    text = flag.help.split(". ")[0].rstrip(".").removeprefix("The ")
    text = f"{text[:1].lower() if text[1:2].islower() else text[:1]}{text[1:]}"
    room = width - 2 - max(41, len(left)) - len(own) - len(default)
    return f"{left:<41} {textwrap.shorten(text, max(room, 20), placeholder='...')}{default}{own}"


def _family(names: Sequence[str]) -> str:
    return "topk kinds" if len(names) == 4 and "topk" in names else ", ".join(names)


def _wrapped(left: str, text: str, width: int) -> str:
    lines = textwrap.wrap(text, width - 42)
    return "\n".join([f"{left:<41} {lines[0]}", *(" " * 42 + line for line in lines[1:])])


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def main() -> None:
    """Write `sae_lens_flags.json` anew."""
    from sae_plugins.settings.introspection import introspect

    contents = introspect()
    FLAGS_FILE.write_text(json.dumps(contents, indent=1) + "\n", "utf-8")
    print(f"{FLAGS_FILE.name}: {len(contents['flags'])} flags of SAELens {contents['sae_lens']}")


if __name__ == "__main__":
    main()
