"""Runs on a language model's activations: the model, its text, and SAELens' runner over them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.load_model import load_model as load_with_sae_lens
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from sae_plugins import world
from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.base.seeds import seed_data
from sae_plugins.runs import weights_and_biases
from sae_plugins.runs.heldout import heldout_metrics
from sae_plugins.runs.job import (
    JobSettings,
    Save,
    check_devices,
    check_memory,
    isolated,
    isolated_random_state,
    quiet,
    runner_fields,
    sae_config,
    settings_accepted,
    trainer_of,
)

SHUFFLE_BUFFER = 10_000
"""Documents among which a streamed dataset is shuffled."""


@dataclass(frozen=True)
class Text:
    """What the model reads: documents to train on, and disjoint ones to score the SAE on."""

    train: Any
    heldout: Any


class LanguageModelJob:
    """A `Job` on a TransformerLens or Hugging Face model."""

    def __init__(self, settings: JobSettings, other: LanguageModelJob | None = None) -> None:
        """Load the model, check everything that can be checked, and find the text.

        Args:
            settings: the run's.
            other: a job whose model and text serve where they are the same.

        Raises:
            PluginError: no such model, hook, dataset or device, or settings that do not fit.
        """
        if settings.logger.get("log_to_wandb"):
            weights_and_biases.check()
        check_devices(settings)
        self.settings = settings = _with_local_sae(settings)
        check_sources(settings)
        if other is not None and _of_model(other.settings) == _of_model(settings):
            self.model: Any = other.model
        else:
            self.model = load_model(settings)
        check_context_size(self.model, settings)
        check_positions(settings)
        check_tokens(self.model, settings)
        self.sae_config = sae_config(settings, activation_size(self.model, settings))
        check_memory(settings, self.sae_config, self._in_buffers(self.config(None)))
        if other is not None and _of_text(other.settings) == _of_text(settings):
            self.text: Text = other.text
        else:
            self.text = load_text(settings, self.model)
        self.check_heldout()

    def sharing(self, settings: JobSettings) -> LanguageModelJob:
        """A job with other settings, and this one's model and text where they are the same."""
        return LanguageModelJob(settings, self)

    @staticmethod
    def _in_buffers(config: Any) -> dict[str, int]:
        """Numbers that are in memory at once on account of a flag, besides the SAE's own."""
        positions = len(range(config.context_size)[slice(*config.seqpos_slice)])
        d_in = config.sae.d_in
        return {
            "n_batches_in_buffer": config.n_batches_in_buffer * positions * d_in,
            "store_batch_size_prompts": config.store_batch_size_prompts
            * config.context_size
            * d_in,
        }

    def config(self, folder: Path | None) -> Any:
        """SAELens' config of the run, which writes into `folder`."""
        fields = runner_fields(self.settings, folder)
        checkpoint_path = fields.pop("checkpoint_path")
        if "seqpos_slice" in fields:
            fields["seqpos_slice"] = tuple(fields["seqpos_slice"])
        with settings_accepted(), quiet():
            config: Any = LanguageModelSAERunnerConfig(
                sae=replace(self.sae_config),
                model_name=self.settings.model_name,
                seed=self.settings.seed,
                dtype=self.sae_config.dtype,
                dataset_trust_remote_code=False,
                checkpoint_path=None,
                **fields,
            )
        config.checkpoint_path = checkpoint_path  # without the random folder that SAELens adds
        positions = len(range(config.context_size)[slice(*config.seqpos_slice)])
        if config.n_batches_in_buffer * positions < config.train_batch_size_tokens:
            raise PluginError(
                f"--n_batches_in_buffer {config.n_batches_in_buffer} is too small: times "
                f"{positions} tokens of a prompt it must hold the --train_batch_size_tokens "
                f"{config.train_batch_size_tokens}"
            )
        return config

    def prepare(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Build SAELens' runner, with its SAE; the function that is returned runs it."""
        runner = self._runner(folder)
        seed_data(self.settings.seed)

        def run() -> dict[str, float]:
            with quiet(repeats=not self.settings.runner.get("dataset_path")):
                runner.run()
            return {}

        return run

    def _runner(self, folder: Path) -> Any:
        with settings_accepted(), quiet():
            runner: Any = LanguageModelSAETrainingRunner(
                self.config(folder), override_dataset=self.text.train, override_model=self.model
            )
            # SAELens' own evaluator reads on in the training text, so that logging would change
            # what the SAE is trained on.
            if self.text.heldout is None or not runner.cfg.logger.log_to_wandb:
                runner.evaluator = None
            else:
                runner.evaluator.activations_store = self._store(self.text.heldout)
                runner.evaluator = isolated(runner.evaluator)
        return runner

    def trainer(self, folder: Path) -> tuple[SAETrainer[Any, Any], Save]:
        """Build SAELens' runner, and its trainer in its stead."""
        runner = self._runner(folder)
        runner._set_sae_metadata()
        trainer = trainer_of(runner)
        runner._compile_sae_if_needed()

        def save(path: Path, sparsity: Tensor | None) -> None:
            runner.save_final_sae(trainer.sae, str(path), sparsity)

        return trainer, save

    def stream(self) -> Iterator[Tensor]:
        """The batches of a store over the training text."""
        with quiet():
            return iter(self._store(self.text.train))

    def heldout(self, saes: Sequence[SAE[Any]]) -> list[dict[str, float]]:
        """Held-out metrics of SAEs as they were saved, on the same text."""
        if self.text.heldout is None:
            return [{} for _ in saes]
        with quiet(), isolated_random_state():
            store = self._store(self.text.heldout)
            return heldout_metrics(saes, store, self.settings.heldout_tokens)

    def check_heldout(self) -> None:
        """Refuse held-out text that is less than the one batch that scoring starts with."""
        if self.text.heldout is None:
            return
        config = self.config(None)
        with settings_accepted(), quiet(), isolated_random_state():
            try:
                self._store(self.text.heldout).get_batch_tokens(raise_at_epoch_end=True)
            except StopIteration:
                raise PluginError(
                    f"the held-out text is less than --store_batch_size_prompts "
                    f"{config.store_batch_size_prompts} prompts of --context_size "
                    f"{config.context_size} tokens: lower them, or set --heldout_tokens 0"
                ) from None

    def _store(self, rows: Any) -> ActivationsStore:
        return ActivationsStore.from_config(self.model, self.config(None), override_dataset=rows)


_FOLDERS = {
    "resume_from_checkpoint": (
        *(SAE_WEIGHTS_FILENAME, TRAINER_STATE_FILENAME, ACTIVATION_SCALER_CFG_FILENAME),
        ACTIVATIONS_STORE_STATE_FILENAME,
    ),
    "from_pretrained_path": (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME),
    "cached_activations_path": (),
}
"""Flags that name a folder to read, and what SAELens looks for in it."""


def check_sources(settings: JobSettings) -> None:
    """Refuse a run that does not say where its activations or its checkpoint come from."""
    used = settings.runner.get("use_cached_activations") or None
    if used and not settings.runner.get("cached_activations_path"):
        raise PluginError("--use_cached_activations needs --cached_activations_path FOLDER")
    for name, files in _FOLDERS.items():
        folder = settings.runner.get(name)
        if folder is None or (name, used) == ("cached_activations_path", None):
            continue
        if not Path(folder).is_dir():
            raise PluginError(f"--{name} {folder} is no folder; name another, or leave it out")
        missing = [file for file in files if not (Path(folder) / file).is_file()]
        if missing:
            raise PluginError(
                f"--{name} {folder} lacks {', '.join(missing)}; name another, or leave it out"
            )
    if settings.model_name == world.NAME:
        return
    for name, example in (
        ("hook_name", "--hook_name blocks.6.hook_resid_post"),
        ("dataset_path", "--dataset_path NeelNanda/pile-10k"),
    ):
        if not settings.runner.get(name):
            raise PluginError(
                f"--model_name {settings.model_name} needs --{name}, for example {example}"
            )


def _with_local_sae(settings: JobSettings) -> JobSettings:
    """The settings, with the SAE to begin with downloaded if it is `USER/REPO:SAE_ID`."""
    from sae_plugins.base import errors
    from sae_plugins.base import hub as base_hub

    name = "from_pretrained_path"
    source = settings.runner.get(name) or ""
    if ":" not in source:
        return settings
    try:
        return replace(settings, runner={**settings.runner, name: str(base_hub.local(source))})
    except errors.HubError as error:
        raise PluginError(f"--{name} {error}") from error


# -- the model ---------------------------------------------------------------------------------


def load_model(settings: JobSettings) -> Any:
    """The language model.

    Raises:
        PluginError: it cannot be loaded; near names are suggested.
    """
    runner, name = settings.runner, settings.model_name
    device = runner.get("llm_device") or settings.device
    if name == world.NAME:
        return world.load_hooked_transformer(device)
    kind = runner.get("model_class_name", "HookedTransformer")
    arguments = runner.get("model_from_pretrained_kwargs")
    if arguments is None and kind == "HookedTransformer":
        arguments = {"center_writing_weights": False}  # SAELens' own default
    try:
        return load_with_sae_lens(kind, name, device, arguments, [runner["hook_name"]])
    except (
        Exception
    ) as error:  # whatever the loading libraries raise, the user must know which name
        if "hook_names not found" in str(error):
            raise PluginError(
                f"--hook_name {runner['hook_name']} is no module of {name}"
            ) from error
        reason = (
            near_models(name) or f" ({type(error).__name__}: {error}".splitlines()[0][:300] + ")"
        )
        raise PluginError(f"--model_name {name} cannot be loaded as a {kind}{reason}") from error


def _of_model(settings: JobSettings) -> list[Any]:
    """What the loaded model depends on."""
    names = ("model_class_name", "model_from_pretrained_kwargs", "hook_name", "llm_device")
    compiled = ("compile_llm", "llm_compilation_mode")
    of_runner = [settings.runner.get(name) for name in (*names, *compiled)]
    return [settings.model_name, settings.device, *of_runner]


def check_context_size(model: Any, settings: JobSettings) -> None:
    """Refuse prompts that are longer than the model's."""
    size = settings.runner.get("context_size", 128)
    limit = getattr(getattr(model, "cfg", None), "n_ctx", None)  # of TransformerLens models
    if limit is not None and size > limit:
        raise PluginError(
            f"--context_size {size} is too large: {settings.model_name} reads {limit} tokens"
        )


def check_positions(settings: JobSettings) -> None:
    """Refuse a slice of the prompts' positions that is none, or has nothing in it."""
    ends, size = (
        settings.runner.get("seqpos_slice", [None]),
        settings.runner.get("context_size", 128),
    )
    step = ends[2] if len(ends) == 3 else None
    well_formed = 1 <= len(ends) <= 3 and (step is None or step > 1)  # so SAELens wants it
    if not well_formed or not range(size)[slice(*ends)]:
        shown = " ".join("none" if end is None else str(end) for end in ends)
        raise PluginError(
            f"--seqpos_slice {shown} leaves none of the --context_size {size} positions, or is no "
            "slice: give START END, or START END STEP with a STEP of 2 or more; any may be none"
        )


def check_tokens(model: Any, settings: JobSettings) -> None:
    """Refuse tokens that the model does not have, and chats where it has no template for them."""
    size = getattr(getattr(model, "cfg", None), "d_vocab", None)  # of TransformerLens models
    for name in ("sequence_separator_token", "exclude_special_tokens"):
        given = settings.runner.get(name)
        tokens = given if isinstance(given, list) else [given]
        wrong = [t for t in tokens if type(t) is int and size is not None and not 0 <= t < size]
        if wrong and size is not None:
            raise PluginError(
                f"--{name} {wrong[0]}: the tokens of {settings.model_name} are 0 to {size - 1}"
            )
    template = getattr(getattr(model, "tokenizer", None), "chat_template", None)
    if settings.runner.get("use_chat_formatting") and not template:
        raise PluginError(
            f"--use_chat_formatting: the tokenizer of {settings.model_name} has no chat template; "
            "leave it out"
        )


def near_models(name: str) -> str:
    """A suggestion, for a name that TransformerLens does not know."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = [alias for names in MODEL_ALIASES.values() for alias in names]
    known = [world.NAME, *OFFICIAL_MODEL_NAMES, *aliases]
    if name in known:
        return ""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return ": " + did_you_mean(name, near) if near else ""


def activation_size(model: Any, settings: JobSettings) -> int:
    """The d_in of a hook, from the model itself.

    Raises:
        PluginError: the model has no such hook, or it has no such head.
    """
    hook, head = settings.runner["hook_name"], settings.runner.get("hook_head_index")
    if hook not in model.hook_dict:
        suggestion = near_hooks(hook, [name for name in model.hook_dict if name])
        raise PluginError(
            f"--hook_name {hook!r}: {settings.model_name} has no such hook; {suggestion}"
        )
    kwargs = settings.runner.get("model_kwargs", {})
    shapes = [shape_at(hook, model, tokens, kwargs) for tokens in (1, 2)]
    if [shape[:2] for shape in shapes] != [(1, 1), (1, 2)] or shapes[0][2:] != shapes[1][2:]:
        raise PluginError(
            f"--hook_name {hook} of {settings.model_name} has no vector per token, but the shape "
            f"{tuple(shapes[1])} for a prompt of 2: choose another, such as a hook_resid_post"
        )
    shape = shapes[0][2:]
    if len(shape) == 1 and head is not None:
        raise PluginError(f"--hook_head_index {head}: {hook} has no heads; leave it out")
    if len(shape) == 2 and head is not None and not 0 <= head < shape[0]:
        raise PluginError(f"--hook_head_index {head}: {hook} has heads 0 to {shape[0] - 1}")
    return int(shape[-1] if head is not None else shape.numel())


@torch.no_grad()
def shape_at(hook: str, model: Any, tokens: int, kwargs: dict[str, Any]) -> torch.Size:
    """The shape of what a hook sees of one prompt of so many tokens, with SAELens' model_kwargs.

    Raises:
        PluginError: the model does not take `kwargs`.
    """
    device = next(model.parameters()).device
    try:
        cache = model.run_with_cache(
            torch.zeros((1, tokens), dtype=torch.long, device=device),
            names_filter=[hook],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook),
            prepend_bos=False,
            **kwargs,
        )[1]
    except TypeError as error:
        if not kwargs:
            raise
        raise PluginError(f"--model_kwargs {kwargs} do not suit the model: {error}") from error
    shape: torch.Size = cache[hook].shape
    return shape


def near_hooks(hook: str, known: Iterable[str]) -> str:
    """The nearest hooks; if none is near, all of them, with the layers as one."""
    suggestion = did_you_mean(hook, known)
    if not suggestion.startswith("known:"):
        return suggestion
    layers = [int(layer) for name in known for layer in re.findall(r"^blocks\.(\d+)\.", name)]
    names = sorted({re.sub(r"^blocks\.\d+\.", "blocks.N.", name) for name in known})
    return f"known: {', '.join(names)}" + (f", with N from 0 to {max(layers)}" if layers else "")


# -- the text ----------------------------------------------------------------------------------


def load_text(settings: JobSettings, model: Any) -> Text:
    """The training text, in the seed's order, and held-out text, which no seed changes.

    The first documents of a dataset are held out, as many as the held-out tokens need.

    Raises:
        PluginError: the dataset cannot be loaded or is too small.
    """
    if settings.model_name == world.NAME and not settings.runner.get("dataset_path"):
        train = world.load_text("train").shuffle(seed=settings.seed)
        heldout = world.load_text("heldout") if settings.heldout_tokens else None
        return Text(_plain(train), _plain(heldout))
    rows = load_dataset(settings)
    held = _first_documents(rows, settings, model)
    if isinstance(rows, datasets.Dataset):
        if 2 * len(held) > len(rows):
            raise PluginError(
                f"--dataset_path {settings.runner['dataset_path']} is too small: scoring the "
                f"SAE on {settings.heldout_tokens} tokens takes {len(held)} of its {len(rows)} "
                "documents; lower --heldout_tokens"
            )
        train = rows.select(range(len(held), len(rows))).shuffle(seed=settings.seed)
    else:
        train = rows.skip(len(held)).shuffle(seed=settings.seed, buffer_size=SHUFFLE_BUFFER)
    return Text(_plain(train), _plain(datasets.Dataset.from_list(held) if held else None))


def _of_text(settings: JobSettings) -> list[Any]:
    """What the text depends on."""
    names = ("dataset_path", "streaming", "store_batch_size_prompts", "context_size")
    of_runner = [settings.runner.get(name) for name in names]
    return [settings.seed, settings.heldout_tokens, *of_runner, *_of_model(settings)]


def _plain(rows: Any) -> Any:
    """The rows such that SAELens reads tokens as plain lists.

    It has a `Dataset` with tokens give tensors, for which datasets 3 imports a part of torchvision
    that newer ones lack; an `IterableDataset` it leaves alone.
    """
    if isinstance(rows, datasets.Dataset) and {"tokens", "input_ids"} & set(rows.column_names):
        return rows.to_iterable_dataset()
    return rows


def load_dataset(settings: JobSettings) -> Any:
    """The dataset at `dataset_path`, a folder or a name on the Hub; its code is never run."""
    path = os.path.expanduser(str(settings.runner["dataset_path"]))
    try:
        if (Path(path) / "dataset_info.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(
            path,
            split="train",
            streaming=bool(settings.runner.get("streaming", True)),
            trust_remote_code=False,
        )
    except Exception as error:  # network, hub and file errors of many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PluginError(
            f"--dataset_path {path} cannot be loaded: neither a folder with a dataset nor a split "
            f"'train' on the Hugging Face Hub ({reason[:300]})"
        ) from error


def _first_documents(rows: Any, settings: JobSettings, model: Any) -> list[dict[str, Any]]:
    """As many documents as `heldout_tokens` tokens and one batch of the model need."""
    if not settings.heldout_tokens:
        return []
    prompts = settings.runner.get("store_batch_size_prompts", 32)
    wanted = settings.heldout_tokens + prompts * settings.runner.get("context_size", 128)
    held: list[dict[str, Any]] = []
    for row in rows:
        if wanted <= 0:
            break
        column = next(
            (name for name in ("tokens", "input_ids", "text", "problem") if name in row), None
        )
        if column is None:
            raise PluginError(
                f"--dataset_path {settings.runner['dataset_path']} has the columns "
                f"{', '.join(row)}: one must be called text, tokens or input_ids"
            )
        held.append({column: row[column]})
        wanted -= _length(row[column], model)
    return held


def _length(document: Any, model: Any) -> int:
    """Tokens of a text or of a tokenised document."""
    if isinstance(document, str):
        return int(model.to_tokens(document, truncate=False, prepend_bos=False).shape[1])
    return len(document)
