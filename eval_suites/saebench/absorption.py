"""SAEBench's absorption, run for one SAE, and the language model's probe that it needs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.kept import Cached
from sae_plugins.base.patches import replaced
from sae_plugins.base.seeds import random_states, seed_everything
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running, undisturbed
from sae_plugins.eval_suites.saebench.shared_model import SharedModel

MOST_CODES = 2_000_000_000
"""Numbers of codes that are held in memory rather than encoded again."""
_AT_ONCE = 24
"""Words that SAEBench gives to its probe together."""


@dataclass(frozen=True)
class FirstLetterProbe:
    """The language model's probe for 26 first letters, and what it was trained and tested on."""

    probe: Any
    splits: dict[str, tuple[Tensor, list[tuple[str, int]]]]
    """By split: activations [words, d_in], and each word with its letter's number."""
    states: dict[str, Any]
    """The random states after its training, from which SAEBench would go on."""

    @torch.no_grad()
    def f1(self) -> dict[str, float]:
        """By letter, how well it is told from the others, as SAEBench's table of an SAE has it."""
        from sae_bench.evals.absorption.vocab import LETTERS
        from sklearn.metrics import f1_score

        acts, words = self.splits["test"]
        device = next(self.probe.parameters()).device
        scores = torch.cat([self.probe(a.to(device)).float().cpu() for a in acts.split(_AT_ONCE)])
        numbers = torch.tensor([number for _, number in words])
        return {
            letter: float(f1_score(numbers == i, scores[:, i] > 0, zero_division=0.0))
            for i, letter in enumerate(LETTERS)
        }


def first_letter_probe(
    bench: Bench, layer: int, template: str, position: int, seed: int
) -> FirstLetterProbe:
    """Train SAEBench's first-letter probe, or take the one that was trained before."""
    from sae_bench.evals.absorption import common, main, probing

    own_run = bench.model.hooked.run_with_cache

    def compute() -> Cached:
        with (
            running(bench, main) as folder,
            sorted_vocabulary(),
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


def run_absorption(
    sae: Any, name: str, bench: Bench, shared: SharedModel, given: FirstLetterProbe,
    config: Mapping[str, Any], seed: int,
) -> tuple[dict[str, Any], str, Any]:  # fmt: skip
    """SAEBench's result, as a dict, its JSON, and its table of probes by letter (a DataFrame)."""
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
        model_name=bench.model.label, llm_dtype=bench.model.dtype, random_seed=seed, **config
    )
    with running(bench, main) as folder, sorted_vocabulary(), shared.answering():
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
        return only(results), only_json(folder), tables[0]


@contextmanager
def sorted_vocabulary() -> Iterator[None]:
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
            # keeps acts, so that no others get their id
            codes[key] = (acts, own(sae, acts, batch_size))
        return codes[key][1][:, sparse_feat_ids]

    return get_sae_acts


class _Together:
    """Stands in for `sklearn.metrics`, which counts again for each of F1, recall and precision."""

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
