"""SCR, spurious correlation removal: whether ablating a few latents takes a bias out of a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sae_plugins.base.errors import SuiteError
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
    default_batch_size,
    numbers_of,
    refuse_heads,
    reported_numbers,
)
from sae_plugins.eval_suites.saebench.probing import run_scr
from sae_plugins.eval_suites.suite import Cost, Metric, Scores, Suite, SuiteSettings, Value

BIOS, REVIEWS = "LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"
PAIRS = {
    "professor/nurse": BIOS,
    "architect/journalist": BIOS,
    "surgeon/psychologist": BIOS,
    "attorney/teacher": BIOS,
    "Books/CDs_and_Vinyl": REVIEWS,
    "Software/Electronics": REVIEWS,
    "Pet_Supplies/Office_Products": REVIEWS,
    "Industrial_and_Scientific/Toys_and_Games": REVIEWS,
}
"""The pairs of classes, and the dataset of each."""
_TIE = "the biased probe is as good in both directions, and SAEBench scores neither"
_CLASSES = 6
"""Sets of texts for a pair: three balanced ones and their opposites."""


class SCRSettings(SuiteSettings):
    """Settings of SCR; the defaults are SAEBench's."""

    pairs: Annotated[tuple[str, ...], known("pair", PAIRS)] = Field(
        tuple(PAIRS), description="pairs of classes, FIRST/SECOND"
    )
    n_values: Latents = Field(
        (2, 5, 10, 20, 50, 100, 500), description="numbers of latents to ablate"
    )
    train_set_size: int = Field(4000, ge=8, description="texts to train a probe on")
    test_set_size: int = Field(1000, ge=8, description="texts to test it on")
    context_length: int = Field(128, ge=2, description="tokens of a text; longer ones are cut")
    sae_batch_size: int = Field(125, ge=1, description="texts that are encoded at once")
    mask_padding: bool = Field(
        False,
        description="do not ablate what the SAE makes of padding, which SAEBench adds to the text",
    )
    sum_codes: bool = Field(
        True,
        description="add up codes over the tokens before decoding them, since decoders are affine; "
        "equal up to rounding",
        json_schema_extra={"shortcut": True},
    )


class SCR(Suite):
    """Spurious correlation removal by ablating latents (SAEBench SCR)."""

    name = "scr"
    needs_saebench = True
    item = "pair"
    Settings = SCRSettings
    context = "context_length"
    numbers = "n_values"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"train_set_size": 400, "test_set_size": 200, "context_length": 64},
    }
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("scr_metric_threshold_{k}", "SCR at {k}",
               "ablating k latents (a number, not a threshold), the share of the accuracy that the "
               "bias had cost and that comes back, in the direction that had cost more; not "
               "bounded, and noisy: arXiv 2605.18229 advises against ranking SAEs by it", "higher",
               headline=True, margin=0.05),
        Metric("scr_dir1_threshold_{k}", "SCR at {k}, direction 1",
               "ablating latents of the second column (gender, rating)", "higher", margin=0.05),
        Metric("scr_dir2_threshold_{k}", "SCR at {k}, direction 2",
               "ablating latents of the first column (profession, category)", "higher",
               margin=0.05),
        Metric("padding_leak_threshold_{k}", "(ours)",
               "how much of what is ablated comes from padding, not from the text: length of the "
               "one to that of the other", "lower"),
    )  # fmt: skip

    def refusal(self, subject: Subject) -> str | None:
        return refuse_heads(subject)

    def cost(self, subject: Subject, settings: SCRSettings) -> Cost:
        texts = (settings.train_set_size + settings.test_set_size) // 2 * _CLASSES
        return cost(subject, texts * settings.context_length * len(settings.pairs))

    def evaluate(
        self, subject: Subject, bench: Bench, settings: SCRSettings, seed: int, prepared: Any
    ) -> Scores:
        reported = reported_numbers("scr_and_tpp", "scr_metric_threshold_{k}")
        check_reported("--scr.n_values", settings.n_values, reported, subject.d_sae)
        sae = subject.copy(bench.model.device, bench.model.dtype)
        pairs: dict[str, list[tuple[str, ...]]] = {}
        for pair in settings.pairs:
            pairs.setdefault(PAIRS[pair], []).append(tuple(pair.split("/")))
        config = settings.model_dump(exclude={"pairs", "mask_padding", "sum_codes"}) | {
            "random_seed": seed,
            "dataset_names": list(pairs),
            "column1_vals_lookup": pairs,
            "n_values": list(settings.n_values),
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        ablation = Ablation(settings.sum_codes, settings.mask_padding)
        result, raw = run_scr(
            sae, subject.name, bench, config,
            lambda dataset: _need(dataset, settings), ablation,
        )  # fmt: skip
        return self._scores(result, raw, settings, ablation)

    def _scores(
        self, result: dict[str, Any], raw: str, settings: SCRSettings, ablation: Ablation
    ) -> Scores:
        details: dict[str, dict[str, float | None]] = {}
        for row in result["eval_result_details"]:
            pair = "/".join(_classes(row["dataset_name"], settings.pairs))
            details[pair] = {n: v for n, v in row.items() if n.startswith("scr_")}
        warnings = [BEST_EPOCH]
        metrics = mean_over_items(result["eval_result_metrics"]["scr_metrics"], details)
        n = settings.n_values[0]
        warnings += [
            f"{pair} does not count: {_TIE}"
            for pair in _undefined(details, f"scr_metric_threshold_{n}")
        ]
        for direction in (1, 2):
            names = [f"scr_dir{direction}_threshold_{n}" for n in settings.n_values]
            flat = [pair for pair, row in details.items() if not any(map(row.get, names))]
            if flat:
                warnings.append(
                    f"direction {direction} of {', '.join(flat)} is 0 at every number of latents: "
                    "either nothing changes, or the bias had cost under 0.1% of accuracy, where "
                    "SAEBench says 0"
                )
        for n, count in ablation.fewer.items():
            warnings.append(
                f"scr_metric_threshold_{n} is in part of fewer latents, down to {count}: no more "
                "have an effect on the probe"
            )
        for n, leak in ablation.leak(settings.n_values).items():
            metrics[f"padding_leak_threshold_{n}"] = Value(value=leak)
        check_whole(
            metrics, [f"scr_metric_threshold_{n}" for n in settings.n_values], details,
            settings.pairs,
        )  # fmt: skip
        deviations = []
        if settings.sum_codes and ablation.affine:
            deviations.append("codes are added up over the tokens before they are decoded")
        if settings.mask_padding:
            deviations.append("what the SAE makes of padding is not ablated")
        return Scores(metrics, details, warnings, deviations, raw)


def _classes(run_name: str, pairs: tuple[str, ...]) -> list[str]:
    """The pair of a row, which SAEBench calls `<dataset>_scr_<first>_<second>_results`."""
    for pair in pairs:
        if run_name.endswith(f"_scr_{pair.replace('/', '_')}_results"):
            return pair.split("/")
    raise SuiteError(f"SAEBench reports {run_name!r}, which is none of {', '.join(pairs)}")


def _undefined(details: Mapping[str, Mapping[str, float | None]], metric: str) -> list[str]:
    """The pairs that SAEBench does not score.

    Raises:
        SuiteError: it scores none.
    """
    pairs = [pair for pair, row in details.items() if row.get(metric) is None]
    if pairs and len(pairs) == len(details):
        raise SuiteError(
            f"SCR is undefined for {', '.join(pairs)}: {_TIE}; choose other --scr.pairs, or raise "
            "--scr.train_set_size and --scr.test_set_size"
        )
    return pairs


def _need(dataset: str, settings: SCRSettings) -> Need:
    """The rows that SAEBench takes of each cell: more than twice the quarter of a set."""
    classes = [
        c for pair in settings.pairs if PAIRS[pair].startswith(dataset) for c in pair.split("/")
    ]
    return Need(
        2 * (settings.train_set_size // 4) + 1,
        2 * (settings.test_set_size // 4) + 1,
        numbers_of(dataset, classes),
    )


Masks = dict[bytes, tuple[Tensor, set[int]]]


class Ablation:
    """What SAEBench's ablation gives for many masks of latents, encoding and decoding only once.

    SAEBench takes the mean over a text's tokens of the activations without the masked latents. It
    also adds what these latents are at padding, where activations are 0 (hazard 8): `leak` says how
    much that is.
    """

    def __init__(self, sum_codes: bool, mask_padding: bool) -> None:
        """See the settings."""
        self.sum_codes, self.mask_padding = sum_codes, mask_padding
        self.affine: bool | None = None
        """Whether codes may be added up before they are decoded; not known before the first."""
        self.fewer: dict[int, int] = {}
        """The fewest latents that were ablated where so many were asked for, if fewer."""
        self._lengths: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, acts: Tensor, sae: Any, masks: Masks, batch_size: int, own: Callable[..., Tensor]
    ) -> dict[bytes, Tensor]:
        """The inputs of the probe [texts, d_in], by mask.

        Args:
            acts: [texts, tokens, d_in], 0 at padding.
            sae: the SAE.
            masks: of latents [d_sae] to ablate, and for how many each was asked.
            batch_size: texts at once.
            own: SAEBench's `ablated_precomputed_activations`.
        """
        parts: dict[bytes, list[Tensor]] = {key: [] for key in masks}
        for batch in acts.split(batch_size):
            kept = (batch.sum(dim=-1) != 0).to(batch.dtype)  # [texts, tokens], as SAEBench has it
            codes, padding = sae.encode(batch), 1 - kept
            self._measure(sae, codes, kept, padding, masks)
            if self.mask_padding:
                codes = codes * kept[..., None]
            if self.sum_codes and self.affine is None:
                self.affine = _is_affine(sae, codes)
            if self.sum_codes and self.affine:
                # one token a text: the sum over its tokens
                batch, codes = batch.sum(1, keepdim=True), codes.sum(1, keepdim=True)
                scale = kept.sum(dim=1, keepdim=True)
            else:
                scale = torch.ones_like(kept[:, :1])
            once = _EncodedOnce(sae, codes)
            for key, (mask, _) in masks.items():
                parts[key].append(own(batch, once, mask, batch_size) / scale)
        return {key: torch.cat(part) for key, part in parts.items()}

    def _measure(
        self, sae: Any, codes: Tensor, kept: Tensor, padding: Tensor, masks: Masks
    ) -> None:
        text, rest = (torch.einsum("blf,bl->bf", codes, part) for part in (kept, padding))
        for mask, numbers in masks.values():
            direction, count = sae.W_dec[mask], int(mask.sum())
            lengths = [(part[:, mask] @ direction).norm(dim=-1).sum() for part in (rest, text)]
            for n in numbers:
                self._lengths.setdefault(n, torch.zeros(2)).add_(torch.stack(lengths).cpu())
                if count < n:
                    self.fewer[n] = min(count, self.fewer.get(n, count))

    def leak(self, numbers: tuple[int, ...]) -> dict[int, float]:
        """By number of latents that were ablated: mean length of the one to the other's."""
        found = {n: self._lengths[n].tolist() for n in numbers if n in self._lengths}
        return {n: of_padding / of_text for n, (of_padding, of_text) in found.items() if of_text}


class _EncodedOnce:
    """Stands in for an SAE whose codes are known; SAEBench decodes all first, then the rest."""

    def __init__(self, sae: Any, codes: Tensor) -> None:
        self._sae, self._codes, self._out = sae, codes, sae.decode(codes)
        self._is_whole = False

    def encode(self, _: Tensor) -> Tensor:
        self._is_whole = True
        return self._codes.clone()

    def decode(self, codes: Tensor) -> Tensor:
        out: Tensor = self._out if self._is_whole else self._sae.decode(codes)
        self._is_whole = False
        return out


def _is_affine(sae: Any, codes: Tensor) -> bool:
    """Whether the decoder of the sum is the sum of the decoders, but for the bias."""
    total = codes.sum(1, keepdim=True)
    try:
        each = (sae.decode(codes) - sae.decode(torch.zeros_like(codes))).sum(1, keepdim=True)
        of_sum = sae.decode(total) - sae.decode(torch.zeros_like(total))
    except RuntimeError:  # it remembers a scale for each token that it has encoded
        return False
    tolerance = max(1e-4, 4 * torch.finfo(codes.dtype).eps)
    return each.shape == of_sum.shape and bool((each - of_sum).norm() <= tolerance * each.norm())
