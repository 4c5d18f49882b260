"""Core: how well the SAE reconstructs, what the language model loses, and how sparse codes are."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.data import OPEN_TEXT
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.saebench.core import run_core
from sae_plugins.eval_suites.saebench.facts import bytes_of_activation
from sae_plugins.eval_suites.saebench.shared_model import SharedModel
from sae_plugins.eval_suites.suite import (
    SCORE,
    SHARE,
    Cost,
    Metric,
    Scores,
    Suite,
    SuiteSettings,
    Value,
)
from sae_plugins.runs.heldout import Sums

TOKENS_PER_DOCUMENT = 400
"""Fewer than documents of open text have on average: bounds how many were trained on."""


class CoreSettings(SuiteSettings):
    """Settings of core; the defaults are those of SAEBench's scripts."""

    dataset: str = Field(OPEN_TEXT, description="the open text to evaluate on")
    context_size: int = Field(128, ge=2, description="tokens of a prompt")
    batch_size_prompts: int = Field(16, ge=1, description="prompts of a batch")
    n_eval_reconstruction_batches: int = Field(
        200, ge=1, description="batches for what the language model loses (CE, KL)"
    )
    n_eval_sparsity_variance_batches: int = Field(
        2000, ge=1, description="batches for reconstruction quality and sparsity"
    )
    skip_documents: int | None = Field(
        None,
        ge=0,
        description="documents at the start to leave out; by default those that the SAE may have "
        "been trained on, where it is known",
    )


class Core(Suite):
    """Reconstruction, sparsity, and what the language model loses (SAEBench core)."""

    name = "core"
    needs_saebench = True
    Settings = CoreSettings
    context = "context_size"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"n_eval_reconstruction_batches": 8, "n_eval_sparsity_variance_batches": 24},
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "explained_variance_centred", "explained variance",
            "1 - squared error / variance about the mean: ours, where SAEBench's forgets the mean",
            "higher", headline=True, bounds=SCORE, margin=0.01,
        ),
        Metric(
            "explained_variance", "explained variance",
            "SAEBench's own: the variance is about 0 in part, so a large mean makes it too good",
            "higher", bounds=SCORE, margin=0.01,
        ),
        Metric("explained_variance_legacy", "explained variance (legacy)",
               "mean over tokens of 1 - error / squared distance from the batch's mean", "higher",
               bounds=SCORE, margin=0.01),
        Metric("mse", "MSE", "squared error per token divided by the tokens of a batch: it shrinks "
               "as batches grow, so compare it only at equal batch size", "lower"),
        Metric("cossim", "cosine similarity", "between activation and reconstruction", "higher",
               bounds=(-1.0, 1.0), margin=0.01),
        Metric("ce_loss_score", "loss recovered", "share of what zero-ablating the hook costs that "
               "the SAE's reconstruction recovers; 1 is perfect", "higher", headline=True,
               bounds=SCORE, margin=0.01),
        Metric("ce_loss_with_sae", "CE loss with SAE", "nats per token", "lower"),
        Metric("ce_loss_without_sae", "CE loss", "of the language model alone", "neither"),
        Metric("ce_loss_with_ablation", "CE loss, ablated", "with zeros at the hook", "neither"),
        Metric("kl_div_score", "KL divergence score", "NOT a divergence: the share of the "
               "ablation's divergence that is recovered; 1 is perfect", "higher", headline=True,
               bounds=SCORE, margin=0.01),
        Metric("kl_div_with_sae", "KL divergence", "of the spliced model from the model, nats",
               "lower"),
        Metric("kl_div_with_ablation", "KL divergence, ablated", "with zeros at the hook",
               "neither"),
        Metric("l0", "L0", "active latents per token", "neither", headline=True),
        Metric("l1", "L1", "sum of the latents per token, with decoder norms folded", "neither"),
        Metric("l2_norm_in", "L2 norm", "of the activations", "neither"),
        Metric("l2_norm_out", "L2 norm, reconstructed", "of the reconstructions", "neither"),
        Metric("l2_ratio", "L2 ratio", "reconstruction to activation; 1: no shrinkage", "neither"),
        Metric("relative_reconstruction_bias", "relative reconstruction bias",
               "below 1, the SAE shrinks (arXiv 2404.16014, eq. 10)", "neither"),
        Metric("frac_alive", "alive latents", "share that fires at all on the tokens read",
               "higher", headline=True, bounds=SHARE, margin=0.02),
        Metric("freq_over_1_percent", "dense latents", "share that fires on over 1% of tokens",
               "neither", bounds=SHARE),
        Metric("freq_over_10_percent", "very dense latents", "share that fires on over 10%",
               "lower", bounds=SHARE, margin=0.02),
        Metric("normalized_freq_over_1_percent", "activity in dense latents",
               "share of all firing that is theirs", "neither", bounds=SHARE),
        Metric("normalized_freq_over_10_percent", "activity in very dense latents",
               "share of all firing that is theirs", "lower", bounds=SHARE, margin=0.02),
        Metric("average_max_encoder_cosine_sim", "encoder similarity",
               "largest cosine of an encoder direction with another, mean", "lower",
               bounds=(-1.0, 1.0), margin=0.02),
        Metric("average_max_decoder_cosine_sim", "decoder similarity",
               "largest cosine of a decoder direction with another, mean", "lower",
               bounds=(-1.0, 1.0), margin=0.02),
    )  # fmt: skip

    def open_text(self, settings: CoreSettings) -> str:
        return settings.dataset

    def cost(self, subject: Subject, settings: CoreSettings) -> Cost:
        batch = settings.batch_size_prompts * settings.context_size
        reconstruction = settings.n_eval_reconstruction_batches * batch
        tokens = reconstruction + settings.n_eval_sparsity_variance_batches * batch
        return Cost(tokens, tokens, tokens * bytes_of_activation(subject))

    def prepare(self, bench: Bench, settings: CoreSettings, seed: int) -> Any:
        return SharedModel(bench.model, bench.hook_name, bench.cache)

    def evaluate(
        self, subject: Subject, bench: Bench, settings: CoreSettings, seed: int, prepared: Any
    ) -> Scores:
        bench.stage("reconstruction")
        sae = subject.copy(bench.model.device, bench.model.dtype)
        skip, notes = _documents_to_skip(subject, settings)
        sums = Sums(sae.cfg.d_in, sae.cfg.d_sae, bench.model.device)
        groups, raw, counts = run_core(
            sae, subject.name, bench, prepared, settings.dataset, skip, seed, sums.add,
            n_eval_reconstruction_batches=settings.n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=settings.n_eval_sparsity_variance_batches,
            eval_batch_size_prompts=settings.batch_size_prompts,
            context_size=settings.context_size,
            exclude_special_tokens_from_reconstruction=True,
        )  # fmt: skip
        n = sums.tokens
        counts["misc_metrics"] = subject.d_sae
        metrics = {
            name: Value(value=value, n=counts.get(group, n))
            for group, values in groups.items()
            if group != "token_stats"
            for name, value in values.items()
        }
        metrics["explained_variance_centred"] = Value(
            value=sums.metrics()["explained_variance"], n=n
        )
        missing = [m.name for m in self.metrics if m.headline and metrics[m.name].value is None]
        if missing:
            raise SuiteError(f"{', '.join(missing)} of {subject.name} is not a number")
        return Scores(metrics=metrics, warnings=notes, deviations=[
            "the text is shuffled with the seed before SAEBench shuffles it with its own, 42",
        ], raw=raw)  # fmt: skip


def _documents_to_skip(subject: Subject, settings: CoreSettings) -> tuple[int, list[str]]:
    """How many documents to leave out, and what is to be said about it."""
    if settings.skip_documents is not None or subject.dataset != settings.dataset:
        return settings.skip_documents or 0, []
    if subject.training_tokens:
        skip = -(-subject.training_tokens // TOKENS_PER_DOCUMENT)
        return skip, [
            f"the first {skip} documents of {settings.dataset} are left out: the SAE may have been "
            "trained on them"
        ]
    return 0, [
        f"the SAE was trained on {settings.dataset} too, nobody knows how far: it may have seen "
        "this text; set --core.skip_documents"
    ]
