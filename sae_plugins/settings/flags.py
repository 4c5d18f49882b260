"""The table of the flags of `sae-plugins train`; no slow imports.

SAELens' own flags come from `sae_lens_flags.json`, because reading its dataclasses takes ten
seconds of CPU. After an upgrade of SAELens, write that file again::

    python -m sae_plugins.settings.introspection
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_plugins.framework.architectures import CALIBRATED, HAVING_A_FAST_STEP, SHARING_A_THRESHOLD
from sae_plugins.runs.dashboards import TRACKIO_PROJECT

FLAGS_FILE = Path(__file__).with_name("sae_lens_flags.json")
DASHBOARDS = ("log_to", "trackio_project")
"""Flags that are options of the recorder, too."""


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: as it is typed, without the dashes; also its key in a recipe.
        type: alternatives out of none, bool, int, float, choice, str, dict, list[int],
            list[int|none], list[str], list[choice], joined by " | "; a text is read as the first
            that fits.
        help: one or a few sentences.
        default: what applies where nothing else is said; None where that depends.
        group: whose it is: ours, such as "run", or SAELens' "runner", "sae", "logger" or
            "synthetic".
        choices: the words that a "choice" may be, or each of a list.
        architectures: the architectures that have it; empty for all.
        adds: whether its values add up where it is repeated; else the last one counts.
    """

    name: str
    type: str
    help: str
    default: Any = None
    group: str = ""
    choices: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    adds: bool = False

    @property
    def alternatives(self) -> list[str]:
        """The types that a value may have."""
        return self.type.split(" | ")

    @property
    def is_list(self) -> bool:
        """Whether several values may follow the flag."""
        return any(kind.startswith("list") for kind in self.alternatives)


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
            "plugin",
            "list[str]",
            "plugins or methods, or FILE.py:CLASS; repeatable; they replace a recipe's",
            (),
            "run",
            adds=True,
        ),
        Flag(
            "without",
            "list[str]",
            "mechanisms of a method to leave out; repeatable",
            (),
            "run",
            adds=True,
        ),
        Flag("architecture", "choice", "of the SAE", "standard", "run", architectures()),
        Flag("seed", "int", "orders the data, draws the weights, feeds every plugin", 42, "run"),
        Flag(
            "text_seed",
            "none | int",
            "orders the text, in place of --seed: runs of several seeds with one text_seed read "
            "the same batches, so that --activation_cache holds them once; each seed still mixes "
            "its buffer",
            group="run",
        ),
        Flag("output_path", "none | str", "folder of the run (default: in runs/)", group="run"),
        Flag("overwrite", "bool", "replace an earlier run in that folder", False, "run"),
        Flag("resume", "none | str", "folder of an unfinished run: go on with it", group="run"),
        Flag(
            "go_on",
            "bool",
            "the same command starts the run, goes on with it where it was stopped, and does "
            "nothing where it has ended; another run in its folder is refused",
            False,
            "run",
        ),
        Flag(
            "max_time",
            "none | str",
            "from the start of the command until it stops to go on later, such as 3h50m, 90min, 2d "
            "or 13800 (seconds): the step ends, a checkpoint is written, nothing is scored, and "
            "the exit code is 75, as after SIGUSR1",
            None,
            "run",
        ),
        Flag(
            "dry_run",
            "bool",
            "print what the run would be, what it needs, and about how long it takes, from a few "
            "steps; write nothing",
            False,
            "run",
        ),
        Flag(
            "profile",
            "bool",
            "measure where time and memory go, by plugin and event; slows a run on CUDA",
            False,
            "run",
        ),
        Flag(
            "dataset_revision",
            "none | str",
            "branch, tag or commit of a --dataset_path on the Hub; as now, and kept in run.yaml, "
            "where nothing is said",
            group="hub",
        ),
        Flag(
            "model_revision",
            "none | str",
            "branch, tag or commit of a --model_name on the Hub; as --dataset_revision",
            group="hub",
        ),
        Flag(
            "dataset_config",
            "none | str",
            "config of a --dataset_path that has several",
            group="data",
        ),
        Flag(
            "dataset_split",
            "none | str",
            "split of a --dataset_path (train); also a part, such as train[:1%], with --streaming "
            "false",
            group="data",
        ),
        Flag(
            "text_column",
            "none | str",
            "column of a --dataset_path that is read: text, tokens or, with --use_chat_formatting, "
            "chats (default: as SAELens, the first of tokens, input_ids, text and problem)",
            group="data",
        ),
        Flag("heldout_tokens", "int", "held-out tokens that score the SAE; 0: none", 50_000, "run"),
        Flag(
            "activation_cache",
            "none | str",
            "folder in which the language model's activations are kept, and taken from where a run "
            "of the same model, hook, text and seed has left them: bitwise the same, without the "
            "language model's passes",
            group="caching",
        ),
        Flag(
            "cache_budget",
            "str",
            "what the folder of --activation_cache may hold, such as 500MB or 2TB; a run that may "
            "need more is refused before it starts",
            "50GB",
            "caching",
        ),
        Flag("accumulate", "int", "batches whose mean gradient makes one update", 1, "training"),
        Flag("clip", "float | none", "bound of the gradient's norm", 1.0, "training"),
        Flag("weight_decay", "float", "of all weights", 0.0, "training"),
        Flag(
            "weight_decay_form",
            "choice",
            "decoupled, as in AdamW; coupled: with the gradient, as in Adam with an L2 penalty",
            "decoupled",
            "training",
            ("decoupled", "coupled"),
        ),
        Flag(
            "loss_form",
            "none | choice",
            "reconstruction loss of a token; none: SAELens' own, the sum of squares",
            None,
            "training",
            ("sum_of_squares", "l2_norm", "mean"),
        ),
        Flag(
            "calibrate_threshold",
            "bool",
            "set the threshold when training ends, such that k features per token are active on "
            "what follows in the buffer; SAELens' own lags behind, and more are active",
            True,
            "training",
            architectures=SHARING_A_THRESHOLD,
        ),
        Flag(
            "calibrate_l0",
            "float | none",
            "set the thresholds of the saved SAE, a JumpReLU SAE then, such that so many features "
            "per token are active on held-out text that does not score it, for which more of a "
            "--dataset_path is held out of the training; the SAE as it is without them lies in "
            "uncalibrated/",
            None,
            "training",
            architectures=CALIBRATED,
        ),
        Flag(
            "calibrate_tokens",
            "int",
            "tokens that set the thresholds; 4096 tell the L0 of others to a few per cent",
            4096,
            "training",
            architectures=CALIBRATED,
        ),
        Flag(
            "fast_step",
            "bool",
            "SAELens' step in fewer operations: equal to rounding, and not bit for bit",
            False,
            "training",
            architectures=HAVING_A_FAST_STEP,
        ),
        Flag(
            "matmul_precision",
            "none | choice",
            "of float32 products in the SAE's step; high: TF32 on a GPU; none: PyTorch's own",
            None,
            "training",
            ("highest", "high", "medium"),
        ),
        Flag(
            "lr_warm_up_fraction",
            "float | none",
            "--lr_warm_up_steps as a share of the run's steps",
            None,
            "training",
        ),
        Flag(
            "lr_decay_fraction",
            "float | none",
            "--lr_decay_steps, over which the rate falls to 0, as a share of the run's steps",
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
        Flag(
            "accept_changes",
            "bool",
            "with --resume: go on though the data, the model or the code has changed since, and "
            "note that with the SAE; else such a run is refused",
            False,
            "resuming",
        ),
        Flag(
            "data_shards",
            "none | int",
            "parts into which the text is cut, each with a share of a batch, so that as many ranks "
            "as divide them give the same SAE (default: 1; under torchrun 8, or as many as ranks)",
            None,
            "ranks",
        ),
        Flag(
            "check_ranks",
            "int",
            "steps after which the ranks compare their SAEs bit for bit; 0: never",
            100,
            "ranks",
        ),
        Flag(
            "rank_timeout",
            "float",
            "seconds that a rank waits for a sign of another",
            120.0,
            "ranks",
        ),
        Flag(
            "log_to",
            "none | list[choice]",
            "dashboards that get the rows of metrics.jsonl as they come, and scores at the end; "
            "extras: pip install 'sae-plugins[tensorboard]'",
            None,
            "dashboards",
            ("tensorboard", "trackio"),
        ),
        Flag(
            "trackio_project",
            "str",
            "what trackio calls the runs that belong together",
            TRACKIO_PROJECT,
            "dashboards",
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
    "is_dataset_tokenized": "the dataset's columns say so",
    "verbose": "`train` says itself what it does",
    "dead_feature_threshold": "SAELens does not use it any more",
    "log_activations_store_to_wandb": "SAELens does not use it any more",
    "log_optimizer_state_to_wandb": "SAELens does not use it any more",
    "sae_lens_version": "it is read from what is installed",
    "sae_lens_training_version": "it is read from what is installed",
}
"""SAELens' flags that `train` does not take, and why."""


@functools.cache
def all_flags() -> dict[str, Flag]:
    """Every flag of `train` by name, except the plugins' options."""
    return our_flags() | sae_lens_flags()
