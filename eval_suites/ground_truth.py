"""How well an SAE found the features of the synthetic model that it was trained on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.bench import Bench
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

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.subjects import Subject
    from sae_plugins.eval_suites.true_features import Counts

SAMPLES_AT_ONCE = 4096
_SAVED = "synthetic_model"
"""Where SAELens saves a run's synthetic model, if it is asked to."""
_WITHOUT_PARENTS = ("small",)
"""Presets whose features have no hierarchy, so that there is no absorption."""


class GroundTruthSettings(SuiteSettings):
    """Settings of `ground-truth`."""

    samples: int = Field(100_000, gt=0, description="fresh samples that the SAE encodes")


class GroundTruth(Suite):
    """Compares an SAE with the known features of its synthetic model, by SAELens' metrics and ours.

    It runs on the CPU, so that one seed gives the same samples everywhere.
    """

    name = "ground-truth"
    version = 4  # absorption is of pairs whose child has a latent
    needs_model = False
    Settings = GroundTruthSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"samples": 20_000}}
    metrics = (
        Metric(
            "mcc",
            "MCC",
            "mean absolute cosine of true features and decoder rows, matched one to one",
            "higher",
            headline=True,
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "recovered",
            "recovered",
            "share of true features with a decoder row of |cosine| above 0.9",
            "higher",
            headline=True,
            bounds=SHARE,
            margin=0.05,
        ),
        Metric(
            "matched_f1",
            "matched F1",
            "of the latents that MCC matches with true features as their detectors, mean over true "
            "features: those without a latent count as 0, latents to spare do not count",
            "higher",
            headline=True,
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "absorption",
            "absorption",
            "share of the samples with a child feature where the latent of its parent is silent "
            "and that of the child stands in, holding 0.4 of the parent; mean over the pairs whose "
            "child has a latent, and undefined without any",
            "lower",
            headline=True,
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "explained_variance",
            "explained variance",
            "1 - squared error / variance of the activations",
            "higher",
            headline=True,
            bounds=SCORE,
            margin=0.01,
        ),
        Metric(
            "uniqueness",
            "uniqueness",
            "distinct true features that are some latent's nearest, per latent",
            "higher",
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "classification/f1_score",
            "F1",
            "of each latent as a detector of the true feature that is nearest, mean over latents: "
            "dead latents count as 0, so a perfect SAE with 32 dead of 128 latents has 0.75",
            "higher",
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "classification/precision",
            "precision",
            "share of a latent's activations where its true feature is active, mean over latents",
            "higher",
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "classification/recall",
            "recall",
            "share of a true feature's activations where its latent is active, mean over latents",
            "higher",
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "classification/accuracy",
            "accuracy",
            "share of samples where a latent and its true feature agree, mean over latents",
            "higher",
            bounds=SHARE,
            margin=0.02,
        ),
        Metric(
            "shrinkage",
            "shrinkage",
            "norm of the reconstruction / norm of the activation; 1 is none",
            "neither",
        ),
        Metric("sae_l0", "L0", "active latents per sample", "neither", headline=True),
        Metric("true_l0", "true L0", "active true features per sample", "neither"),
        Metric("dead_latents", "dead latents", "latents that are active on no sample", "lower"),
    )

    def undefined_on(self, model_name: str) -> Collection[str]:
        """There is no absorption where no feature has a parent."""
        from sae_plugins.world.synthetic_models import SYNTHETIC

        preset = model_name.removeprefix(SYNTHETIC)
        return ("absorption",) if preset in _WITHOUT_PARENTS else ()

    def refusal(self, subject: Subject) -> str | None:
        """Only SAEs of a synthetic model have features to be compared with."""
        from sae_plugins.world.synthetic_models import SYNTHETIC

        if subject.model_name.startswith(SYNTHETIC):
            return None
        return (
            "needs the known features of a synthetic model; this SAE was trained on "
            f"{subject.model_name}"
        )

    def cost(self, subject: Subject, settings: GroundTruthSettings) -> Cost:
        """Samples stand for the SAE's tokens."""
        return Cost(llm_tokens=0, sae_tokens=settings.samples, disk=0)

    def evaluate(
        self,
        subject: Subject,
        bench: Bench,
        settings: GroundTruthSettings,
        seed: int,
        prepared: Any,
    ) -> Scores:
        """Score the SAE on fresh samples of its synthetic model.

        Raises:
            SuiteError: the synthetic model is unknown, damaged, or has another d_in.
        """
        from sae_lens.synthetic.evals import eval_sae_on_synthetic_data

        from sae_plugins.base.seeds import isolated_random_state, seed_everything
        from sae_plugins.eval_suites.true_features import Counts, edges

        with isolated_random_state():
            model = _synthetic_model(subject)
            if model.cfg.hidden_dim != subject.d_in:
                raise SuiteError(
                    f"{subject.source} was trained on {subject.d_in} dimensions, and "
                    f"{subject.model_name} has {model.cfg.hidden_dim}; evaluate it with the "
                    "version of sae-plugins that trained it"
                )
            sae, features = subject.copy("cpu", "float32"), model.feature_dict.feature_vectors
            counts = Counts(features.detach(), sae.W_dec.detach(), edges(model.hierarchy))
            samples = _Samples(model.activation_generator)
            sae.encode = _counted(sae.encode, samples, counts)
            seed_everything(seed)
            found = eval_sae_on_synthetic_data(
                sae,
                model.feature_dict,
                samples,  # type: ignore[arg-type]
                num_samples=settings.samples,
                batch_size=SAMPLES_AT_ONCE,
            ).to_log_dict()
        of_saelens = {
            "mcc": min(subject.d_sae, model.cfg.num_features),
            "uniqueness": subject.d_sae,
            "sae_l0": settings.samples,
            "true_l0": settings.samples,
        }
        metrics = {
            name: Value(
                value=value,
                n=subject.d_sae if name.startswith("classification/") else of_saelens.get(name),
            )
            for name, value in found.items()
        }
        return Scores(metrics | _values(counts))


class _Samples:
    """A generator of SAELens, and the true activations that it drew last."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.last: Any = None

    def sample(self, size: int) -> Any:
        self.last = self.generator.sample(size)
        return self.last


def _counted(encode: Callable[[Any], Any], samples: _Samples, counts: Counts) -> Callable[..., Any]:
    """An SAE's `encode` that counts what fires."""

    def counting(activations: Any) -> Any:
        codes = encode(activations)
        counts.add(samples.last, codes)
        return codes

    return counting


def _values(counts: Counts) -> dict[str, Value]:
    """Our metrics; absorption is one of them where features have parents."""
    f1, absorption = counts.f1(), counts.absorption()
    found = {
        "recovered": (counts.recovered, len(counts.latents)),
        "matched_f1": f1,
        **({"absorption": absorption} if len(counts.pairs) else {}),
    }
    return {name: Value(value=value, n=n) for name, (value, n) in found.items()}


def _synthetic_model(subject: Subject) -> Any:
    """The one that was saved with the run, or else the preset."""
    from sae_lens.synthetic import SyntheticModel

    from sae_plugins.base.errors import did_you_mean
    from sae_plugins.world.synthetic_models import SYNTHETIC, SYNTHETIC_MODELS, synthetic_model

    saved, preset = Path(subject.source) / _SAVED, subject.model_name.removeprefix(SYNTHETIC)
    if saved.is_dir():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # SAELens draws a progress bar
                return SyntheticModel.load_from_disk(saved)
        except Exception as error:  # of files that are missing or damaged
            raise SuiteError(
                f"{saved} cannot be loaded ({type(error).__name__}: {error}); move it away to "
                f"evaluate with {subject.model_name} itself"
            ) from error
    if preset not in SYNTHETIC_MODELS:
        raise SuiteError(
            f"{subject.source} was trained on {subject.model_name}, which is not known here: "
            f"{did_you_mean(preset, SYNTHETIC_MODELS)}"
        )
    return synthetic_model(preset, "cpu")
