"""Sparse probing: what a linear probe reads off the k latents that differ most between classes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.data import Need
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.probing import (
    BEST_EPOCH,
    Latents,
    check_reported,
    check_whole,
    cost,
    known,
    mean_over_items,
)
from sae_plugins.eval_suites.saebench.facts import (
    classes_of,
    default_batch_size,
    has_attribute,
    refuse_heads,
    reported_numbers,
)
from sae_plugins.eval_suites.saebench.probing import run_sparse_probing
from sae_plugins.eval_suites.suite import SHARE, Cost, Metric, Scores, Suite, SuiteSettings, Value

DATASETS = (
    "LabHC/bias_in_bios_class_set1",
    "LabHC/bias_in_bios_class_set2",
    "LabHC/bias_in_bios_class_set3",
    "canrager/amazon_reviews_mcauley_1and5",
    "canrager/amazon_reviews_mcauley_1and5_sentiment",
    "codeparrot/github-code",
    "fancyzhx/ag_news",
    "Helsinki-NLP/europarl",
)
_CLASSES = 5
"""Of a dataset, at most."""


class SparseProbingSettings(SuiteSettings):
    """Settings of sparse probing; the defaults are SAEBench's."""

    dataset_names: Annotated[tuple[str, ...], known("dataset", DATASETS)] = Field(
        DATASETS, description="the datasets to probe on"
    )
    k_values: Latents = Field((1, 2, 5), description="numbers of latents to probe with")
    probe_train_set_size: int = Field(4000, ge=8, description="texts to train a probe on")
    probe_test_set_size: int = Field(1000, ge=8, description="texts to test it on")
    context_length: int = Field(128, ge=2, description="tokens of a text; longer ones are cut")
    sae_batch_size: int = Field(125, ge=1, description="texts that are encoded at once")
    share_probes: bool = Field(
        True,
        description="train the language model's probes once for all SAEs, from a random state of "
        "their own, as SAEBench does from its second SAE on",
        json_schema_extra={"shortcut": True},
    )


class SparseProbing(Suite):
    """Accuracy of probes on a few latents, beside the language model's own (SAEBench)."""

    name = "sparse-probing"
    needs_saebench = True
    item = "dataset"
    Settings = SparseProbingSettings
    context = "context_length"
    numbers = "k_values"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"probe_train_set_size": 400, "probe_test_set_size": 200, "context_length": 64},
        "paper": {"k_values": (1, 5, 20)},
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sae_top_{k}_test_accuracy", "top-{k} sparse probing accuracy",
               "of a probe on the k latents whose means differ most between the classes; 0.5 is "
               "chance", "higher", headline=True, bounds=SHARE, margin=0.01),
        Metric("sae_test_accuracy", "full-code probing accuracy",
               "of a probe on all latents, which a dense code wins: not sparse probing", "higher",
               headline=True, bounds=SHARE, margin=0.01),
        Metric("llm_top_{k}_test_accuracy", "top-{k} residual accuracy",
               "the same with the k channels of the language model that differ most", "neither",
               bounds=SHARE),
        Metric("llm_test_accuracy", "residual accuracy",
               "of a probe on the language model's activations: about the most to be had",
               "neither", headline=True, bounds=SHARE),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_heads(subject)

    def cost(self, subject: Subject, settings: SparseProbingSettings) -> Cost:
        texts = (settings.probe_train_set_size + settings.probe_test_set_size) // 2 * _CLASSES
        return cost(subject, texts * settings.context_length * len(settings.dataset_names))

    def evaluate(
        self,
        subject: Subject,
        bench: Bench,
        settings: SparseProbingSettings,
        seed: int,
        prepared: Any,
    ) -> Scores:
        reported = reported_numbers("sparse_probing", "sae_top_{k}_test_accuracy")
        check_reported("--sparse-probing.k_values", settings.k_values, reported, subject.d_sae)
        sae = subject.copy(bench.model.device, bench.model.dtype)
        config = settings.model_dump(exclude={"share_probes"}) | {
            "random_seed": seed,
            "dataset_names": list(settings.dataset_names),
            "k_values": list(settings.k_values),
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        result, raw = run_sparse_probing(
            sae, subject.name, bench, config,
            lambda dataset: _need(dataset, settings), settings.share_probes,
        )  # fmt: skip
        details = {
            row["dataset_name"].removesuffix("_results"): {
                name: value
                for name, value in row.items()
                if name != "dataset_name" and value is not None
            }
            for row in result["eval_result_details"]
        }
        metrics: dict[str, Value] = {}
        for group in result["eval_result_metrics"].values():
            metrics |= mean_over_items(group, details)
        wanted = [f"sae_top_{k}_test_accuracy" for k in settings.k_values] + ["sae_test_accuracy"]
        check_whole(metrics, wanted, details, settings.dataset_names)
        return Scores(
            metrics=metrics,
            details=details,
            deviations=["the language model's probes have a random state of their own"]
            if settings.share_probes
            else [],
            warnings=[BEST_EPOCH],
            raw=raw,
        )


def _need(dataset: str, settings: SparseProbingSettings) -> Need:
    """The rows that SAEBench takes of each cell of a dataset, for all the sets of classes of it."""
    sets = [name for name in settings.dataset_names if name.startswith(dataset)]
    classes = dict.fromkeys(c for name in sets for c in classes_of(name))
    if all(name.endswith("_sentiment") for name in sets):
        parts = 2 * len(classes)  # half of a rating each, from all categories
    else:
        parts = 4 if has_attribute(dataset) else 2
    train, test = settings.probe_train_set_size, settings.probe_test_set_size
    return Need(-(-train // parts), -(-test // parts), tuple(classes))
