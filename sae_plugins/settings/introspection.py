"""SAELens' flags, read from its dataclasses: writes `sae_lens_flags.json`.

After an upgrade of SAELens::

    python -m sae_plugins.settings.introspection
"""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sae_plugins.base.saelens import SYNTHETIC_NAMES
from sae_plugins.runs.language_models.kwargs import CLASSES
from sae_plugins.settings.flags import FLAGS_FILE, REFUSED, TUPLES, Flag

_OWN_HELP = {
    "model_name": "A model of TransformerLens or the Hub, a folder with one, synthetic:PRESET, or "
    "sae-plugins-world, the default.",
    "hook_name": "Where in the model; as in TransformerLens.",
    "dataset_path": "A dataset on the Hugging Face Hub, a file (.jsonl, .txt, .parquet, ...), "
    "or a folder.",
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
    "log_weights_to_wandb": "Upload the weights as an artifact.",
    "wandb_project": "The project to log to.",
    "wandb_id": "The run's id.",
    "run_name": "The run's name on Weights & Biases.",
    "wandb_entity": "The user or team to log to.",
    "wandb_log_frequency": "Steps between logged steps.",
    "eval_every_n_wandb_logs": "Logged steps between evaluations, on held-out text.",
    "model_class_name": "How the model is loaded; AutoModelForCausalLM has the names of Hugging "
    "Face's modules as hooks, such as model.layers.6.",
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
    "model_class_name": CLASSES,
    "dtype": ("float32", "float64", "float16", "bfloat16"),
}
_ELSEWHERE = {"sae", "logger", "metadata", "synthetic_model", "output_path", "seed", *REFUSED}


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
    row = {k: list(v) if k in TUPLES else v for k, v in asdict(flag).items() if k != "adds"}
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
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(str(word) for word in typing.get_args(annotation))
    nested = (_choices(part) for part in typing.get_args(annotation))
    return tuple(word for words in nested for word in words)


_ORDER = ["none", "bool", "int", "float", "dict", "list[int]", "list[int|none]", "choice", "str"]


def _type_of(annotation: Any, has_choices: bool) -> str:
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
    """Write `sae_lens_flags.json` again."""
    contents = introspect()
    FLAGS_FILE.write_text(json.dumps(contents, indent=1) + "\n", "utf-8")
    print(f"{FLAGS_FILE.name}: {len(contents['flags'])} flags of SAELens {contents['sae_lens']}")


if __name__ == "__main__":
    main()
