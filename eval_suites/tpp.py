"""TPP, targeted probe perturbation: whether a few latents carry one class, and not the others."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_plugins.eval_suites.ablation import Ablation, MaskPadding, SumCodes
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
    names_of,
    refuse_heads,
    reported_numbers,
)
from sae_plugins.eval_suites.saebench.probing import run_ablations
from sae_plugins.eval_suites.suite import Cost, Metric, Scores, Suite, SuiteSettings, Value

DATASETS = ("LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5")
"""All that SAEBench's TPP knows."""
_CLASSES = 5
"""Of a dataset."""
_DIFFERENCE = (-1.0, 1.0)
"""The bounds of a difference of accuracies."""


class TPPSettings(SuiteSettings):
    """Settings of TPP; the defaults are SAEBench's."""

    dataset_names: Annotated[tuple[str, ...], known("dataset", DATASETS)] = Field(
        DATASETS, description="the datasets, of five classes each"
    )
    n_values: Latents = Field(
        (2, 5, 10, 20, 50, 100, 500), description="numbers of latents to ablate"
    )
    train_set_size: int = Field(4000, ge=8, description="texts to train a probe on")
    test_set_size: int = Field(1000, ge=8, description="texts to test it on")
    context_length: int = Field(128, ge=2, description="tokens of a text; longer ones are cut")
    sae_batch_size: int = Field(125, ge=1, description="texts that are encoded at once")
    mask_padding: MaskPadding = False
    same_texts: bool = Field(
        False,
        description="test a probe before and after an ablation on the same texts of other classes, "
        "where SAEBench draws them anew",
    )
    sum_codes: SumCodes = True


class TPP(Suite):
    """Targeted probe perturbation: ablate the latents of one class (SAEBench TPP)."""

    name = "tpp"
    needs_saebench = True
    item = "class"
    Settings = TPPSettings
    context = "context_length"
    numbers = "n_values"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"train_set_size": 400, "test_set_size": 200, "context_length": 64},
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("tpp_threshold_{k}_total_metric", "TPP at {k}",
               "ablating a class's k latents (a number, not a threshold), the accuracy that its "
               "own probe loses less the mean of what the other classes' probes lose", "higher",
               headline=True, bounds=(-2.0, 2.0), margin=0.01),
        Metric("tpp_threshold_{k}_intended_diff_only", "TPP at {k}, intended",
               "the accuracy that the class's own probe loses", "higher", bounds=_DIFFERENCE,
               margin=0.01),
        Metric("tpp_threshold_{k}_unintended_diff_only", "TPP at {k}, unintended",
               "the accuracy that the other classes' probes lose, mean", "lower",
               bounds=_DIFFERENCE, margin=0.01),
        Metric("padding_leak_threshold_{k}", "(ours)",
               "how much of what is ablated comes from padding, not from the text: length of the "
               "one to that of the other", "lower"),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_heads(subject)

    def cost(self, subject: Subject, settings: TPPSettings) -> Cost:
        texts = (settings.train_set_size + settings.test_set_size) // 2 * _CLASSES
        return cost(subject, texts * settings.context_length * len(settings.dataset_names))

    def evaluate(
        self, subject: Subject, bench: Bench, settings: TPPSettings, seed: int, prepared: Any
    ) -> Scores:
        reported = reported_numbers("scr_and_tpp", "tpp_threshold_{k}_total_metric")
        check_reported("--tpp.n_values", settings.n_values, reported, subject.d_sae)
        sae = subject.copy(bench.model.device, bench.model.dtype)
        config = settings.model_dump(exclude={"mask_padding", "same_texts", "sum_codes"}) | {
            "perform_scr": False,
            "random_seed": seed,
            "dataset_names": list(settings.dataset_names),
            "n_values": list(settings.n_values),
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        ablation = Ablation(settings.sum_codes, settings.mask_padding)
        result, raw = run_ablations(
            sae, subject.name, bench, config,
            lambda dataset: _need(dataset, settings), ablation, settings.same_texts,
        )  # fmt: skip
        details: dict[str, dict[str, float | None]] = {}
        for dataset, rows in result["eval_result_unstructured"].items():
            names = names_of(dataset)
            details |= {names[number]: dict(row) for number, row in rows.items()}
        metrics = mean_over_items(result["eval_result_metrics"]["tpp_metrics"], details)
        for n, leak in ablation.leak(settings.n_values).items():
            metrics[f"padding_leak_threshold_{n}"] = Value(value=leak)
        check_whole(
            metrics, [n for n in self.metric_names(settings) if n.startswith("tpp_")], details,
            [name for dataset in settings.dataset_names for name in names_of(dataset).values()],
        )  # fmt: skip
        warnings = [BEST_EPOCH]
        warnings += [
            f"tpp_threshold_{n}: down to {count} of the ablated latents speak for their class; "
            "SAEBench fills up with latents that have no effect on the probe"
            for n, count in sorted(ablation.fewer.items())
        ]
        deviations = ablation.deviations()
        if settings.same_texts:
            deviations.append("a probe is tested before and after on the same texts")
        return Scores(metrics, details, warnings, deviations, raw)


def _need(dataset: str, settings: TPPSettings) -> Need:
    """The rows that SAEBench takes of each cell, such as of the female accountants."""
    (name,) = (name for name in settings.dataset_names if name.startswith(dataset))
    return Need(settings.train_set_size // 4, settings.test_set_size // 4, tuple(classes_of(name)))
