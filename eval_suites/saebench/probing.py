"""SAEBench's sparse probing, SCR and TPP, run for one SAE: all probe labelled texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.kept import Cached
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.ablation import Ablation, Masks
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.cache import Cache
from sae_plugins.eval_suites.inputs.data import Need
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running

OF_THE_DATA = ("random_seed", "context_length", "perform_scr")
"""Fields of a config, besides the sizes of sets, that decide which texts are read, and how."""


def run_sparse_probing(
    sae: Any, name: str, bench: Bench, config: Mapping[str, Any], need: Callable[[str], Need],
    share_probes: bool,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """SAEBench's result, as a dict, and its JSON."""
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    eval_config = SparseProbingEvalConfig(
        model_name=bench.model.label, llm_dtype=bench.model.dtype, **config
    )
    own_seed = eval_config.random_seed if share_probes else None
    with running(bench, main) as folder, _probing(bench, main, need, own_seed):
        return _probed(main, eval_config, sae, name, bench, folder)


def run_ablations(
    sae: Any, name: str, bench: Bench, config: Mapping[str, Any], need: Callable[[str], Need],
    ablation: Ablation, probed_alike: bool = False,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """SAEBench's result of SCR or TPP, as a dict, and its JSON.

    Args:
        sae: a copy, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model and the data.
        config: SAEBench's; `perform_scr` says which of the two.
        need: by dataset, the rows that are read.
        ablation: gives what SAEBench's own would for each of several masks.
        probed_alike: test all probes of a class on the same texts (hazard 24).
    """
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    eval_config = ScrAndTppEvalConfig(
        model_name=bench.model.label, llm_dtype=bench.model.dtype, **config
    )
    own_accuracy = main.get_probe_test_accuracy

    def on_the_same_texts(*args: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(eval_config.random_seed)
            return own_accuracy(*args)

    with (
        running(bench, main) as folder,
        _probing(bench, main, need, own_seed=None),
        _ablating_at_once(main, ablation),
        replaced(main, get_probe_test_accuracy=on_the_same_texts if probed_alike else own_accuracy),
    ):
        return _probed(main, eval_config, sae, name, bench, folder)


@contextmanager
def _ablating_at_once(main: Any, ablation: Ablation) -> Iterator[None]:
    """Have SAEBench look up what `ablation` has found for all masks together."""
    own_ablations, own_ablated = (
        main.perform_feature_ablations,
        main.ablated_precomputed_activations,
    )

    def all_at_once(
        probes: Any, sae: Any, sae_batch_size: int, all_test_acts_BLD: dict[str, Tensor],
        node_effects: dict[str, Tensor], top_n_values: list[int], chosen_classes: list[str],
        *args: Any,
    ) -> Any:  # fmt: skip
        masks: Masks = {}
        for chosen in chosen_classes:
            for n in top_n_values:
                mask = main.select_top_n_features(node_effects[chosen], n, chosen)
                ablation.choose(n, mask, node_effects[chosen])
                masks.setdefault(_bytes(mask), (mask, set()))[1].add(n)
        table = {
            id(acts): ablation(acts, sae, masks, sae_batch_size, own_ablated)
            for acts in all_test_acts_BLD.values()
        }

        def looked_up(acts: Tensor, _: Any, mask: Tensor, __: int) -> Tensor:
            return table[id(acts)][_bytes(mask)]

        with replaced(main, ablated_precomputed_activations=looked_up):
            return own_ablations(
                probes, sae, sae_batch_size, all_test_acts_BLD, node_effects, top_n_values,
                chosen_classes, *args,
            )  # fmt: skip

    with replaced(main, perform_feature_ablations=all_at_once):
        yield


def _probed(
    main: Any, eval_config: Any, sae: Any, name: str, bench: Bench, folder: Path
) -> tuple[dict[str, Any], str]:
    results = main.run_eval(
        eval_config, [(name, sae)], bench.model.device, str(folder / "results"),
        save_activations=False, artifacts_path=str(folder / "artifacts"),
    )  # fmt: skip
    return only(results), only_json(folder)


def _bytes(mask: Tensor) -> bytes:
    return mask.cpu().numpy().tobytes()


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

        def compute() -> Cached:
            parts = own_activations(name, config, *args, **kwargs)
            splits = dict(zip(("train", "test"), parts, strict=True))
            tensors = {f"{s}/{c}": t for s, classes in splits.items() for c, t in classes.items()}
            return tensors, {"order": json.dumps(list(tensors))}  # the file sorts them

        of_config = {
            field: getattr(config, field)
            for field in vars(config)
            if field.endswith("set_size") or field in OF_THE_DATA
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

    def compute() -> Cached:
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
