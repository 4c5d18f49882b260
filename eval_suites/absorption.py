"""Absorption: latents for a first letter that do not fire where another latent speaks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.subjects import Subject, layer_of
from sae_plugins.eval_suites.saebench.absorption import first_letter_probe, run_absorption
from sae_plugins.eval_suites.saebench.facts import (
    bytes_of_activation,
    default_batch_size,
    dtype_of_first_letters,
    refuse_other_hooks,
)
from sae_plugins.eval_suites.saebench.shared_model import SharedModel
from sae_plugins.eval_suites.suite import SHARE, Cost, Metric, Scores, Suite, SuiteSettings, Value
from sae_plugins.world import NAME as WORLD

PROMPT_TOKENS = 90
"""About, with ten examples before the word."""
TEMPLATE = "{word} has the first letter:"
POSITION = -6
"""Of the word's token in the template."""


class AbsorptionSettings(SuiteSettings):
    """Settings of absorption; the defaults are SAEBench's."""

    max_k_value: int = Field(10, ge=1, description="latents that a letter may be split into")
    f1_jump_threshold: float = Field(
        0.03, description="F1 that one more latent must add to count as a split"
    )
    min_GT_probe_f1: float = Field(
        0.6, ge=0, le=1, description="F1 with which a letter must be readable off the model"
    )
    min_letters: int = Field(20, ge=2, le=26, description="letters that must be readable")
    k_sparse_probe_num_epochs: int = Field(50, ge=1, description="epochs of the probes on latents")
    k_sparse_probe_l1_decay: float = Field(0.01, ge=0, description="their L1 penalty")
    precalculate_codes: bool = Field(
        True,
        description="encode the words once rather than in every epoch; equal up to rounding",
        json_schema_extra={"shortcut": True},
    )


class Absorption(Suite):
    """Feature absorption in the first-letter task (SAEBench absorption)."""

    name = "absorption"
    needs_saebench = True
    item = "letter"
    Settings = AbsorptionSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"k_sparse_probe_num_epochs": 20}}
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mean_full_absorption_score", "absorption",
               "share of the words with a readable first letter where none of the letter's latents "
               "fires and another one speaks for it: the headline", "lower", headline=True,
               bounds=SHARE, margin=0.02),
        Metric("mean_absorption_fraction_score", "absorption fraction",
               "partial absorption too; it was redefined in SAEBench 0.5, so never compare it with "
               "numbers of older versions or papers", "lower", headline=True,
               bounds=SHARE, margin=0.02),
        Metric("mean_num_split_features", "feature splitting",
               "latents that a letter takes; 1 is no splitting", "lower", headline=True,
               bounds=(0.0, None), margin=0.1),
        Metric("num_letters", "(ours)", "letters that could be read off the language model",
               "neither"),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_other_hooks(subject, "reads the activations at")

    def cost(self, subject: Subject, settings: AbsorptionSettings) -> Cost:
        # single tokens of letters alone: nearly all of the world's, and of most vocabularies a lot
        words = 5_000 if subject.model_name == WORLD else 60_000
        return Cost(
            int(1.2 * words * PROMPT_TOKENS), (60 + settings.max_k_value) * words,
            2 * words * bytes_of_activation(subject),
        )  # fmt: skip

    def prepare(self, bench: Bench, settings: AbsorptionSettings, seed: int) -> Any:
        bench.stage("the language model's first letters")
        layer = layer_of(bench.hook_name)
        probe = first_letter_probe(bench, layer, TEMPLATE, POSITION, seed)
        _check_letters(probe.f1(), bench, settings)
        shared = SharedModel(bench.model, bench.hook_name, bench.cache)
        shared.position = POSITION
        return shared, probe

    def evaluate(
        self, subject: Subject, bench: Bench, settings: AbsorptionSettings, seed: int, prepared: Any
    ) -> Scores:
        bench.stage("absorption")
        if settings.max_k_value > subject.d_sae or subject.d_sae < 10:
            raise SuiteError(
                f"{subject.name} has only {subject.d_sae} latents, and absorption needs 10, and "
                f"--absorption.max_k_value {settings.max_k_value}"
            )
        sae = subject.copy(bench.model.device, bench.model.dtype)
        shared, probe = prepared
        config = settings.model_dump(exclude={"min_letters", "precalculate_codes"}) | {
            "prompt_template": TEMPLATE,
            "prompt_token_pos": POSITION,
            "min_feats_for_eval": settings.min_letters,
            "precalc_k_sparse_probe_sae_acts": settings.precalculate_codes,
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        result, raw, table = run_absorption(sae, subject.name, bench, shared, probe, config, seed)
        details: dict[str, dict[str, float | None]] = {
            row["first_letter"]: {n: v for n, v in row.items() if n != "first_letter"}
            for row in result["eval_result_details"]
        }
        for letter, f1 in zip(table["letter"], table["f1_probe"], strict=True):
            details.setdefault(letter, {})["llm_probe_f1"] = f1
        n = len(result["eval_result_details"])
        means = result["eval_result_metrics"]["mean"]
        metrics = {
            name: Value(value=means[name], n=n, std=means[f"std_dev_{name.removeprefix('mean_')}"])
            for name in means
            if name.startswith("mean_")
        }
        metrics["num_letters"] = Value(value=n)
        undefined = [name for name, value in metrics.items() if value.value is None]
        if undefined:
            raise SuiteError(f"{', '.join(undefined)} of {subject.name} is not a number")
        deviations = [
            "the vocabulary is sorted and everything random seeded, where SAEBench does neither"
        ]
        if settings.precalculate_codes:
            deviations.append("words are encoded once rather than in every epoch")
        if bench.model.dtype != dtype_of_first_letters():
            deviations.append("the language model's probe is in the dtype of the language model")
        if settings.min_letters != 20:
            deviations.append(f"{settings.min_letters} letters suffice instead of 20")
        return Scores(metrics, dict(sorted(details.items())), [], deviations, raw)


def _check_letters(f1: Mapping[str, float], bench: Bench, settings: AbsorptionSettings) -> None:
    """Refuse a language model off which too few first letters can be read, whatever the SAE."""
    found = [letter for letter, value in f1.items() if value > settings.min_GT_probe_f1]
    if len(found) < settings.min_letters:
        raise SuiteError(
            f"{len(found)} first letters ({', '.join(found) or 'none'}) can be read off "
            f"{bench.model.name} at {bench.hook_name} with an F1 above "
            f"{settings.min_GT_probe_f1}, and {settings.min_letters} are needed: evaluate another "
            "layer, or lower --absorption.min_letters"
        )
