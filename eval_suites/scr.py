"""SCR, spurious correlation removal: whether ablating a few latents takes a bias out of a probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_plugins.base.errors import SuiteError
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
    default_batch_size,
    numbers_of,
    refuse_heads,
    reported_numbers,
)
from sae_plugins.eval_suites.saebench.probing import run_ablations
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
    mask_padding: MaskPadding = False
    sum_codes: SumCodes = True


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
            "perform_scr": True,
            "random_seed": seed,
            "dataset_names": list(pairs),
            "column1_vals_lookup": pairs,
            "n_values": list(settings.n_values),
            "llm_batch_size": default_batch_size(bench.model.name),
        }
        ablation = Ablation(settings.sum_codes, settings.mask_padding)
        result, raw = run_ablations(
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
        return Scores(metrics, details, warnings, ablation.deviations(), raw)


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
