"""Autointerp: how well a language model predicts, from its own explanation, where a latent fires.

The judge is at an address that the user names; without one, nothing is sent, and the suite does not
apply.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.chat import Asked, Endpoint, check_address, key_of
from sae_plugins.eval_suites.inputs.data import PILE, Data
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.saebench.autointerp import Found, run_autointerp, tokens_of
from sae_plugins.eval_suites.saebench.facts import (
    bytes_of_activation,
    default_batch_size,
    refuse_heads,
)
from sae_plugins.eval_suites.saebench.shared_model import SharedModel
from sae_plugins.eval_suites.suite import (
    SHARE,
    Cost,
    Metric,
    Scores,
    Sent,
    Suite,
    SuiteSettings,
    Value,
)

JUDGE = "gpt-4o-mini"
"""SAEBench's own, the only one that it knows."""
_EXPLAINING, _PREDICTING = 950, 700
"""Tokens of a request, about: instructions, and excerpts of 21 tokens, marked or numbered."""
_EXPLANATION, _PREDICTION = 30, 33
"""Tokens of an answer, at most."""
_NOT_SAEBENCHS = (
    "dataset", "context_length", "endpoint", "model", "label_random",
)  # fmt: skip
NEEDS = (
    "sends excerpts of the text to a language model that explains latents: name its address with "
    "--autointerp.endpoint, such as http://localhost:8000/v1 (OpenAI-compatible), and the model "
    "with --autointerp.model; its key is read from OPENAI_API_KEY"
)


class AutoInterpSettings(SuiteSettings):
    """Settings of autointerp; the defaults are SAEBench's."""

    endpoint: Annotated[str, AfterValidator(check_address)] | None = Field(
        None,
        description="the address of an OpenAI-compatible API, to which excerpts of the text are "
        "sent; without it nothing is",
    )
    model: str = Field(JUDGE, min_length=1, description="the language model there that judges")
    key_variable: str | None = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        exclude=True,
        description="the environment variable that holds the key; none if no key is wanted",
    )
    n_latents: int = Field(1000, ge=1, description="latents, drawn with the seed, to interpret")
    dead_latent_threshold: float = Field(
        15, ge=0, description="tokens on which a latent must fire to be drawn"
    )
    dataset: str = Field(PILE, description="the open text that examples come from")
    total_tokens: int = Field(2_000_000, ge=1000, description="tokens of it that are read")
    context_length: int = Field(128, ge=22, description="tokens of a prompt")
    label_random: bool = Field(
        False,
        description="count a random example as active where the latent is, which SAEBench never "
        "does",
    )
    price_in: float | None = Field(
        None, ge=0, exclude=True, description="of a million tokens that are sent, to tell the price"
    )
    price_out: float | None = Field(
        None, ge=0, exclude=True, description="of a million tokens of answers"
    )
    retries: int = Field(
        5, ge=0, exclude=True, description="times that a request is sent again after 429 or 5xx"
    )
    timeout: float = Field(120.0, gt=0, exclude=True, description="seconds that an answer may take")


class AutoInterp(Suite):
    """A language model explains latents, and predicts where they fire (SAEBench autointerp)."""

    name = "autointerp"
    needs_saebench = True
    item = "latent"
    Settings = AutoInterpSettings
    context = "context_length"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"n_latents": 20, "total_tokens": 100_000},
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("autointerp_score", "autointerp score",
               "share of 14 examples of which the judge rightly says whether the latent fires "
               "there, mean over latents; who always says no has 0.71", "higher", headline=True,
               bounds=SHARE, margin=0.02),
        Metric("autointerp_std_dev", "its spread", "standard deviation over latents", "neither"),
        Metric("latents_scored", "(ours)",
               "latents with a score; the others fire too seldom, or got no answer that can be "
               "read", "neither"),
        Metric("random_active", "(ours)",
               "share of the random examples, which SAEBench takes for inactive, where the latent "
               "fires: so much may be counted as wrong that is right", "neither", bounds=SHARE),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_heads(subject)

    def lack(self, settings: AutoInterpSettings, data: Data | None) -> str | None:
        if settings.endpoint is None:
            return NEEDS
        key_of(settings.key_variable, settings.endpoint)
        return None

    def open_text(self, settings: AutoInterpSettings) -> str:
        return settings.dataset

    def cost(self, subject: Subject, settings: AutoInterpSettings) -> Cost:
        tokens, sent = settings.total_tokens, None
        if settings.endpoint is not None:
            latents = min(settings.n_latents, subject.d_sae)
            tokens_in = latents * (_EXPLAINING + _PREDICTING)
            tokens_out = latents * (_EXPLANATION + _PREDICTION)
            price = None
            if settings.price_in is not None or settings.price_out is not None:
                price = tokens_in / 1e6 * (settings.price_in or 0)
                price += tokens_out / 1e6 * (settings.price_out or 0)
            sent = Sent(settings.endpoint, 2 * latents, tokens_in, tokens_out, price)
        return Cost(tokens, 2 * tokens, tokens * bytes_of_activation(subject), sent)

    def prepare(self, bench: Bench, settings: AutoInterpSettings, seed: int) -> Any:
        bench.stage("reading text")
        tokens = tokens_of(
            bench, settings.dataset, settings.context_length, settings.total_tokens, seed
        )
        return SharedModel(bench.model, bench.hook_name, bench.cache), tokens

    def evaluate(
        self, subject: Subject, bench: Bench, settings: AutoInterpSettings, seed: int, prepared: Any
    ) -> Scores:
        judge = _judge(settings, bench)
        shared, tokens = prepared
        sae = subject.copy(bench.model.device, bench.model.dtype)
        config = settings.model_dump(exclude={*_NOT_SAEBENCHS}) | {
            "random_seed": seed,
            "dataset_name": settings.dataset,
            "llm_context_size": settings.context_length,
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        bench.stage(f"asking {settings.model} at {judge.endpoint.address}")
        try:
            result, raw, found = run_autointerp(
                sae, subject.name, bench, shared, tokens, config, judge, settings.label_random
            )
        finally:
            judge.close()
            bench.stage(
                f"{judge.sent} requests sent, {judge.known} answers known before: "
                f"{judge.tokens_in:,} tokens in, {judge.tokens_out:,} out"
            )
        details: dict[str, dict[str, float | None]] = {
            str(latent): {"score": row["score"]}
            for latent, row in result["eval_result_unstructured"].items()
        }
        if not details:
            raise SuiteError(f"no latent of {subject.name} has a score: {_left_out(found)}")
        theirs = result["eval_result_metrics"]["autointerp"]
        n = len(details)
        metrics = {name: Value(value=value, n=n) for name, value in theirs.items()}
        metrics["autointerp_score"].std = theirs["autointerp_std_dev"] if n > 1 else None
        metrics["latents_scored"] = Value(value=n)
        metrics["random_active"] = Value(
            value=statistics.fmean(found.random_active), n=len(found.random_active)
        )
        return Scores(metrics, details, _warnings(found, judge), _deviations(settings), raw)


def _judge(settings: AutoInterpSettings, bench: Bench) -> Asked:
    if settings.endpoint is None:
        raise SuiteError(NEEDS)
    key = key_of(settings.key_variable, settings.endpoint)
    endpoint = Endpoint(settings.endpoint, settings.model, key, settings.retries, settings.timeout)
    return Asked(endpoint, bench.cache)


def _left_out(found: Found) -> str:
    reasons = {
        "fire too seldom to have examples": found.without_examples,
        f"got no answer ({', '.join(sorted(set(found.without_answer)))})": len(
            found.without_answer
        ),
        "got predictions that are no list of numbers": found.unreadable,
    }
    return ", ".join(f"{count} {why}" for why, count in reasons.items() if count)


def _warnings(found: Found, judge: Asked) -> list[str]:
    warnings = []
    if left_out := _left_out(found):
        warnings.append(f"latents that the score leaves out: {left_out}")
    if others := judge.models - {judge.endpoint.model}:
        warnings.append(f"{judge.endpoint.model} answered as {', '.join(sorted(others))}")
    return warnings


def _deviations(settings: AutoInterpSettings) -> list[str]:
    deviations = [
        "the text is shuffled with the seed",
        "the example of an answer is drawn for each latent by itself, where SAEBench draws it in "
        "the order in which answers come",
    ]
    if settings.model != JUDGE:
        deviations.append(f"the judge is {settings.model}, not {JUDGE}")
    if settings.label_random:
        deviations.append("random examples where the latent fires count as active")
    return deviations
