"""SAEBench's core, run for one SAE."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.saebench.isolation import only_json, running
from sae_plugins.eval_suites.saebench.shared_model import SharedModel
from sae_plugins.eval_suites.saebench.text import Text, counting


def run_core(
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
            mask = counting(activation_store.last_batch, kwargs["ignore_tokens"])
            observe(seen[0][mask], seen[1][mask], out[mask])
            return out

        with replaced(sae, encode=watched_encode, decode=watched_decode):
            return own_metrics(sae, model, activation_store, **kwargs)

    with (
        running(bench, main) as folder,
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
        return results[0]["metrics"], only_json(folder), counts


class _Raising:
    """Stands in for core's logger, which hides the error that it tells of (hazard 1)."""

    def error(self, message: str) -> None:
        raise sys.exc_info()[1] or SuiteError(message)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None
