"""RAVEL: whether latents hold one attribute of an entity, and no other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.data import RAVEL as DATASET
from sae_plugins.eval_suites.inputs.data import Data
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.probing import check_whole, mean_over_items
from sae_plugins.eval_suites.saebench.facts import default_batch_size, refuse_other_hooks
from sae_plugins.eval_suites.saebench.ravel import ask, begin_alike, files_of, run_ravel
from sae_plugins.eval_suites.suite import SHARE, Cost, Metric, Scores, Suite, SuiteSettings

ATTRIBUTES = (
    "city/Country", "city/Continent", "city/Language", "nobel_prize_winner/Country of Birth",
    "nobel_prize_winner/Field", "nobel_prize_winner/Gender",
)  # fmt: skip
_PROMPT, _QUESTIONS = 26, 50_000
"""Tokens of a question with its answer, and questions about an attribute, roughly."""
_MANY = 0.01
"""A share of pairs that is worth a warning."""


def _check_attributes(given: tuple[str, ...]) -> tuple[str, ...]:
    for each in given:
        if not all(each.partition("/")):
            raise ValueError(f"{each!r} is no ENTITY/ATTRIBUTE, such as {ATTRIBUTES[0]}")
    for entity, attributes in _selection(given).items():
        if len(set(attributes)) < 2 or len(set(attributes)) < len(attributes):
            raise ValueError(f"name two attributes of {entity} at least, each once")
    if not given:
        raise ValueError("name two attributes at least")
    return given


def _selection(given: Sequence[str]) -> dict[str, list[str]]:
    """Attributes by class of entities."""
    found: dict[str, list[str]] = {}
    for each in given:
        entity, _, attribute = each.partition("/")
        found.setdefault(entity, []).append(attribute)
    return found


class RAVELSettings(SuiteSettings):
    """Settings of RAVEL; the defaults are SAEBench's."""

    attributes: Annotated[tuple[str, ...], AfterValidator(_check_attributes)] = Field(
        ATTRIBUTES, description="classes of entities and their attributes, in JSON"
    )
    top_n_entities: int = Field(
        500, ge=2, description="entities of a class, those of which the language model knows most"
    )
    num_pairs_per_attribute: int = Field(
        5000, ge=2, description="pairs of questions for each attribute"
    )
    train_test_split: float = Field(
        0.7, gt=0, lt=1, description="share of the pairs to train the mask on"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of the mask")
    num_epochs: int = Field(2, ge=1, description="epochs of the mask")
    n_generated_tokens: int = Field(6, ge=1, description="tokens of an answer")


class RAVEL(Suite):
    """Swapping the latents of one attribute, and what else changes (SAEBench RAVEL)."""

    name = "ravel"
    needs_saebench = True
    distributions = ("transformers",)
    item = "attribute"
    Settings = RAVELSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"num_pairs_per_attribute": 500}}
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("disentanglement_score", "disentanglement", "mean of the next two", "higher",
               headline=True, bounds=SHARE, margin=0.02),
        Metric("cause_score", "cause",
               "share of the pairs in which the latents of an attribute, taken from another "
               "entity, bring the other entity's answer", "higher", headline=True, bounds=SHARE,
               margin=0.02),
        Metric("isolation_score", "isolation",
               "share of the pairs in which they leave the answer about another attribute as it "
               "was", "higher", headline=True, bounds=SHARE, margin=0.02),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_other_hooks(subject, "intervenes at")

    def lack(self, settings: RAVELSettings, data: Data | None) -> str | None:
        for entity in _selection(settings.attributes):
            for name in files_of(entity):
                if data is not None and (lack := data.lack_of_file(DATASET, name)):
                    return lack
        return None

    def cost(self, subject: Subject, settings: RAVELSettings) -> Cost:
        attributes = len(settings.attributes)
        encodings = 2 * settings.num_pairs_per_attribute * attributes * (settings.num_epochs + 1)
        return Cost(attributes * _QUESTIONS * _PROMPT, 2 * encodings, 0)

    def prepare(self, bench: Bench, settings: RAVELSettings, seed: int) -> Any:
        return ask(bench, _selection(settings.attributes), _config(bench, settings, seed))

    def evaluate(
        self, subject: Subject, bench: Bench, settings: RAVELSettings, seed: int, prepared: Any
    ) -> Scores:
        bench.stage("swapping latents")
        sae = subject.copy(bench.model.device, bench.model.dtype)
        result, raw = run_ravel(
            sae, subject.name, bench, prepared, _selection(settings.attributes),
            _config(bench, settings, seed),
        )  # fmt: skip
        details: dict[str, dict[str, float]] = {}
        for entity, rows in result["eval_result_unstructured"].items():
            stem = entity.removesuffix("_results")
            for item, row in rows.items():
                attribute = item.removeprefix(f"{stem}_")
                scores = {key: float(value) for key, value in row.items()}
                scores["disentanglement_score"] = scores.pop("disentangle_score")
                details[f"{stem}/{attribute}"] = {**scores}
        if any(map(math.isnan, (v for row in details.values() for v in row.values()))):
            raise SuiteError(
                "there are too few pairs to test: raise --ravel.num_pairs_per_attribute, or bring "
                "more questions that the language model answers rightly"
            )
        metrics = mean_over_items(result["eval_result_metrics"]["ravel"], details)
        check_whole(metrics, self.metric_names(settings), details, settings.attributes)
        warnings = _alike(prepared.prompts, settings)
        return Scores(metrics, {k: {**row} for k, row in details.items()}, warnings, [
            "hooks of the language model's layers are given tuples, without which SAEBench's ravel "
            "fails on versions of transformers of today",
        ], raw)  # fmt: skip


def _alike(prompts: Mapping[str, str], settings: RAVELSettings) -> list[str]:
    warnings = []
    for entity in _selection(settings.attributes):
        for attribute, share in begin_alike(json.loads(prompts[entity])["prompts"]).items():
            if share > _MANY:
                warnings.append(
                    f"{share:.0%} of the pairs of {entity}/{attribute} whose answers differ begin "
                    "with one token, and SAEBench takes them for pairs about isolation"
                )
    return warnings


def _config(bench: Bench, settings: RAVELSettings, seed: int) -> dict[str, Any]:
    return settings.model_dump(exclude={"attributes"}) | {
        "random_seed": seed,
        "llm_batch_size": default_batch_size(bench.model.name) // 4,
    }
