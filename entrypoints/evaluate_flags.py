"""The command line of `sae-plugins evaluate`: its flags, read and explained; no slow imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints import terminal
from sae_plugins.settings.command_line import take
from sae_plugins.settings.flags import Flag

PRESETS = ("canonical", "quick", "paper")
"""`suite.PRESETS`, without its imports; a test compares them."""
SEEDS = 2**32
"""numpy takes no seeds from here on."""

_BOOLEANS = ("true", "false", "yes", "no")

FLAGS = {
    flag.name: flag
    for flag in (
        Flag("suite", "list[str]", "suites to run; repeatable (default: all those below)"),
        Flag(
            "preset",
            "choice",
            "canonical: SAEBench's own settings, hours for Gemma-2-2B; quick: much less data, "
            "minutes, for a first look; paper: what the papers of the methods report (default "
            "quick for SAEs of the embedded model, canonical for others)",
            choices=PRESETS,
        ),
        Flag("seed", "list[int]", "one or more; each is a row of its own", 42),
        Flag("output_path", "str", "folder of the results; what is there already is kept and not "
             "computed again", "evaluations"),
        Flag("data", "str | none", "where the suites' data come from: world (embedded, offline), "
             "hub (the Hugging Face Hub), or a folder (default: what suits the model)"),
        Flag("device", "str | none", "cpu, cuda, cuda:1 (default: cuda if there is one)"),
        Flag("cache_path", "str | none", "folder of activations and probes of language models, "
             "which all SAEs share (default: sae-plugins/evaluation in the user's cache folder)"),
        Flag("exact", "bool", "switch off every shortcut that can move a number",
             False),
        Flag("dry_run", "bool", "say what would be done, and about what it takes; do nothing",
             False),
        Flag("list", "bool", "print each suite's metrics and settings, and what they mean", False),
    )
}  # fmt: skip


def parse(
    arguments: Sequence[str],
) -> tuple[list[str], dict[str, Any], dict[str, list[str]]]:
    """SAEs, values by flag, and texts by suite's setting ("core.context_size").

    SAEs come first, or after the value of a flag that takes just one.

    Raises:
        SaePluginsError: an unknown flag, a missing or an unfit value.
    """
    from sae_plugins.settings.values import convert  # which imports pydantic

    sources: list[str] = []
    given: dict[str, Any] = {}
    settings: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        if not rest[0].startswith("--"):
            sources.append(rest.pop(0))
            continue
        name, values = take(rest)
        flag = FLAGS.get(name)
        if "." in name:
            settings[name] = values or ["true"]
        elif flag is None:
            raise SaePluginsError(_unknown_flag(name))
        elif flag.is_list and values:
            words = [word for value in values for word in value.split(",") if word]
            more = words if name == "suite" else convert(flag, words)
            given[name] = [*given.get(name, []), *more]
        elif flag.type == "bool" and (not values or values[0].lower() not in _BOOLEANS):
            given[name] = True
            sources += values
        elif not values:
            raise SaePluginsError(f"--{name} needs a value: --{name} VALUE")
        else:
            given[name] = convert(flag, values[0])
            sources += values[1:]
    _check_seeds(given.get("seed", []))
    return sources, given, settings


def _check_seeds(seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise SaePluginsError(f"--seed {seed}: it must be at least 0 and less than {SEEDS}")
        if seeds.count(seed) > 1:
            raise SaePluginsError(f"--seed {seed} is given twice: name each seed once")


def _unknown_flag(name: str) -> str:
    from sae_plugins.base.errors import did_you_mean

    near = did_you_mean(f"--{name}", [f"--{known}" for known in FLAGS])
    if near.startswith("known:"):
        near = "`sae-plugins evaluate --help` lists all flags"
    return f"there is no flag --{name}: {near}"


# -- help ----------------------------------------------------------------------------------------

_INTRODUCTION = """\
usage: sae-plugins evaluate SAE... [--suite NAME...] [--preset canonical|quick|paper] [flags]

Evaluate SAEs with SAEBench: reconstruction, feature absorption, spurious correlation removal and
sparse probing; SAEs of synthetic models against the ground truth. An SAE is the folder of a run,
any folder that SAELens or dictionary_learning saved, or RELEASE:SAE_ID from the Hugging Face Hub.

examples:
  sae-plugins evaluate runs/demo                                 minutes, and offline for the demos
  sae-plugins evaluate runs/a runs/b --suite core absorption --seed 42 43 44
  sae-plugins evaluate runs/a --suite core --core.context_size 64
  sae-plugins evaluate runs/a --suite sparse-probing --sparse-probing.k_values 1 5
  sae-plugins evaluate gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical --dry_run
  sae-plugins evaluate --list --suite core                       metrics and settings, explained

The same command again computes only what is missing or has failed. Evaluate SAEs of one hook
together: they share what is computed of the language model alone. Exit code: 0 all is well (a suite
that does not apply to an SAE says so), 1 a row has failed, 2 something is to be changed.
"""

_SETTINGS = """\
the suites' settings:
  --SUITE.SETTING VALUE..., as in --core.context_size 64; `sae-plugins evaluate --list` shows them.
"""


def help_text(width: int | None = None) -> str:
    """What `sae-plugins evaluate --help` prints."""
    from sae_plugins.eval_suites.registry import summaries

    width = min(width or terminal.width(), 120)
    about = summaries()
    column = max(map(len, about)) + 4
    suites = [_line(f"  {name}", text, column, width) for name, text in about.items()]
    flags = [_line(_left(flag), _text(flag), 35, width) for flag in FLAGS.values()]
    return "\n".join([_INTRODUCTION, "suites:", *suites, "", "flags:", *flags, "", _SETTINGS])


def _line(left: str, text: str, column: int, width: int) -> str:
    return terminal.in_columns(left, text, column, max(width - column, 30))


def _left(flag: Flag) -> str:
    kinds = {"suite": "NAME...", "seed": "N...", "device": "NAME", "data": "world|hub|FOLDER"}
    kind = kinds.get(flag.name, "" if flag.type == "bool" else "WORD" if flag.choices else "DIR")
    return f"  --{flag.name} {kind}".rstrip()


def _text(flag: Flag) -> str:
    return flag.help + (f" (default {flag.default})" if flag.default else "")
