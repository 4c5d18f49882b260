"""Every seam of SAEBench 0.6 that the suites rely on, in one place.

SAEBench's own entry points run, each with one SAE, and what they compute and write is theirs. While
they run, some names in their modules are replaced (and put back): to hand them the model and the
data that we have, to keep them from computing again what no SAE changes, and from writing where
they should not. `tests/eval_suites/saebench/test_seams.py` has a test per seam that fails when
SAEBench moves it:

- `core.main.multiple_evals`, `scr_and_tpp.main.run_eval`, `sparse_probing.main.run_eval` and
  `absorption.main.run_eval` evaluate `[(name, sae)]` and write one JSON file into the folder that
  they are given; what they return (core a list, the others a dict) holds the same numbers.
- each of these modules gets its model by `HookedTransformer.from_pretrained_no_processing`.
- `core.main` gets its text by `ActivationsStore.from_sae`, retries failures through
  `general_utils.retry_with_exponential_backoff`, and tells of an error only by `logger.error`,
  inside its `except` block; `run_evals` calls `get_sparsity_and_variance_metrics` for the batches
  that are encoded and decoded by `sae.encode` and `sae.decode`, one call each a batch.
- `dataset_utils.load_dataset` and `dataset_creation.load_dataset` are all that reads labelled data.
- `sparse_probing.main.get_dataset_activations` and `scr_and_tpp.main.get_dataset_activations` give
  all activations of a dataset, by class, and depend on no SAE.
- what `activation_collection.create_meaned_model_activations` returns is the language model's, and
  `probe_training.train_probe_on_activations` of these draws from torch's random state alone.
- `probe_training.train_sklearn_probe` is beartype's wrapper around a function that works, which
  refuses jaxtyping's annotations (`__wrapped__`).
- `scr_and_tpp.main.perform_feature_ablations` selects by `select_top_n_features`, and calls
  `ablated_precomputed_activations(acts, sae, mask, batch_size)`, which calls `sae.encode` once,
  then `sae.decode` of all codes, then of those that are left, for each part of the batch.
- `absorption.common.get_alpha_tokens` and `absorption.feature_absorption.get_alpha_tokens` list the
  vocabulary, in no fixed order.
- `absorption.common.train_and_save_probes` trains the first-letter probes; the functions
  `load_or_train_probe`, `load_probe_data_split_or_train` (of `absorption.k_sparse_probing`) and
  `load_probe` (of `absorption.feature_absorption`) are all that reads them.
- `absorption.k_sparse_probing._get_sae_acts` encodes anew for every probe of some features, and
  `metrics` there is `sklearn.metrics`, asked for F1, recall and precision of the same two arrays.
- `absorption.main` writes through `run_k_sparse_probing_experiment` and
  `run_feature_absortion_experiment`, which take folders, and into the working folder.
- the loaders `CUSTOM_LOADERS` of `sae_bench.custom_saes` read two files, each named by
  `hf_hub_download`.
- `SparseProbingSaeMetrics` and `ScrMetrics` have a field for each k and N that is reported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.saelens import replaced
from sae_plugins.base.seeds import random_states, seed_everything, set_random_states
from sae_plugins.eval_suites.inputs.cache import Cache, Entry, fingerprint
from sae_plugins.eval_suites.suite import Bench

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.data import Need
    from sae_plugins.eval_suites.inputs.subjects import Subject
    from sae_plugins.eval_suites.saebench.shared_model import SharedModel

MOST_CODES = 2_000_000_000
"""Numbers of codes that are held in memory rather than encoded again."""

# -- around every evaluation --------------------------------------------------------------------


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back the random states, grad mode, environment and working folder at the end."""
    states, grad, environment, folder = (
        random_states(), torch.is_grad_enabled(), dict(os.environ), Path.cwd(),
    )  # fmt: skip
    try:
        yield
    finally:
        os.chdir(folder)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_grad_enabled(grad)
        set_random_states(states)


@contextmanager
def _running(bench: Bench, *modules: Any) -> Iterator[Path]:
    """Run SAEBench: with our model, in a scratch folder, and what it prints in a file there."""
    folder = bench.folder.resolve()
    log = folder / "saebench.log"
    with undisturbed(), ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced(module, HookedTransformer=_Given(bench.model.hooked)))
        stack.enter_context(_on_a_fresh_install())
        text = stack.enter_context(log.open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(text))
        stack.enter_context(contextlib.redirect_stderr(text))
        os.chdir(folder)
        yield folder


class _Given:
    """Stands in for the class HookedTransformer: loads nothing, but gives the model at hand."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained_no_processing(self, *_: Any, **__: Any) -> Any:
        return self.model


@contextmanager
def _on_a_fresh_install() -> Iterator[None]:
    """Without the type check that fails with every beartype of today (hazard 6)."""
    from sae_bench.evals.sparse_probing import probe_training

    own = probe_training.train_sklearn_probe
    with replaced(probe_training, train_sklearn_probe=getattr(own, "__wrapped__", own)):
        yield


@contextmanager
def _reading(load: Callable[..., Any]) -> Iterator[None]:
    """Have SAEBench read its labelled data from `load(name, config)`."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_utils

    def load_dataset(name: str, config: str | None = None, **_: Any) -> Any:
        return load(name, config)

    with (
        replaced(dataset_creation, load_dataset=load_dataset),
        replaced(dataset_utils, load_dataset=load_dataset),
    ):
        yield


def _only_json(folder: Path) -> str:
    files = sorted(folder.rglob("*_eval_results.json"))
    if len(files) != 1:
        raise SuiteError(f"SAEBench wrote {len(files)} results instead of one")
    return files[0].read_text("utf-8")


def refuse_heads(subject: Subject) -> str | None:
    """Why an SAE cannot be probed: all but core take activations for [batch, tokens, d_in]."""
    per_head = re.search(r"hook_[qkvz]$", subject.hook_name)
    if per_head is None and subject.hook_head_index is None:
        return None
    return f"SAEBench evaluates SAEs of attention heads ({subject.hook_name}) with core only"


# -- facts --------------------------------------------------------------------------------------


def layer_of(hook_name: str) -> int:
    """The layer of a hook as SAEBench reads it: the first number in its name.

    Raises:
        SuiteError: the name has none.
    """
    number = re.search(r"\d+", hook_name)
    if number is None:
        raise SuiteError(f"hook {hook_name}: SAEBench needs a layer's number in its name")
    return int(number.group())


def default_dtype(model_name: str) -> str:
    """The dtype in which SAEBench runs a language model."""
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_DTYPE

    return str(LLM_NAME_TO_DTYPE.get(_short(model_name), "float32"))


def bytes_of_activation(subject: Subject) -> int:
    """Bytes of one activation at an SAE's hook, as its language model is run."""
    dtype: torch.dtype = getattr(torch, default_dtype(subject.model_name))
    return subject.d_in * dtype.itemsize


def default_batch_size(model_name: str) -> int:
    """The prompts that SAEBench gives to a language model at once."""
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE

    return int(LLM_NAME_TO_BATCH_SIZE.get(_short(model_name), 32))


def _short(model_name: str) -> str:
    """The name without its owner, as SAEBench's tables have it."""
    return model_name.rpartition("/")[2]


def reported_numbers(suite: str) -> list[int]:
    """The k of sparse probing, or the N of SCR, that SAEBench's result has a field for."""
    if suite == "scr":
        from sae_bench.evals.scr_and_tpp.eval_output import ScrMetrics as Metrics

        pattern = r"scr_metric_threshold_(\d+)"
    else:
        from sae_bench.evals.sparse_probing.eval_output import SparseProbingSaeMetrics as Metrics

        pattern = r"sae_top_(\d+)_test_accuracy"
    fields = [re.fullmatch(pattern, name) for name in Metrics.__dataclass_fields__]
    return sorted(int(found.group(1)) for found in fields if found)


def has_attribute(dataset: str) -> bool:
    """Whether a dataset has a second column of labels: a gender or a rating."""
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    return dataset in dataset_metadata


def classes_of(name: str) -> list[Any]:
    """The classes of a sparse probing dataset, as its rows have them.

    Those of the sentiment dataset are its categories: its ratings are an attribute.
    """
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    classes = chosen_classes_per_dataset[name.removesuffix("_sentiment")]
    return [int(c) if c.isdigit() else c for c in classes]


def numbers_of(dataset: str, classes: list[str]) -> tuple[int, ...]:
    """The numbers, in the first column of a dataset, of classes named in words."""
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    numbers = dataset_metadata[dataset]["column1_mapping"]
    return tuple(numbers[name] for name in classes)


# -- SAEs of others -----------------------------------------------------------------------------

CUSTOM_LOADERS = {
    "StandardTrainer": "relu_sae.load_dictionary_learning_relu_sae",
    "StandardTrainerAprilUpdate": "relu_sae.load_dictionary_learning_relu_sae",
    "PAnnealTrainer": "relu_sae.load_dictionary_learning_relu_sae",
    "TopKTrainer": "topk_sae.load_dictionary_learning_topk_sae",
    "BatchTopKTrainer": "batch_topk_sae.load_dictionary_learning_batch_topk_sae",
    "MatryoshkaBatchTopKTrainer": (
        "batch_topk_sae.load_dictionary_learning_matryoshka_batch_topk_sae"
    ),
    "JumpReluTrainer": "jumprelu_sae.load_dictionary_learning_jump_relu_sae",
    "GatedSAETrainer": "gated_sae.load_dictionary_learning_gated_sae",
}
"""By trainer. SAEBench's own table is in a module that imports all its evals."""


def custom_sae(
    trainer: str, config: Path, weights: Path, model_name: str, layer: int, device: str
) -> Any:
    """An SAE of dictionary_learning, by SAEBench's loader and as SAEBench's class.

    Args:
        trainer: one of `CUSTOM_LOADERS`.
        config: its `config.json`.
        weights: its `ae.pt`, which the caller has found to hold tensors only: it is unpickled.
        model_name: of the language model.
        layer: of its residual stream.
        device: where the SAE shall be.
    """
    module_name, _, function = CUSTOM_LOADERS[trainer].partition(".")
    module = importlib.import_module(f"sae_bench.custom_saes.{module_name}")
    local = {file.name: str(file) for file in (config, weights)}
    with (
        replaced(module, hf_hub_download=lambda filename, **_: local[filename]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return getattr(module, function)(
            repo_id="",
            filename=weights.name,
            layer=layer,
            model_name=model_name,
            device=torch.device(device),
            dtype=torch.float32,
        )


# -- core ---------------------------------------------------------------------------------------


def core(
    sae: Any, name: str, bench: Bench, shared: SharedModel, dataset: str, skip: int, seed: int,
    observe: Callable[[Tensor, Tensor, Tensor], None], **settings: Any,
) -> tuple[dict[str, Any], str, dict[str, int]]:  # fmt: skip
    """SAEBench's core metrics by group, its JSON, and the tokens of some groups.

    Args:
        sae: a copy, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model.
        shared: what has been computed of it before.
        dataset: open text.
        skip: documents at its start to leave out.
        seed: of its order.
        observe: called with activations, codes and reconstructions of the tokens that count, for
            every batch of the sparsity and variance metrics.
        settings: of `multiple_evals`.

    Raises:
        SuiteError: core failed (it would have gone on), or the text ends too soon.
    """
    from sae_bench.evals.core import main
    from sae_bench.sae_bench_utils import general_utils
    from sae_lens import ActivationsStore

    class Store:
        """Stands in for the class ActivationsStore: reads each text only once."""

        @staticmethod
        def from_sae(model: Any, sae: Any, context_size: int, **_: Any) -> Text:
            key = (skip, sae.cfg.prepend_bos)
            if key not in shared.texts:
                text = bench.data.text(dataset, skip, seed)
                store = ActivationsStore.from_sae(model, sae, text, context_size=context_size)
                shared.texts[key] = Text(store)
            return shared.texts[key].from_the_start()

    own_metrics = main.get_sparsity_and_variance_metrics

    def observed(sae: Any, model: Any, activation_store: Any, **kwargs: Any) -> Any:
        encode, decode = sae.encode, sae.decode
        seen: list[Tensor] = []

        def watched_encode(acts: Tensor) -> Tensor:
            seen[:] = [acts, encode(acts)]
            return seen[1]

        def watched_decode(codes: Tensor) -> Tensor:
            out: Tensor = decode(codes)
            mask = _counting(activation_store.last_batch, kwargs["ignore_tokens"])
            observe(seen[0][mask], seen[1][mask], out[mask])
            return out

        with replaced(sae, encode=watched_encode, decode=watched_decode):
            return own_metrics(sae, model, activation_store, **kwargs)

    with (
        _running(bench, main) as folder,
        shared.answering(),
        replaced(main, ActivationsStore=Store, logger=_Raising(),
                 get_sparsity_and_variance_metrics=observed),
        replaced(general_utils, retry_with_exponential_backoff=lambda **_: lambda load: load),
    ):  # fmt: skip
        results = main.multiple_evals(
            [(name, sae)],
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            output_folder=str(folder / "core"),
            dtype=bench.model.dtype,
            device=bench.model.device,
            **settings,
        )
        if len(results) != 1:
            raise SuiteError(f"SAEBench's core gave {len(results)} results instead of one")
        text = shared.texts[skip, sae.cfg.prepend_bos]
        counts = text.counts(settings["n_eval_reconstruction_batches"], bench.model.hooked)
        return results[0]["metrics"], _only_json(folder), counts


class Text:
    """Stands in for an ActivationsStore over open text, whose tokens it keeps for the next SAE."""

    def __init__(self, store: Any) -> None:
        """Nothing is read yet."""
        self._store = store
        self._batches: list[Tensor] = []
        self._asked = 0
        self._is_shuffled = False
        self.context_size = store.context_size
        self.store_batch_size_prompts = store.store_batch_size_prompts

    def from_the_start(self) -> Text:
        """Itself, such that the first batch comes next."""
        self._asked = 0
        return self

    def shuffle_input_dataset(self, seed: int) -> None:
        """Shuffle, unless that has been done."""
        if not self._is_shuffled:
            self._store.shuffle_input_dataset(seed)
        self._is_shuffled = True

    def reset_input_dataset(self) -> None:
        """Go back in the text, unless that has been done."""
        if self._asked == len(self._batches):
            self._store.reset_input_dataset()

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """The next tokens [batch_size, context_size]."""
        self._asked += 1
        if self._asked > len(self._batches):
            try:
                batch = self._store.get_batch_tokens(batch_size, raise_at_epoch_end=True)
            except StopIteration:
                raise SuiteError(
                    "the evaluation text ends before all batches are read: lower "
                    "--core.n_eval_sparsity_variance_batches or --core.skip_documents, or give "
                    "more text"
                ) from None
            self._batches.append(batch)
        return self.last_batch

    @property
    def last_batch(self) -> Tensor:
        """The batch that was given last."""
        return self._batches[self._asked - 1]

    def counts(self, reconstructed: int, hooked: Any) -> dict[str, int]:
        """By group of core's metrics, the tokens that count in so many batches."""
        tokenizer, kl, ce = hooked.tokenizer, 0, 0
        ignored = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
        for batch in self._batches[:reconstructed]:
            mask = _counting(batch, ignored)
            kl += int(mask.sum())
            ce += int(mask[:, :-1].sum())  # nothing follows the last token
        return {"model_behavior_preservation": kl, "model_performance_preservation": ce}


def _counting(tokens: Tensor, ignored: Iterable[int | None]) -> Tensor:
    """Where tokens are none of those that core ignores."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for token in ignored:
        if token is not None:
            mask &= tokens != token
    return mask


class _Raising:
    """Stands in for core's logger, which hides the error that it tells of (hazard 1)."""

    def error(self, message: str) -> None:
        raise sys.exc_info()[1] or SuiteError(message)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


# -- sparse probing and SCR -----------------------------------------------------------------------


def sparse_probing(
    sae: Any, name: str, bench: Bench, config: Mapping[str, Any], need: Callable[[str], Need],
    share_probes: bool,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """SAEBench's result, as a dict, and its JSON."""
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    eval_config = SparseProbingEvalConfig(
        model_name=bench.model.name, llm_dtype=bench.model.dtype, **config
    )
    own_seed = eval_config.random_seed if share_probes else None
    with _running(bench, main) as folder, _probing(bench, main, need, own_seed):
        return _probed(main, eval_config, sae, name, bench, folder)


def scr(
    sae: Any, name: str, bench: Bench, config: Mapping[str, Any], need: Callable[[str], Need],
    ablate: Callable[..., dict[bytes, Tensor]],
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """SAEBench's result, as a dict, and its JSON.

    `ablate(acts, sae, masks, batch_size, own)` gives, by the mask's bytes, what SAEBench's own
    `ablated_precomputed_activations` would give for each of several masks; with each comes for how
    many latents it was asked.
    """
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    own_ablations, own_ablated = (
        main.perform_feature_ablations,
        main.ablated_precomputed_activations,
    )

    def all_at_once(
        probes: Any, sae: Any, sae_batch_size: int, all_test_acts_BLD: dict[str, Tensor],
        node_effects: dict[str, Tensor], top_n_values: list[int], chosen_classes: list[str],
        *args: Any,
    ) -> Any:  # fmt: skip
        masks: dict[bytes, tuple[Tensor, set[int]]] = {}
        for chosen in chosen_classes:
            for n in top_n_values:
                mask = main.select_top_n_features(node_effects[chosen], n, chosen)
                masks.setdefault(_bytes(mask), (mask, set()))[1].add(n)
        table = {
            id(acts): ablate(acts, sae, masks, sae_batch_size, own_ablated)
            for acts in all_test_acts_BLD.values()
        }

        def looked_up(acts: Tensor, _: Any, mask: Tensor, __: int) -> Tensor:
            return table[id(acts)][_bytes(mask)]

        with replaced(main, ablated_precomputed_activations=looked_up):
            return own_ablations(
                probes, sae, sae_batch_size, all_test_acts_BLD, node_effects, top_n_values,
                chosen_classes, *args,
            )  # fmt: skip

    eval_config = ScrAndTppEvalConfig(
        model_name=bench.model.name, llm_dtype=bench.model.dtype, perform_scr=True, **config
    )
    with (
        _running(bench, main) as folder,
        _probing(bench, main, need, own_seed=None),
        replaced(main, perform_feature_ablations=all_at_once),
    ):
        return _probed(main, eval_config, sae, name, bench, folder)


def _probed(
    main: Any, eval_config: Any, sae: Any, name: str, bench: Bench, folder: Path
) -> tuple[dict[str, Any], str]:
    results = main.run_eval(
        eval_config, [(name, sae)], bench.model.device, str(folder / "results"),
        save_activations=False, artifacts_path=str(folder / "artifacts"),
    )  # fmt: skip
    return _only(results), _only_json(folder)


def _bytes(mask: Tensor) -> bytes:
    return mask.cpu().numpy().tobytes()


def _only(results: dict[str, Any]) -> dict[str, Any]:
    if len(results) != 1:
        raise SuiteError(f"SAEBench gave {len(results)} results instead of one")
    return next(iter(results.values()))


@contextmanager
def _probing(
    bench: Bench, main: Any, need: Callable[[str], Need], own_seed: int | None
) -> Iterator[None]:
    """Read labelled data from ours, and compute the language model's part only once."""
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.sae_bench_utils import activation_collection

    own_activations = main.get_dataset_activations
    own_mean = activation_collection.create_meaned_model_activations
    own_train = probe_training.train_probe_on_activations
    of_the_model: list[Any] = []

    def get_dataset_activations(name: str, config: Any, *args: Any, **kwargs: Any) -> Any:
        bench.stage(f"activations of {name}")

        def compute() -> Entry:
            parts = own_activations(name, config, *args, **kwargs)
            splits = dict(zip(("train", "test"), parts, strict=True))
            tensors = {f"{s}/{c}": t for s, classes in splits.items() for c, t in classes.items()}
            return tensors, {"order": json.dumps(list(tensors))}  # the file sorts them

        of_config = {
            field: getattr(config, field)
            for field in vars(config)
            if field.endswith("set_size") or field in ("random_seed", "context_length")
        }
        # the arguments but the model; it and the data are in the key by their content
        others = [a for a in (*args, *kwargs.values()) if isinstance(a, (str, int, tuple, list))]
        dataset = name.partition("_class_set")[0].removesuffix("_sentiment")
        key = fingerprint(
            main.__name__, bench.model.hash, bench.model.dtype, bench.data.fingerprint(dataset),
            name, need(dataset), of_config, others,
        )  # fmt: skip
        tensors, texts = bench.cache.get("dataset_activations", key, compute)
        found: dict[str, dict[str, Tensor]] = {"train": {}, "test": {}}
        for label in json.loads(texts["order"]):
            split, _, class_name = label.partition("/")
            found[split][class_name] = tensors[label].to(bench.model.device)
        return found["train"], found["test"]

    def create_meaned_model_activations(acts: Any) -> Any:
        of_the_model.append(own_mean(acts))
        return of_the_model[-1]

    def train_probe_on_activations(train: Any, test: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(train is acts for acts in of_the_model):
            return own_train(train, test, *args, **kwargs)
        bench.stage("the language model's probes")
        return _kept_probes(
            bench.cache, own_seed, partial(own_train, train, test, *args, **kwargs),
            fingerprint(train, test, args, kwargs), probe_training.Probe, bench.model.device,
        )  # fmt: skip

    with (
        _reading(lambda name, config: bench.data.load(name, config, need(name))),
        replaced(main, get_dataset_activations=get_dataset_activations),
        replaced(
            activation_collection, create_meaned_model_activations=create_meaned_model_activations
        ),
        replaced(probe_training, train_probe_on_activations=train_probe_on_activations),
    ):
        yield


def _kept_probes(
    cache: Cache,
    own_seed: int | None,
    train: Callable[[], Any],
    key: str,
    probe_class: Any,
    device: str,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train probes, or take those trained before, from the same data and random state.

    With `own_seed`, they have a random state of their own, so that no SAE's use of it changes them,
    nor do they change what an SAE's probes draw: as in SAEBench where it finds its own cache.
    """
    before = torch.get_rng_state()

    def compute() -> Entry:
        if own_seed is not None:
            torch.manual_seed(int(key[:15], 16))
        probes, accuracies = train()
        tensors = {"random_state": torch.get_rng_state()}
        for name, probe in probes.items():
            if isinstance(probe, probe_class):  # nobody uses scikit-learn's
                tensors |= {f"{name}/{n}": t for n, t in probe.state_dict().items()}
        return tensors, {"accuracies": json.dumps(accuracies)}

    key = fingerprint(key, before if own_seed is None else own_seed)
    tensors, texts = cache.get("probes", key, compute)
    accuracies = json.loads(texts["accuracies"])
    probes = {}
    for name in accuracies:
        prefix = f"{name}/"
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if state:
            weight = state["net.weight"]
            probes[name] = probe_class(weight.shape[1], weight.dtype).to(device)
            probes[name].load_state_dict(state)
    torch.set_rng_state(tensors["random_state"] if own_seed is None else before)
    return probes, accuracies


# -- absorption -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstLetterProbe:
    """The language model's probe for 26 first letters, and what it was trained and tested on."""

    probe: Any
    splits: dict[str, tuple[Tensor, list[tuple[str, int]]]]
    """By split: activations [words, d_in], and each word with its letter's number."""
    states: dict[str, Any]
    """The random states after its training, from which SAEBench would go on."""


def first_letter_probe(
    bench: Bench, layer: int, template: str, position: int, seed: int
) -> FirstLetterProbe:
    """Train SAEBench's first-letter probe, or take the one that was trained before."""
    from sae_bench.evals.absorption import common, main, probing

    own_run = bench.model.hooked.run_with_cache

    def compute() -> Entry:
        with (
            _running(bench, main) as folder,
            _sorted_vocabulary(),
            replaced(bench.model.hooked, run_with_cache=partial(own_run, stop_at_layer=layer + 1)),
        ):
            seed_everything(seed)
            torch.set_grad_enabled(True)
            common.train_and_save_probes(
                bench.model.hooked, [layer], template, position, probes_dir=folder / "probes",
                device=bench.model.device,
            )  # fmt: skip
            states = random_states()
            dtype = getattr(torch, bench.model.dtype)
            # written by ourselves, a moment ago
            where = (folder / "probes", dtype, bench.model.device)
            name = bench.model.hooked.cfg.model_name
            probe = common.load_probe(name, layer, *where)
            splits = {
                split: common.load_probe_data_split(bench.model.hooked, layer, split, *where)
                for split in ("train", "test")
            }
        tensors = {f"probe/{n}": t for n, t in probe.state_dict().items()}
        tensors |= {split: acts for split, (acts, _) in splits.items()}
        tensors["torch"] = states["torch"]
        texts = {split: json.dumps(words) for split, (_, words) in splits.items()}
        return tensors, {**texts, "python": json.dumps(states["python"])}

    key = fingerprint(
        bench.model.hash, bench.model.dtype, bench.hook_name, layer, template, position, seed
    )
    tensors, texts = bench.cache.get("first_letter_probes", key, compute)
    weight = tensors["probe/fc.weight"]
    with undisturbed():  # its initial weights are random
        probe = probing.LinearProbe(weight.shape[1], len(weight)).to(
            bench.model.device, dtype=weight.dtype
        )
    probe.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("probe/")})
    splits = {
        split: (tensors[split], [(word, number) for word, number in json.loads(texts[split])])
        for split in ("train", "test")
    }
    version, numbers, gauss = json.loads(texts["python"])
    python = (version, tuple(numbers), gauss)
    return FirstLetterProbe(probe, splits, {"python": python, "torch": tensors["torch"]})


def dtype_of_first_letters() -> str:
    """The dtype of SAEBench's first-letter probe, whatever the language model's (hazard 21)."""
    from sae_bench.evals.absorption.common import DEFAULT_DTYPE

    return str(DEFAULT_DTYPE).removeprefix("torch.")


def absorption(
    sae: Any, name: str, bench: Bench, shared: SharedModel, given: FirstLetterProbe,
    config: Mapping[str, Any], seed: int,
) -> tuple[dict[str, Any], str, Any]:  # fmt: skip
    """SAEBench's result, as a dict, its JSON, and its table of probes by letter (a DataFrame).

    Raises:
        SuiteError: too few letters can be read off the language model's activations.
    """
    from sae_bench.evals.absorption import feature_absorption, k_sparse_probing, main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    tables: list[Any] = []

    def load_or_train_probe(*_: Any, **__: Any) -> Any:
        random.setstate(given.states["python"])
        torch.set_rng_state(given.states["torch"])
        return given.probe

    def load_data(*_: Any, split: str, **__: Any) -> tuple[Tensor, list[tuple[str, int]]]:
        acts, words = given.splits[split]
        return acts.clone(), words

    eval_config = AbsorptionEvalConfig(
        model_name=bench.model.name, llm_dtype=bench.model.dtype, random_seed=seed, **config
    )
    with _running(bench, main) as folder, _sorted_vocabulary(), shared.answering():
        probing = {"experiment_dir": folder / "k_sparse_probing"}
        own_probing, own_experiment = (
            main.run_k_sparse_probing_experiment, main.run_feature_absortion_experiment,
        )  # fmt: skip

        def run_k_sparse_probing_experiment(**kwargs: Any) -> Any:
            tables.append(own_probing(**kwargs, **probing))
            return tables[0]

        def run_feature_absortion_experiment(**kwargs: Any) -> Any:
            return own_experiment(
                **kwargs, experiment_dir=folder / "feature_absorption",
                sparse_probing_experiment_dir=probing["experiment_dir"],
            )  # fmt: skip

        with (
            replaced(main, run_k_sparse_probing_experiment=run_k_sparse_probing_experiment,
                     run_feature_absortion_experiment=run_feature_absortion_experiment),
            replaced(k_sparse_probing, load_or_train_probe=load_or_train_probe,
                     load_probe_data_split_or_train=load_data,
                     _get_sae_acts=_encoded_once(k_sparse_probing._get_sae_acts),
                     metrics=_Together(k_sparse_probing.metrics)),
            replaced(feature_absorption, load_probe=lambda **_: given.probe),
        ):  # fmt: skip
            (folder / "results").mkdir()
            seed_everything(seed)
            results = main.run_eval(
                eval_config, [(name, sae)], bench.model.device, str(folder / "results")
            )
        table = tables[0]
        if not results:
            found = table[table["f1_probe"] > eval_config.min_GT_probe_f1]["letter"]
            raise SuiteError(
                f"{len(found)} first letters ({', '.join(found) or 'none'}) can be read off "
                f"{bench.model.name} at {bench.hook_name} with an F1 above "
                f"{eval_config.min_GT_probe_f1}, and {eval_config.min_feats_for_eval} are needed: "
                "evaluate another layer, or lower --absorption.min_letters"
            )
        return _only(results), _only_json(folder), table


@contextmanager
def _sorted_vocabulary() -> Iterator[None]:
    """The vocabulary in one order in every process (hazard 19)."""
    from sae_bench.evals.absorption import common, feature_absorption

    own = common.get_alpha_tokens

    def get_alpha_tokens(*args: Any, **kwargs: Any) -> list[str]:
        return sorted(own(*args, **kwargs))

    with (
        replaced(common, get_alpha_tokens=get_alpha_tokens),
        replaced(feature_absorption, get_alpha_tokens=get_alpha_tokens),
    ):
        yield


def _encoded_once(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Encode once what is asked for some features at a time."""
    codes: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def get_sae_acts(
        sae: Any, acts: Tensor, batch_size: int = 4096, sparse_feat_ids: Tensor | None = None
    ) -> Tensor:
        if sparse_feat_ids is None or len(acts) * sae.cfg.d_sae > MOST_CODES:
            return own(sae, acts, batch_size, sparse_feat_ids)
        key = (id(acts), batch_size)
        if key not in codes:
            codes[key] = (acts, own(sae, acts, batch_size))  # with acts, lest the id be another's
        return codes[key][1][:, sparse_feat_ids]

    return get_sae_acts


class _Together:
    """Stands in for `sklearn.metrics`, which counts anew for each of F1, recall and precision."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._inputs: tuple[bytes, bytes] | None = None
        self._found = (0.0, 0.0, 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _counted(self, truth: Any, predicted: Any) -> tuple[float, float, float]:
        inputs = (truth.tobytes(), predicted.tobytes())
        if inputs != self._inputs:
            precision, recall, f1, _ = self._own.precision_recall_fscore_support(
                truth, predicted, average="binary"
            )
            self._inputs, self._found = inputs, (precision, recall, f1)
        return self._found

    def precision_score(self, truth: Any, predicted: Any) -> float:
        return self._counted(truth, predicted)[0]

    def recall_score(self, truth: Any, predicted: Any) -> float:
        return self._counted(truth, predicted)[1]

    def f1_score(self, truth: Any, predicted: Any) -> float:
        return self._counted(truth, predicted)[2]
