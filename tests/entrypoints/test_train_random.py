"""Random command lines of `sae-plugins train`: each trains, or says which flag to change.

The command lines are drawn from the table of flags and from the options of the installed plugins,
by their types and bounds, so that a new flag, option or plugin is drawn by itself.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shlex
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Plugin
from sae_plugins.framework.resolve import choose
from sae_plugins.runs.recorder import Recorder
from sae_plugins.settings.choice import option_value
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.flags import Flag, all_flags, architectures
from sae_plugins.settings.uses import does_not_apply
from sae_plugins.settings.values import BOUNDS, convert

STEPS = 5
BASE = {
    "training_tokens": "160",
    "train_batch_size_tokens": "32",
    "heldout_tokens": "64",
    "d_sae": "16",
    "n_batches_for_norm_estimate": "2",
}
WORLD = {"context_size": "16", "store_batch_size_prompts": "4", "n_batches_in_buffer": "16"}
SYNTHETIC = {"eval_samples": "64"}
MODELS = {"sae-plugins-world": WORLD, "synthetic:toy": SYNTHETIC, "synthetic:small": SYNTHETIC}
WITH_K = all_flags()["k"].architectures

# -- what is drawn -----------------------------------------------------------------------------

NOT_DRAWN = {
    # drawn by name in `command_lines`, or fixed in `holds`
    *("output_path", "overwrite", "architecture", "model_name", "plugin", "without"),
    "recipe",  # a file of other flags; see test_errors
}
LONG_RUNS = {
    "training_tokens": ["1", "31", "32", "33", "96", "159", "161"],
    "heldout_tokens": ["1", "63", "500"],
    "eval_samples": ["1", "31", "500"],
    "n_batches_for_norm_estimate": ["1", "7"],
    "n_eval_batches": ["1", "3"],
    "max_iterations": ["1", "3", "100"],
}
"""Flags whose large values are legitimate and take hours, so that only small ones are drawn."""
WORDS = {
    "device": ["cpu", "cpu:0", "cuda", "cuda:9", "mps", "meta"],
    "llm_device": ["cpu", "cuda:9", "meta"],
    "act_store_device": ["cpu", "with_model", "cuda:9", "meta"],
    "hook_name": [
        *("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"),
        *(
            "blocks.1.hook_resid_pst",
            "blocks.9.hook_resid_post",
            "hook_embed",
            "ln_final.hook_scale",
        ),
        *("blocks.0.attn.hook_pattern", "unembed", "blocks.0.attn.hook_q"),
    ],
    "log_to_wandb": ["false"],  # true would take seconds, or a server
    # compiling takes a minute
    "compile_llm": ["false"],
    "compile_sae": ["false"],
}
"""What is drawn of a flag besides, or instead of, what its type suggests."""
LIVELY = {
    "activation-threshold.base": "0.05",
    "activation-threshold.start": "1",
    "coactivation-penalty.fraction": "0.1",
    "coactivation-penalty.target": "0.5",
    "decoder-orthogonality.mask": "adaptive",
    "decoder-orthogonality.start": "1",
    "decoder-orthogonality.threshold": "0.1",
    "firing-window.window": "2",
    "merge.every": "2",
    "merge.stop": "none",
    "merge.threshold": "0.3",
    "reconstruction-l1.target": "0.5",
    "reconstruction-warm-up.steps": "1",
    "reorder.interval": "2",
    "reorder.start": "1",
    "reorder.window": "2",
    "resample.per": "token",
    "resample.stop": "none",
    "resample.threshold": "0.5",
}
"""Options with which the mechanisms act within the run, where they would not by themselves."""
OPENING = [
    *[{}] * 6,
    {"lr_scheduler_name": "cosineannealing"},
    {"lr_scheduler_name": "cosineannealingwarmrestarts"},
    {"n_checkpoints": "1"},
    {"jumprelu_sparsity_loss_mode": "tanh", "architecture": "jumprelu"},
]
"""Flags without which others would not be used."""
INSTEAD = ("log_to_wandb", "compile_llm", "compile_sae")

INTEGERS = ["-1", "0", "1", "2", "3", "5", "16", "17", "1000000000000", "1" + "0" * 30]
NUMBERS = [
    *("-1", "0", "-0.0", "1e-30", "0.001", "0.5", "0.999", "1", "1.5", "4", "1e6", "1e30", "1e300"),
    *("nan", "inf", "-inf"),
]
NO_NUMBERS = ["", "abc", "1,5", "none", "true", "0x10", "1e", "\u0664"]
TEXTS = [
    "",
    "nowhere",
    "no where",
    "../nowhere",
    "/dev/null",
    ".",
    "a/b:c",
    "\u00fc\u2603",
    "none",
    "-",
]
DICTS = ["{}", '{"a": 1}', '{"trust_remote_code": true}', "[1]", "{", "none", ""]
LISTS = ["4 8 16", "8,4", "[2, 16]", "0", "-1", "1 2 3 4", "none 3", "none", "", "1.5", "2 2", "99"]


def bounds_of(name: str) -> list[str]:
    """The ends of a flag's bounds, and what is a little outside."""
    ends = BOUNDS.get(name, {}).values()
    return [f"{value:.12g}" for end in ends for value in (end - 1, end, end + 1, end - 1e-3)]


def texts_of(kind: str, choices: tuple[str, ...]) -> list[str]:
    """Values, good and bad, of a type as `Flag.type` spells it."""
    return {
        "none": ["none", "None"],
        "bool": ["true", "false", "yes", "1", "maybe", ""],
        "int": [*INTEGERS, *NO_NUMBERS, "5.5", "nan"],
        "float": [*NUMBERS, *NO_NUMBERS],
        "choice": [*choices, choices[0][:-1] if choices else "", "", "NONE"],
        "dict": DICTS,
        "str": TEXTS,
        "list[int]": LISTS,
        "list[int|none]": LISTS,
        "list[str]": TEXTS,
        "list[choice]": [*choices, choices[0][:-1] if choices else "", ""],
    }[kind]


def values_of(flag: Flag) -> list[str]:
    """What is drawn of a flag."""
    words = WORDS.get(flag.name, [])
    if flag.name in INSTEAD:
        return words
    kinds = [text for kind in flag.alternatives for text in texts_of(kind, flag.choices)]
    if flag.name in LONG_RUNS:
        kinds = [text for text in kinds if not re.fullmatch(r"\d+|1e.*", text) or text == "0"]
        words = LONG_RUNS[flag.name]
    none = (None, (), [], {})
    default = [] if flag.default in none or flag.name in LONG_RUNS else [str(flag.default)]
    return list(dict.fromkeys([*words, *default, *kinds, *bounds_of(flag.name)]))


def texts_of_option(annotation: Any) -> list[str]:
    """Values, good and bad, of a pydantic field's type."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return texts_of("choice", tuple(str(part) for part in parts))
    if origin in (typing.Union, types.UnionType):
        return [text for part in parts for text in texts_of_option(part)]
    kinds = {bool: "bool", int: "int", float: "float", type(None): "none", dict: "dict"}
    return texts_of(kinds.get(origin or annotation, "str"), ()) + (LISTS if origin else [])


def values_of_option(field: Any) -> list[str]:
    """What is drawn of a plugin's option: by its type, and around its bounds."""
    ends = [
        getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if isinstance(bound, getattr(annotated_types, name.capitalize()))
    ]
    near = [f"{value:g}" for end in ends for value in (end - 1, end, end + 1, end - 1e-3)]
    return list(dict.fromkeys([*near, *texts_of_option(field.annotation)]))


@functools.cache
def installed() -> dict[str, tuple[str, ...]]:
    """The mechanisms that each installed plugin or method, by name, brings and requires."""
    return {name: tuple(choose([name]).plugins) for name in registry.installed()}


@functools.cache
def options() -> dict[str, list[str]]:
    """What is drawn of each option of the installed mechanisms, by "plugin.option"."""
    names = {mechanism for mechanisms in installed().values() for mechanism in mechanisms}
    plugins = [typing.cast(type[Plugin], registry.load(name)) for name in sorted(names)]
    return {
        f"{plugin.name}.{name}": values_of_option(field)
        for plugin in (*plugins, Recorder)
        for name, field in plugin.Options.model_fields.items()
    }


@functools.cache
def fits(name: str, value: str) -> bool:
    """Whether a value of a flag, or of an option, is right in itself."""
    plugin, dot, option = name.partition(".")
    if dot:
        loaded = typing.cast(
            type[Plugin], Recorder if plugin == "recorder" else registry.load(plugin)
        )
        field = loaded.Options.model_fields[option]
        alone = create_model("Alone", value=(field.annotation, field))
        try:
            alone(value=option_value(loaded.Options, option, value))
        except ValidationError:
            return False
        return True
    try:
        convert(all_flags()[name], value)
    except SaePluginsError:
        return False
    return True


Line = tuple[str, ...]


@st.composite
def command_lines(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Line:
    """What follows `sae-plugins train`: a run of five steps, and one to six perturbations."""
    model = draw(st.sampled_from([*MODELS] * 30 + ["synthetic:toi", "nowhere"]))
    architecture = draw(st.sampled_from([*architectures()] * 10 + ["topkk"]))
    given = {"model_name": model, **BASE, **MODELS.get(model, {}), "architecture": architecture}
    if architecture in WITH_K:
        given["k"] = "4"
    given |= draw(st.sampled_from(OPENING))
    value = {name: flag.default for name, flag in all_flags().items()} | given
    plugins = draw(st.lists(st.sampled_from([*installed()]), max_size=4, unique=True))
    brought = list(dict.fromkeys(name for plugin in plugins for name in installed()[plugin]))
    given |= {name: value for name, value in LIVELY.items() if name.split(".")[0] in brought}
    without = draw(st.sampled_from([[]] * 30 + [["nan-guard"], ["recorder"], brought[:1]]))
    flags = {
        name: flag
        for name, flag in all_flags().items()
        if name not in NOT_DRAWN
        # flags that other runs use would only be refused
        and (does_not_apply(flag, value.get) is None or draw(rarely))
    }
    applying = [name for name in options() if name.split(".")[0] in (*brought, "nan-guard")]
    count = draw(st.sampled_from([0, 1, 1, 2, 2, 3, 4, 6]))
    drawn = st.sampled_from([*flags] + applying * 2)
    names = draw(st.lists(drawn, min_size=count, max_size=count, unique=True))
    for name in names:
        values = options()[name] if "." in name else values_of(flags[name])
        # most values are wrong in themselves, and one such hides what is wrong with the others
        fitting = [value for value in values if fits(name, value)]
        given[name] = draw(st.sampled_from(draw(st.sampled_from([values, fitting, fitting]))))
    words = [f"--plugin={name}" for name in plugins] + [f"--without={name}" for name in without]
    for name, value in given.items():
        many = name in flags and flags[name].is_list and draw(st.booleans())
        words += [f"--{name}", *value.split()] if many else [f"--{name}={value}"]
    return tuple(words)


rarely = st.sampled_from([False] * 9 + [True])

# -- what must hold ----------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The models and texts are made once, no figure is rendered, and nothing reaches outside."""
    from datasets import Dataset

    from sae_plugins import world
    from sae_plugins.base import plots

    load_text = functools.cache(world.load_text)
    model = functools.cache(world.load_hooked_transformer)

    def few(split: typing.Literal["train", "heldout"]) -> Dataset:
        return load_text(split, documents=300)

    def save(_: Any, path: Path) -> None:
        path.write_bytes(b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "load_text", few)
        patch.setattr(world, "load_hooked_transformer", model)
        patch.setattr(plots, "save", save)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield


def holds(line: Line) -> None:
    """The command trains and leaves a SAE, or names what to change before it trains."""
    shutil.rmtree("run", ignore_errors=True)
    words = ("train", *line, "--output_path=run")
    command = shlex.join(("sae-plugins", *words))
    out, err = io.StringIO(), io.StringIO()
    before = set(os.listdir())
    try:
        with trained() as steps, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except Exception as error:
        raise AssertionError(f"{command}\n{type(error).__name__} escapes: {error}") from error
    said = err.getvalue()
    context = f"{command}\nexit code {code}\n{said[-3000:]}"
    assert "Traceback" not in said, context
    if code == 0:
        if not train_flags(list(line)).get("dry_run"):
            check_run(Path("run"), context)
        return
    assert code in (1, 2), context
    assert (code == 1) == bool(steps), f"{'trained' if steps else 'did not train'}: {context}"
    # what went wrong in training may not be the fault of what was drawn
    names = line if code == 2 else (*line, *(f"--{name}" for name in all_flags()))
    assert names_a_flag(said, names), f"no flag is named: {context}"
    if code == 2:
        assert set(os.listdir()) == before, context


def names_a_flag(said: str, line: Line) -> bool:
    """Whether a message names one of the line's flags or options, or a plugin that it chooses."""
    message = said.rpartition("sae-plugins train: error: ")[2]
    typed = [word[2:].partition("=")[0] for word in line if word.startswith("--")]
    plugins = [word.partition("=")[2] for word in line if word.startswith(("--plugin", "--with"))]
    named = [rf"--{re.escape(name)}\b" for name in typed]
    named += [rf"(plugin|methods) '{re.escape(name)}'" for name in plugins]
    return any(re.search(pattern, message) for pattern in named)


def check_run(run: Path, context: str) -> None:
    """A run's folder is whole: a SAE that loads, a summary, and a recipe that is understood."""
    from sae_lens import SAE

    from sae_plugins.settings.settle import settle

    SAE.load_from_disk(str(run))
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    settled = settle({"recipe": str(run / "run.yaml"), "output_path": "again"})
    assert settled.total_steps <= summary["training/steps"] <= settled.total_steps + 1, context


@contextlib.contextmanager
def trained() -> Iterator[list[int]]:
    """Whether training begins: a list that is empty if it does not."""
    from sae_lens.training.sae_trainer import SAETrainer

    begun: list[int] = []
    fit = SAETrainer.fit

    def noting(trainer: Any) -> Any:
        begun.append(1)
        return fit(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAETrainer, "fit", noting)
        yield begun


COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--model_name=nowhere --normalize_activations=expected_average_only_in",
            "--model_name nowhere needs --hook_name",
        ),
        ("--hook_name=blocks.0.attn.hook_pattern", "has no vector per token"),
        ("--hook_head_index=1", "--hook_head_index 1: blocks.1.hook_resid_post has no heads"),
        ("--sequence_separator_token=1000000000000", "the tokens of sae-plugins-world are 0 to"),
        ("--exclude_special_tokens=99999", "--exclude_special_tokens 99999: the tokens of"),
        ("--use_chat_formatting --dataset_path=x", "has no chat template"),
        ("--seqpos_slice=0", "--seqpos_slice 0 leaves none of the --context_size 16 positions"),
        ("--reshape_activations=hook_z", "is for a --hook_name that ends in hook_z"),
        ("--device=meta", "--device meta cannot be used"),
        ("--device=cpu:0", "give --device cpu"),
        ("--llm_device=banana", "--llm_device banana cannot be used"),
        ("--act_store_device=meta", "--act_store_device meta cannot be used"),
        ("--resume_from_checkpoint=.", " lacks sae_weights.safetensors"),
        ("--from_pretrained_path=nowhere", "--from_pretrained_path nowhere is no folder"),
        ("--use_cached_activations", "needs --cached_activations_path FOLDER"),
        ("--use_cached_activations --cached_activations_path=nowhere", "nowhere is no folder"),
        ('--model_kwargs={"a":1}', "--model_kwargs {'a': 1} do not suit the model"),
        (
            "--d_sae=10000000000",
            "TB for the SAE with its gradients and Adam's moments (--d_sae 10000000000)",
        ),
        ("--n_batches_in_buffer=1000000000000", "(--n_batches_in_buffer 1000000000000)"),
        ("--store_batch_size_prompts=1000000000000", "(--store_batch_size_prompts 1000000000000)"),
        ("--architecture=topk --k=4 --use_sparse_activations", "cannot train topk SAEs"),
        ("--architecture=jumprelu --jumprelu_sparsity_loss_mode=quadratic", "needs --target_l0"),
        (
            "--architecture=jumprelu --jumprelu_sparsity_loss_mode=quadratic --target_l0=99",
            "SAELens refuses these settings: --target_l0 must be less",
        ),
        ("--model_name=synthetic:toy --dtype=float64", "--dtype float64: SAELens compares"),
        ("--model_name=synthetic:toy --reshape_activations=hook_z", "--reshape_activations"),
        (
            "--plugin=reorder --reorder.window=1000000000000",
            "--reorder.window 1000000000000: it must be at most",
        ),
    ],
)
def test_what_was_found(line: str, message: str, capsys: pytest.CaptureFixture[str]):
    """Command lines that once ended in a traceback, took all memory, or named no flag."""
    typed = line.split()
    model = next((w[13:] for w in typed if w.startswith("--model_name=")), "sae-plugins-world")
    base = {**BASE, **MODELS.get(model, {})}
    words = [f"--{name}={value}" for name, value in base.items()]
    assert main(["train", *words, *typed, "--output_path=run"]) == 2
    assert message in capsys.readouterr().err
    holds((*words, *typed))


@settings(COMMON, max_examples=12, derandomize=True)
@given(command_lines())
def test_random_command_lines(line: Line):
    holds(line)


@pytest.mark.ci
@settings(COMMON, max_examples=30, derandomize=True)
@given(command_lines())
def test_more_random_command_lines(line: Line):
    holds(line)


@pytest.mark.slow
@seed(int(os.environ.get("SAE_PLUGINS_SEED", "1")))
@settings(COMMON, max_examples=int(os.environ.get("SAE_PLUGINS_EXAMPLES", "500")))
@given(command_lines())
def test_many_random_command_lines(line: Line):
    holds(line)
