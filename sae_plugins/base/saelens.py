"""Every seam of SAELens 6.54 that we rely on, and all that touches its private names.

`tests/base/test_saelens.py` has a test per seam, named after it, that fails when SAELens moves it:

- `SAETrainer(cfg, sae, data_provider, evaluator, save_checkpoint_fn)`: all runners build their
  trainer through this class, which has no `__new__` of its own (`trainer_class`).
- `SAETrainer.step`, `load_trainer_state`, `set_final_sae_metadata`, `save_checkpoint`: public
  seams, overridden.
- `SAETrainer.maybe_reset_sparsity` is called by `fit` and `MultiSAETrainer`, for one trainer after
  another, when a step begins: `n_training_steps` is advanced, and the batch not yet pulled.
- the attributes of a `SAETrainer` are those that `PluginTrainer.state_dict` covers or that its
  arguments give.
- `SAETrainer.checkpoint_thresholds` loses one per step at most, and `load_trainer_state` does not
  drop those that were passed (`not_passed`).
- `MultiSAETrainer.fit` goes on from its `n_training_steps`, `n_training_samples` and
  `checkpoint_thresholds`, which its trainers lack, as they lack its `data_provider`
  (`continued_multi_training`).
- `SAETrainer` calls `self.sae.training_forward_pass(step_input=...)`, looked up on the instance,
  inside autocast; its loss is `output.loss`; `output.losses` and `output.metrics` are logged.
- between backward and the optimizer's step SAELens only clips at norm 1, and skips parameters
  without gradients; `optimizer.zero_grad()` follows the step.
- `optimizer` is torch's Adam over `sae.parameters()` in one group; its state holds `ADAM_MOMENTS`.
- `TRAINER_COUNTERS`: the trainer's per-feature tensors; `act_freq_scores` grows within a step by
  the number of tokens on which each feature fires.
- `n_training_steps` counts completed steps and is advanced by the caller of `step`;
  `n_training_samples` is advanced inside it; `cfg.total_training_samples` bounds it.
- `lr_scheduler.step()` runs once in each `SAETrainer.step`, whether or not weights moved.
- `activation_scaler.scaling_factor` holds until `fit` folds it into the weights.
- `SAETrainer.fit`, with nothing left to train on, takes no batch where the scale of activations is
  known, folds it into the weights and closes the training; the only bars that it draws, and those
  of `ActivationScaler`, come from `tqdm` in their modules (`no_bars`).
- `ActivationScaler.estimate_scaling_factor` and `estimate_whitening` are what `fit` calls, with
  `n_batches_for_norm_estimate`, for the two ways to normalise that need batches.
- `TrainingSAE.mse_loss_fn(sae_out, sae_in)` gives [B, ...] losses, summed over the last axis.
- the loss of a coefficient `NAME` is `output.losses["NAME_loss"]`, a part of the whole loss, and
  linear in it.
- `TrainingSAE.hook_sae_acts_post` is passed by the activations of every training forward pass,
  compiled or not, but matching_pursuit's; what a hook on it returns takes their place.
- `TrainingSAE.decode(feature_acts)` is called on the instance, once in a training forward pass.
- a training forward pass passes the `POINTS_OF_A_STEP` of a `TrainingSAE` and no others; a new SAE
  has no attribute in the place of one of its methods (`altered`).
- `TrainingSAE.W_enc` is looked up on the instance in a training forward pass, where an attribute
  goes before the parameter; not that of `matching_pursuit`.
- `TrainingSAE.activation_fn` is of the class that `get_activation_fn()` makes; that of a TopK or
  BatchTopK SAE has its `k`.
- `TrainingSAE.save_inference_model(path)` writes `SAE_WEIGHTS_FILENAME` and `SAE_CFG_FILENAME`.
- `TrainingSAE.cfg.metadata` keeps any attribute and is saved in `cfg.json` (`hide_in_metadata`).
- `to_dict()` of both runners' configs is what they write as JSON, and tell Weights & Biases
  (`with_no_secrets_told`); `LoggingConfig.log` takes no more of a trainer than its `sae` and `cfg`.
- `SAETrainer.build_train_step_log_dict(output, n_training_samples)` gives the metrics of a step.
- `SAE.hook_z_reshaping_mode` tells whether an SAE takes heads apart and puts them together, which
  `turn_off_forward_pass_hook_z_reshaping` and `turn_on_...` switch.
- `ActivationsStore.from_config(model, cfg, override_dataset=...)` reads that dataset alone;
  `get_batch_tokens(raise_at_epoch_end=True)` gives its tokens, StopIteration where it ends.
- `ActivationsStore.get_filtered_llm_batch(raise_on_epoch_end=True)` gives activations [n, d_in] in
  the order of the text, without excluded tokens, and raises StopIteration where the text ends.
- `ActivationsStore.get_activations(batch_tokens)`, looked up on the instance, is where tokens
  [prompts, context] become activations [prompts, positions, d_in] in float32 (`computing`).
- `ActivationsStore.training_context_size` counts the positions of a prompt that `seqpos_slice`
  leaves (`trained_positions`).
- `ActivationsStore.get_raw_llm_batch`, looked up on the instance, gives activations [n, d_in] with
  their tokens [n], or None for them, before special ones are left out (`first_batch_seen`).
- `ActivationsStore.get_data_loader()` and `get_multi_hook_data_loader()` are where the runners'
  batches come from, with and without prefetching, and each is called once (`data_loader`).
- `PrefetchingIterator.__next__` is where batches leave its queue (`prefetched`).
- `ActivationsStore.get_raw_llm_batch`, `get_batch_tokens`, `get_activations`,
  `get_multi_hook_activations`, `PrefetchingIterator.__next__` and
  `SyntheticActivationIterator.__next__` make all batches, and the synthetic runner's module has
  `eval_sae_on_synthetic_data`, looked up there (`batches_watched`).
- `LanguageModelSAERunnerConfig.checkpoint_path` gets a random subfolder when the config is made,
  and may be set afterwards.
- `LanguageModelSAETrainingRunner.evaluator` is set when the runner is made and passed on by `run`;
  its `activations_store` may be replaced, and is all the text that it reads.
- `LanguageModelSAETrainingRunner.run` is what `LanguageModelJob.trainer` and `stream` do: private
  `_set_sae_metadata` and `_compile_sae_if_needed`, a trainer over the `activations_store`, and
  `save_final_sae(sae, output_path, log_feature_sparsity)`.
- `SyntheticSAERunner.run` is what `SyntheticJob.trainer` and `stream` do: batches from a
  `SyntheticActivationIterator`, and private
  `_save_outputs(output_path, sae, log_feature_sparsity, eval_stats)`.
- `SyntheticSAERunner._create_evaluator()` (private) is called by `run`, on the instance.
- `SyntheticActivationIterator` has no state but torch's global random state.
- `extract_stop_at_layer_from_tlens_hook_name(hook_name)` is the first layer that need not run.
- `HookedSAETransformer` computes what a HookedTransformer does, and adds the hook `mlp.hook_in`.
- `SAETransformerBridge.hook_dict` lacks names of hooks, which `SAEBridge` gives back.
- `get_sae_training_class(architecture)` gives the classes of a training SAE and of its config.
- the warnings that `sae_plugins.runs.setup` silences begin as it says.
- on SIGINT and SIGTERM the runners' handlers raise `InterruptedException`, at any bytecode.
- `LanguageModelSAETrainingRunner.save_checkpoint(path)` is called on interruption with the folder
  `checkpoint_path`/`n_training_samples`, which nobody has made (`interrupted_runs_unsaved`).
- the parameters of each architecture are those of `sae_plugins.framework.architectures`.
- `mixing_buffer` serves the batches that `MixingBuffer` does, and draws as many random numbers.
- `ActivationsStore.get_data_loader()` is `mixing_buffer` over `_iterate_filtered_activations()`,
  of `n_batches_in_buffer * training_context_size` rows, served `train_batch_size_tokens` at a time.
- `ActivationsStore.get_multi_hook_data_loader()` mixes `_iterate_filtered_multi_hook_activations()`
  alike, with the hooks of `_hook_names` side by side, `_hook_d_ins` wide, and gives views by hook.
- `ActivationsStore._dataloader` is made by `get_data_loader` at the first batch; `iter(store)` is
  the store, so that a prefetching thread pulls from it too.
- `ActivationsStore.iterable_sequences`, missing without a dataset, gives all text that is read; it
  is an unstarted generator at first, and `_iterate_tokenized_sequences`, looked up on the instance,
  makes a new one for each epoch; `n_dataset_processed` counts documents.
- `ActivationsStore.load` skips no text where `n_dataset_processed` is already what was saved.
- `ActivationsStore.current_row_idx` is the row of `cached_activation_dataset` that is read next.
- `PrefetchingIterator` pulls in another thread and hands on the very objects, in order.
- the settings of an `ActivationsStore` are those of which `Stream.facts` is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sae_plugins.base.patches import replaced
from sae_plugins.base.secrets import redacted
from sae_plugins.base.shown_paths import rootless

if TYPE_CHECKING:
    from pathlib import Path

    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
TRAINER_COUNTERS = ("act_freq_scores", "n_forward_passes_since_fired")
POINTS_OF_A_STEP = (
    *("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"),
)
SYNTHETIC_NAMES = {
    "training_tokens": "training_samples",
    "train_batch_size_tokens": "batch_size",
    "autocast": "autocast_sae",
}
"""Settings that SAELens' runner on synthetic models spells differently."""
ESTIMATED = ("expected_average_only_in", "covariance_whitening")
"""Ways to normalise activations for which batches are read before the first step."""
_substitute: Callable[[], type[SAETrainer[Any, Any]]] | None = None


def interruption() -> type[Exception]:
    """What SAELens' runners raise when they receive SIGINT or SIGTERM."""
    from sae_lens.training._interruption import InterruptedException

    return InterruptedException


def _new(cls: type[SAETrainer[Any, Any]], *_: Any, **__: Any) -> SAETrainer[Any, Any]:
    from sae_lens.training.sae_trainer import SAETrainer

    if _substitute is None:
        return object.__new__(cls)
    substitute = _substitute()
    if cls is SAETrainer:
        return object.__new__(substitute)
    # somebody's own subclass keeps its methods, around which the plugins' events run
    return object.__new__(type(cls.__name__, (substitute, cls), {}))


@contextmanager
def trainer_class(substitute: Callable[[], type[SAETrainer[Any, Any]]]) -> Iterator[None]:
    """Make `SAETrainer(...)` build the subclass that `substitute` returns, while this is open.

    Every runner builds its trainer by calling `SAETrainer`, under a name imported into its own
    module; `__new__` is the one place that serves them all. It stays afterwards and then does what
    Python does by default, since CPython cannot restore a class's missing `__new__`.
    """
    from sae_lens.training.sae_trainer import SAETrainer

    global _substitute
    if _substitute is not None:
        raise RuntimeError("`sae_plugins.plugins` contexts cannot be nested: name all in one call")
    own = SAETrainer.__dict__.get("__new__")
    if own is not None and getattr(own, "__func__", own) is not _new:
        raise RuntimeError("SAETrainer now has a __new__ of its own: see sae_plugins.base.saelens")
    SAETrainer.__new__ = staticmethod(_new)  # type: ignore[assignment]
    _substitute = substitute
    try:
        yield
    finally:
        _substitute = None


def data_loader(
    substitute: Callable[[ActivationsStore, bool], Iterator[Any]],
) -> AbstractContextManager[None]:
    """Have stores draw their batches from `substitute(store, multi_hook)`, while this is open."""
    from sae_lens.training.activations_store import ActivationsStore

    return replaced(
        ActivationsStore,
        get_data_loader=lambda store: substitute(store, False),
        get_multi_hook_data_loader=lambda store: substitute(store, True),
    )


def prefetched(arrived: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Give what `arrived` makes of each batch that leaves a prefetching queue, while open."""
    from sae_lens.training.prefetch import PrefetchingIterator

    own = PrefetchingIterator.__next__

    def following(self: PrefetchingIterator[Any]) -> Any:
        return arrived(own(self))

    return replaced(PrefetchingIterator, __next__=following)


Watch = Callable[[tuple[str, str], Callable[..., Any]], Callable[..., Any]]
"""Takes what a function does, and the function; returns the one to call in its stead."""


@contextmanager
def batches_watched(watch: Watch) -> Iterator[None]:
    """Put what `watch` returns in the place of what makes batches and evaluates, while open."""
    from sae_lens.synthetic import synthetic_sae_runner
    from sae_lens.synthetic.training import SyntheticActivationIterator
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.prefetch import PrefetchingIterator

    batches = "batches"
    watched: dict[Any, dict[str, tuple[str, str]]] = {
        ActivationsStore: {
            "get_raw_llm_batch": (batches, "moving, or reading cached activations"),
            "get_batch_tokens": (batches, "text"),
            "get_activations": (batches, "language model"),
            "get_multi_hook_activations": (batches, "language model"),
        },
        PrefetchingIterator: {"__next__": (batches, "waiting for those read ahead")},
        SyntheticActivationIterator: {"__next__": (batches, "synthetic model")},
        synthetic_sae_runner: {"eval_sae_on_synthetic_data": ("evaluations", "true features")},
    }
    with ExitStack() as stack:
        for owner, parts in watched.items():
            own = {name: watch(part, vars(owner)[name]) for name, part in parts.items()}
            stack.enter_context(replaced(owner, **own))
        yield


@contextmanager
def no_bars() -> Iterator[None]:
    """Have SAELens' trainers draw no progress bars, while this is open."""
    from sae_lens.training import activation_scaler, sae_trainer
    from tqdm.auto import tqdm

    hidden = partial(tqdm, disable=True)
    with replaced(activation_scaler, tqdm=hidden), replaced(sae_trainer, tqdm=hidden):
        yield


def interrupted_runs_unsaved() -> AbstractContextManager[None]:
    """Keep the language model runner from writing to a folder that nobody has made.

    Interrupted, it would fail with another error than the interruption.
    """
    from sae_lens import LanguageModelSAETrainingRunner as Runner

    own = Runner.save_checkpoint

    def save_checkpoint(self: Runner, checkpoint_path: Path | None) -> None:
        if checkpoint_path is None or checkpoint_path.exists():
            own(self, checkpoint_path)

    return replaced(Runner, save_checkpoint=save_checkpoint)


def continued_multi_training() -> AbstractContextManager[None]:
    """Have `MultiSAETrainer.fit` start where its trainers are, while this is open.

    What it counts, and its data, is shared with the first of them, whose state is saved.
    """
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    own = MultiSAETrainer.fit

    def fit(self: MultiSAETrainer) -> Any:
        first = next(iter(self.trainers.values()))
        first.data_provider = self.data_provider  # type: ignore[assignment]
        if self.n_training_steps == first.n_training_steps:  # new, or resumed by SAELens
            first.checkpoint_thresholds = not_passed(self.checkpoint_thresholds, first)
        self.checkpoint_thresholds = first.checkpoint_thresholds
        self.n_training_steps = first.n_training_steps
        self.n_training_samples = first.n_training_samples
        return own(self)

    return replaced(MultiSAETrainer, fit=fit)


def not_passed(thresholds: list[int], trainer: SAETrainer[Any, Any]) -> list[int]:
    """The checkpoints that are still to come; SAELens would write one per step for the others."""
    return [threshold for threshold in thresholds if threshold >= trainer.n_training_samples]


def with_no_secrets_told(config_class: type[Any]) -> type[Any]:
    """A runner's config class whose objects tell files and Weights & Biases no secrets."""

    def to_dict(self: Any) -> dict[str, Any]:
        return rootless(redacted(config_class.to_dict(self)), "output_path", "checkpoint_path")

    return type(config_class.__name__, (config_class,), {"to_dict": to_dict})


def hide_in_metadata(sae: TrainingSAE[Any]) -> None:
    """Take secrets out of what `cfg.json` will say of an SAE, such as its model's kwargs."""
    for name, value in list(sae.cfg.metadata.items()):
        shown = redacted(value, name)
        if shown != value:
            sae.cfg.metadata[name] = shown


def altered(sae: TrainingSAE[Any]) -> list[str]:
    """What others have put into an SAE's training forward pass: hooks, or other methods."""
    ours = ("training_forward_pass", "save_inference_model", "save_model")
    methods = [n for n in vars(sae) if n not in ours and callable(getattr(type(sae), n, None))]
    if type(sae.activation_fn) is not type(sae.get_activation_fn()):
        methods.append("activation_fn")
    points = {name: getattr(sae, name) for name in POINTS_OF_A_STEP}
    return methods + [
        name
        for name, point in points.items()
        if point._forward_pre_hooks
        or point._forward_hooks
        or point._backward_pre_hooks
        or point._backward_hooks
    ]


# -- runners ---------------------------------------------------------------------------------------


def trainer_of(runner: Any) -> SAETrainer[Any, Any]:
    """The trainer that a runner would build, for a caller who gives it the batches."""
    from sae_lens.training.sae_trainer import SAETrainer

    return SAETrainer(
        cfg=runner.cfg.to_sae_trainer_config(), sae=runner.sae, data_provider=iter(())
    )


def language_model_trainer(runner: Any) -> SAETrainer[Any, Any]:
    """The same for a runner on a language model, which does more around it."""
    runner._set_sae_metadata()
    trainer = trainer_of(runner)
    runner._compile_sae_if_needed()
    return trainer


def wrap_evaluator(runner: Any, wrap: Callable[[Any], Any]) -> None:
    """Have a runner evaluate by what `wrap` makes of its evaluator."""
    create = runner._create_evaluator
    runner._create_evaluator = lambda: wrap(create())


def call_when_saved(runner: Any, then: Callable[[Path], None]) -> None:
    """Call `then` with the folder when a runner has saved its SAE."""
    save = runner._save_outputs

    def save_and_tell(path: Path, *outputs: Any) -> None:
        save(path, *outputs)
        then(path)

    runner._save_outputs = save_and_tell


def save_synthetic(runner: Any, path: Path, sae: TrainingSAE[Any], sparsity: Tensor | None) -> None:
    """Save a trained SAE as a runner would, without an evaluation."""
    runner._save_outputs(path, sae, sparsity, None)


# -- activation stores -----------------------------------------------------------------------------


def trained_positions(context_size: int, seqpos_slice: Sequence[int | None]) -> int:
    """Tokens of a prompt that are trained on."""
    return len(range(context_size)[slice(*seqpos_slice)])


def hook_widths(store: ActivationsStore) -> dict[str, int]:
    """The d_in of each hook of a store in multi-hook mode, in its order."""
    d_ins = store._hook_d_ins or {}
    return {hook: d_ins[hook] for hook in store._hook_names or ()}


def hook_heads(store: ActivationsStore) -> dict[str, int | None]:
    """The attention head that is read at each hook, in multi-hook mode."""
    return store._hook_head_indices


def activations(store: ActivationsStore) -> Iterator[Tensor]:
    """A store's activations [n, d_in], in the order of its text."""
    return store._iterate_filtered_activations()


def activations_by_hook(store: ActivationsStore) -> Iterator[dict[str, Tensor]]:
    """A store's activations [n, d_in] of several hooks, in the order of its text."""
    return store._iterate_filtered_multi_hook_activations()


def is_synthetic(provider: Any) -> bool:
    """Whether batches are drawn from a synthetic model; their module, if unused, stays unloaded."""
    module = sys.modules.get("sae_lens.synthetic.training")  # which imports plotly
    return module is not None and isinstance(provider, module.SyntheticActivationIterator)


def computing(
    store: ActivationsStore, compute: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    """Have a store get activations from `compute`, told the store's own way and the tokens."""
    own = store.get_activations
    # on the instance, where SAELens looks the name up
    store.get_activations = partial(compute, own)  # type: ignore[method-assign]


def first_batch_seen(store: ActivationsStore, see: Callable[[Tensor, Tensor | None], None]) -> None:
    """Have `see` look at a store's first activations [n, d_in] and tokens [n], None if unknown."""

    def first(raise_on_epoch_end: bool = False) -> tuple[Tensor, Tensor | None]:
        batch = type(store).get_raw_llm_batch(store, raise_on_epoch_end)
        del store.get_raw_llm_batch  # the rest is read as ever
        see(*batch)
        return batch

    # on the instance, where SAELens looks the name up
    store.get_raw_llm_batch = first  # type: ignore[method-assign]


def begin_reading(store: ActivationsStore) -> None:
    """Make the loader that a store would make at its first batch."""
    store._dataloader = store.get_data_loader()


def read_from_start(store: ActivationsStore) -> None:
    """Have a store read its text from the start."""
    store.iterable_sequences, store.n_dataset_processed = store._iterate_tokenized_sequences(), 0


def replace_text(
    store: ActivationsStore, epoch: Callable[[], Generator[Tensor, None, None]]
) -> Callable[[], Generator[Tensor, None, None]]:
    """Have a store start each later epoch of its text by `epoch`.

    Returns:
        The store's own way to start one.
    """
    own = store._iterate_tokenized_sequences
    # on the instance, where SAELens looks the name up
    store._iterate_tokenized_sequences = epoch  # type: ignore[method-assign]
    return own
