"""Sparse probing on the 113 datasets of sae-probes, by SAEBench's wrapper of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.probing import (
    Latents,
    check_reported,
    check_whole,
    known,
    mean_over_items,
)
from sae_plugins.eval_suites.saebench.facts import refuse_heads, reported_numbers
from sae_plugins.eval_suites.saebench.sae_probes import run_sae_probes
from sae_plugins.eval_suites.saebench.sae_probes_datasets import DATASETS
from sae_plugins.eval_suites.suite import SHARE, Cost, Metric, Scores, Suite, SuiteSettings, Value

_LENGTH = 1024
"""Of a text in sae-probes."""
_MOST = 5000
"""Texts of a dataset that sae-probes makes use of."""
_CHARACTERS = 4
"""Of a token, about."""


class SAEProbesSettings(SuiteSettings):
    """Settings of sae-probes; the defaults are SAEBench's."""

    dataset_names: Annotated[tuple[str, ...], known("dataset", DATASETS)] = Field(
        tuple(DATASETS), description="the datasets to probe on, which come with sae-probes"
    )
    ks: Latents = Field((1, 2, 5), description="numbers of latents to probe with")
    reg_type: Literal["l1", "l2"] = Field("l1", description="the penalty of the probes on latents")
    context_length: int = Field(
        _LENGTH, ge=2, description="tokens of a text; longer ones are cut at their beginning"
    )


class SAEProbes(Suite):
    """Probes on a few latents at the last token, on the datasets of sae-probes (SAEBench)."""

    name = "sae-probes"
    needs_saebench = True
    distributions = ("sae-probes", "scikit-learn")
    item = "dataset"
    Settings = SAEProbesSettings
    context = "context_length"
    numbers = "ks"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "dataset_names": (
                "96_spam_is", "105_click_bait", "118_us_state_CA", "130_temp_cat_Frequency",
            ),
            "context_length": 64,
        },
    }  # fmt: skip
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sae_top_{k}_test_accuracy", "top-{k} probing accuracy (sae-probes)",
               "of a probe on the k latents whose means, relative to how active they are, differ "
               "most between the two classes; 0.5 is chance", "higher", headline=True,
               bounds=SHARE, margin=0.01),
        Metric("sae_top_{k}_test_auc", "top-{k} probing AUC", "area under its ROC curve",
               "higher", bounds=SHARE, margin=0.01),
        Metric("sae_top_{k}_test_f1", "top-{k} probing F1", "its F1, weighted by class", "higher",
               bounds=SHARE, margin=0.01),
        Metric("llm_test_accuracy", "residual accuracy",
               "of a probe on the language model's activations: about the most to be had",
               "neither", headline=True, bounds=SHARE),
        Metric("llm_test_auc", "residual AUC", "area under its ROC curve", "neither",
               bounds=SHARE),
        Metric("llm_test_f1", "residual F1", "its F1, weighted by class", "neither",
               bounds=SHARE),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        if not subject.hook_name.startswith("blocks."):
            return f"SAEBench finds the results of hooks in blocks only, not of {subject.hook_name}"
        return refuse_heads(subject)

    def cost(self, subject: Subject, settings: SAEProbesSettings) -> Cost:
        sizes = [DATASETS[name] for name in settings.dataset_names]
        tokens = sum(
            texts * min(-(-characters // _CHARACTERS), settings.context_length)
            for texts, characters in sizes
        )
        texts = sum(texts for texts, _ in sizes)
        encoded = sum(min(texts, _MOST) for texts, _ in sizes)
        return Cost(tokens, encoded, 4 * texts * subject.d_in)

    def evaluate(
        self, subject: Subject, bench: Bench, settings: SAEProbesSettings, seed: int, prepared: Any
    ) -> Scores:
        reported = reported_numbers("sparse_probing_sae_probes", "sae_top_{k}_test_accuracy")
        check_reported("--sae-probes.ks", settings.ks, reported, subject.d_sae)
        sae = subject.copy(bench.model.device, "float32")  # as SAEBench leaves it
        config = {
            "random_seed": seed,
            "dataset_names": list(settings.dataset_names),
            "ks": list(settings.ks),
            "reg_type": settings.reg_type,
        }
        result, raw = run_sae_probes(sae, subject.name, bench, config, settings.context_length)
        details = {
            row["dataset_name"]: {
                name: value
                for name, value in row.items()
                if name.startswith(("sae_top_", "llm_")) and value is not None
            }
            for row in result["eval_result_details"]
        }
        metrics: dict[str, Value] = {}
        for group in result["eval_result_metrics"].values():
            metrics |= mean_over_items(group, details)
        check_whole(metrics, self.metric_names(settings), details, settings.dataset_names)
        deviations = []
        if settings.context_length != _LENGTH:
            deviations.append(f"texts are cut at {settings.context_length} tokens, not {_LENGTH}")
        if bench.model.dtype != "float32":
            deviations.append(f"the language model is in {bench.model.dtype}, not in float32")
        return Scores(metrics, details, [], deviations, raw)
