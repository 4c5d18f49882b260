"""The flags of `sae-plugins train`: one table, their parser and their help; no slow imports.

SAELens' own flags come from `sae_lens_flags.json`, because reading its dataclasses takes ten
seconds of CPU. After an upgrade of SAELens, write that file anew::

    python -m sae_plugins.entrypoints.flags
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    rows = [{k: tuple(v) if k in _TUPLES else v for k, v in r.items()} for r in _file()["flags"]]
    return {row["name"]: Flag(**row) for row in rows}


_TUPLES = ("choices", "architectures")


@functools.cache
def our_flags() -> dict[str, Flag]:
    """Our own flags by name, in the order in which help shows them."""
    flags = (
        Flag("recipe", "str", "a packaged recipe by name, or a file: flags from YAML", group="run"),
        Flag("plugin", "list[str]", "a plugin or method; repeatable; replaces a recipe's", (), "run"),
        Flag("without", "list[str]", "leave out a mechanism of a method; repeatable", (), "run"),
        Flag("architecture", "choice", "of the SAE", "standard", "run", architectures()),
        Flag("seed", "int", "orders the data, draws the weights, feeds every plugin", 42, "run"),
        Flag("output_path", "str | none", "folder of the run (default: in runs/)", group="run"),
        Flag("overwrite", "bool", "replace an earlier run in that folder", False, "run"),
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
    )
    return {flag.name: flag for flag in flags}


REFUSED = {
    "dataset_trust_remote_code": "sae-plugins never runs code that comes with a dataset",
    "hook_eval": "SAELens does not use it any more",
    "sae_lens_version": "it is read from what is installed",
    "sae_lens_training_version": "it is read from what is installed",
}
"""SAELens' flags that `train` does not take, and why."""


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
    text = _as_text(value)
    try:
        return _read_as(flag.alternatives, flag.choices, text)
    except ValueError:
        wanted = f"it must be {' or '.join(_in_words(flag))}"
        if "choice" in flag.alternatives:
            wanted = _suggest(text, flag.choices)
        raise UsageError(f"{where}--{flag.name} {text!r}: {wanted}") from None


def _as_text(value: Any) -> str:
    """YAML's value as the command line would have it."""
    if isinstance(value, (list, tuple)):
        return " ".join(_as_text(item) for item in value)
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
    from sae_plugins.plugin import did_you_mean  # imports pydantic, which only errors need

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
    arguments: Sequence[str], options_of: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: ()
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
  sae-plugins train --plugin hybrid-order
  sae-plugins train --plugin hybrid-order --reorder.interval 250 --without input-norm-l1
  sae-plugins train --recipe hybrid-order-demo --seed 1 --output_path runs/demo-1
  sae-plugins train --plugin reorder --model_name synthetic:toy --architecture batchtopk --k 8
  sae-plugins train --recipe runs/demo-1/run.yaml --output_path runs/again    # the same, bit for bit
  sae-plugins train --plugin hybrid-order --model_name gpt2 --hook_name blocks.6.hook_resid_post \\
      --dataset_path NeelNanda/pile-10k --d_sae 6144 --training_tokens 10_000_000

A method's settings override the defaults, a recipe's those, and flags override all of them.
"""

_PLUGIN_OPTIONS = """\
the plugins' options:
  --MECHANISM.OPTION VALUE, as in --reorder.interval 250. `sae-plugins plugins list` shows the
  plugins, and `sae-plugins plugins show reorder` the options of one.
"""

_GROUPS = {
    "run": "what to run:",
    "training": "training settings that SAELens lacks (a method may set them):",
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
    for group, title in _GROUPS.items():
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
    if flag.group in ("run", "training"):
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


# -- reading SAELens' dataclasses ---------------------------------------------------------------

_OWN_HELP = {
    "model_name": "A TransformerLens model, synthetic:PRESET, or sae-plugins-world, the default.",
    "hook_name": "Where in the model; as in TransformerLens.",
    "dataset_path": "A dataset on the Hugging Face Hub, or a folder with one.",
    "hook_head_index": "The head, where the hook has several.",
    "training_tokens": "Tokens to train on.",
    "context_size": "Tokens in a prompt.",
    "streaming": "Stream the dataset.",
    "device": "Where the SAE and the model live: cpu, cuda, cuda:1, mps.",
    "checkpoint_path": "Where checkpoints go (in the run's folder).",
    "d_in": "Size of the activations; read from the model, and an error if it differs.",
    "d_sae": "Number of features (4 x d_in).",
    "dtype": "Data type of the SAE and of the activations.",
    "n_batches_in_buffer": "Prompts whose activations are mixed in the buffer.",
    "apply_b_dec_to_input": "Subtract the decoder's bias from the input.",
    "normalize_activations": "How activations are scaled before the SAE sees them.",
    "reshape_activations": "hook_z: concatenate the heads of an attention output.",
    "l1_coefficient": "Weight of the L1 sparsity loss.",
    "lp_norm": "The norm of the sparsity loss.",
    "l1_warm_up_steps": "Steps over which the L1 coefficient grows from 0.",
    "k": "Active features per token.",
    "use_sparse_activations": "Sparse tensors for activations.",
    "aux_loss_coefficient": "Weight of the loss that revives dead features.",
    "rescale_acts_by_decoder_norm": "As if the decoder had unit norm.",
    "topk_threshold_lr": "Learning rate of the threshold.",
    "matryoshka_widths": "Widths of the nested levels (an 8th, a 4th, half, all).",
    "save_synthetic_model": "Save the synthetic model in the run's folder.",
    "run_final_eval": "Compare the SAE with the true features when it is trained.",
    "log_to_wandb": "Log to Weights & Biases.",
    "log_activations_store_to_wandb": "Log the activation store too.",
    "log_optimizer_state_to_wandb": "Log the optimizer's state too.",
    "log_weights_to_wandb": "Upload the weights as an artifact.",
    "wandb_project": "The project to log to.",
    "wandb_id": "The run's id.",
    "run_name": "The run's name on Weights & Biases.",
    "wandb_entity": "The user or team to log to.",
    "wandb_log_frequency": "Steps between logged steps.",
    "eval_every_n_wandb_logs": "Logged steps between evaluations, on held-out text.",
    "model_class_name": "How the model is loaded.",
    "lr_scheduler_name": "The schedule after the warm-up.",
}
"""Where SAELens says nothing, or too much, or `train` differs."""
_OWN_DEFAULTS = {
    "log_to_wandb": False,
    "model_name": None,
    "hook_name": None,
    "checkpoint_path": None,
    "device": None,
}
_OWN_CHOICES = {
    "lr_scheduler_name": ("constant", "cosineannealing", "cosineannealingwarmrestarts"),
    "model_class_name": ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM"),
    "dtype": ("float32", "float64", "float16", "bfloat16"),
}
_ELSEWHERE = {"sae", "logger", "metadata", "synthetic_model", "output_path", "seed", *REFUSED}
SYNTHETIC_NAMES = {
    "training_tokens": "training_samples",
    "train_batch_size_tokens": "batch_size",
    "autocast": "autocast_sae",
}
"""Flags that SAELens' synthetic runner spells differently."""


def introspect() -> dict[str, Any]:
    """The contents of `sae_lens_flags.json`, read from the installed SAELens."""
    from sae_lens import __version__
    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
    from sae_lens.synthetic import SyntheticSAERunnerConfig

    runner = _flags_of(LanguageModelSAERunnerConfig, "runner")
    synthetic = _flags_of(SyntheticSAERunnerConfig, "synthetic")
    renamed = set(SYNTHETIC_NAMES.values())
    by_architecture = {
        name: _flags_of(config, "sae") for name, (_, config) in SAE_TRAINING_CLASS_REGISTRY.items()
    }
    flags = dict(runner)  # what the runner shares with the SAE and with the synthetic runner is its
    for more in (_merged(by_architecture), synthetic, _flags_of(LoggingConfig, "logger")):
        flags |= {name: f for name, f in more.items() if name not in flags | dict.fromkeys(renamed)}
    return {
        "sae_lens": __version__,
        "architectures": list(by_architecture),
        "flags": [_row(flag) for flag in flags.values()],
    }


def _row(flag: Flag) -> dict[str, Any]:
    row = {k: list(v) if k in _TUPLES else v for k, v in asdict(flag).items()}
    return {name: value for name, value in row.items() if value not in (None, [])}


def _changed(flag: Flag, **changes: Any) -> Flag:
    return Flag(**{**asdict(flag), **changes})


def _merged(by_architecture: Mapping[str, Mapping[str, Flag]]) -> dict[str, Flag]:
    """One flag per name, with the architectures that have it; types are united."""
    merged: dict[str, Flag] = {}
    for flags in by_architecture.values():
        for name, flag in flags.items():
            known = merged.setdefault(name, flag)
            kinds = sorted({*known.alternatives, *flag.alternatives}, key=_ORDER.index)
            merged[name] = _changed(known, type=" | ".join(kinds))
    for name, flag in merged.items():
        owners = tuple(owner for owner, flags in by_architecture.items() if name in flags)
        if len(owners) < len(by_architecture):
            merged[name] = _changed(flag, architectures=owners)
    return merged


def _flags_of(config: Any, group: str) -> dict[str, Flag]:
    import dataclasses

    help_of = _argument_docs(config)
    flags: dict[str, Flag] = {}
    for field in dataclasses.fields(config):
        if field.name in _ELSEWHERE:
            continue
        choices = _OWN_CHOICES.get(field.name) or _choices(field.type)
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = None if made is dataclasses.MISSING else made()
        default = _OWN_DEFAULTS.get(field.name, default)
        flags[field.name] = Flag(
            field.name,
            _type_of(field.type, bool(choices)),
            _OWN_HELP.get(field.name) or help_of.get(field.name, ""),
            list(default) if isinstance(default, tuple) else default,
            group,
            choices,
        )
    return flags


def _choices(annotation: Any) -> tuple[str, ...]:
    import typing

    if typing.get_origin(annotation) is typing.Literal:
        return tuple(str(word) for word in typing.get_args(annotation))
    nested = (_choices(part) for part in typing.get_args(annotation))
    return tuple(word for words in nested for word in words)


_ORDER = ["none", "bool", "int", "float", "dict", "list[int]", "list[int|none]", "choice", "str"]


def _type_of(annotation: Any, has_choices: bool) -> str:
    import types
    import typing

    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal or (has_choices and annotation is str):
        return "choice"
    if origin in (typing.Union, types.UnionType):
        kinds = {_type_of(part, has_choices) for part in parts}
        return " | ".join(sorted(kinds, key=_ORDER.index))
    if origin is list:
        return "list[int]"
    if origin is tuple:
        return "list[int|none]"
    if origin is dict:
        return "dict"
    return "none" if annotation is type(None) else annotation.__name__


def _argument_docs(config: Any) -> dict[str, str]:
    """The descriptions in the "Args:" or "Attributes:" of a class's docstring and its parents'."""
    docs: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        name = ""
        for line in textwrap.dedent(parent.__dict__.get("__doc__") or "").splitlines():
            start = re.match(r" {4}(\w+)(?: \(.*?\))?: (.*)", line)
            if start:
                name, docs[start[1]] = start[1], start[2].strip()
            elif name and line.startswith(" " * 8) and not line.strip().startswith("-"):
                docs[name] += " " + line.strip()
            else:
                name = ""
    return docs


def main() -> None:
    """Write `sae_lens_flags.json` anew."""
    FLAGS_FILE.write_text(json.dumps(introspect(), indent=1) + "\n", "utf-8")
    print(f"{FLAGS_FILE.name}: {len(introspect()['flags'])} flags of SAELens")


if __name__ == "__main__":
    main()
