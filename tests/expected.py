"""What the tests expect of each architecture, mechanism and suite: one row for each, by name.

The rows are declared and not derived from the code under test, so that a combination that is
refused from now on, or no longer, fails. Whoever adds one of these adds its row here; tests say
which row is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """What is expected of a training architecture of SAELens.

    Attributes:
        coefficient: the name of its sparsity coefficient and the tiny SAE's value, if it has one.
        thresholds: a saved SAE can hold a threshold per feature.
        shares_k: which features are active on a token depends on the other tokens of its batch.
        counts_dead: its loss depends on how many batches ago features have fired.
        hooked: activations pass `hook_sae_acts_post` while it trains.
        saved: fields that the configuration of an inference SAE must have.
        calibrated: thresholds can give a saved SAE another L0.
    """

    coefficient: tuple[str, float] | None = None
    thresholds: bool = True
    shares_k: bool = False
    counts_dead: bool = False
    hooked: bool = True
    saved: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = True


ARCHITECTURES = {
    "standard": Architecture(("l1", 0.1)),
    "gated": Architecture(("l1", 0.1)),
    "jumprelu": Architecture(("l0", 0.02)),
    "topk": Architecture(thresholds=False, counts_dead=True, saved={"k": 4}),
    "abstopk": Architecture(thresholds=False, counts_dead=True, saved={"k": 4}, calibrated=False),
    "batchtopk": Architecture(shares_k=True, counts_dead=True),
    "matryoshka_batchtopk": Architecture(shares_k=True, counts_dead=True),
    "matching_pursuit": Architecture(
        thresholds=False, hooked=False, saved={"max_iterations": 5}, calibrated=False
    ),
}

WITH_COEFFICIENT = {n: row.coefficient for n, row in ARCHITECTURES.items() if row.coefficient}
NO_COEFFICIENT = dict.fromkeys(ARCHITECTURES.keys() - WITH_COEFFICIENT, "no sparsity coefficient")
NO_K = dict.fromkeys([*WITH_COEFFICIENT, "matching_pursuit"], "have no k to multiply")
NO_WIDTHS = dict.fromkeys(ARCHITECTURES.keys() - {"matryoshka_batchtopk"}, "no loss of any width")
NO_THRESHOLDS = {
    name: "has no thresholds" for name, row in ARCHITECTURES.items() if not row.thresholds
}


@dataclass(frozen=True)
class Mechanism:
    """What is expected of a mechanism of ours.

    Attributes:
        alone: options with which it acts within 20 steps.
        changes: the training, only the SAE that is saved, or nothing.
        refused: by architecture, words of the reason.
        on: options that differ by architecture.
        together: options with which it acts within twelve steps, beside all others.
        nothing: options with which it does nothing; None if there are none.
    """

    alone: Mapping[str, Any] = field(default_factory=dict)
    changes: Literal["training", "saved", "nothing"] = "training"
    refused: Mapping[str, str] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    together: dict[str, Any] = field(default_factory=dict)
    nothing: dict[str, Any] | None = None

    @property
    def architecture(self) -> str:
        """The first that it is not refused on."""
        return next(name for name in ARCHITECTURES if name not in self.refused)


MECHANISMS = {
    "reorder": Mechanism(
        {"start": 2, "interval": 5, "window": 3, "cooldown": 2},
        together={"start": 2, "interval": 3, "window": 2, "cooldown": 1},
        nothing={"start": 13},
    ),
    "input-norm-l1": Mechanism(
        {"decay": 0.9}, refused=NO_COEFFICIENT, on={"gated": {"per": "batch"}}
    ),
    "unit-norm-decoder": Mechanism(),
    "linear-l1": Mechanism({"floor": 0.1}, refused=NO_COEFFICIENT, nothing={"floor": 1}),
    "reconstruction-l1": Mechanism(
        refused=NO_COEFFICIENT, together={"target": 0.5}, nothing={"least": 1, "greatest": 1}
    ),
    "reconstruction-warm-up": Mechanism(
        {"steps": 4}, refused=NO_COEFFICIENT, together={"steps": 1}, nothing={"steps": 0}
    ),
    "firing-window": Mechanism(
        {"window": 10}, changes="nothing", together={"window": 4}, nothing={}
    ),
    "resample": Mechanism(
        {"per": "token", "threshold": 0.3},
        on={dense: {"threshold": 0.6} for dense in WITH_COEFFICIENT},
        together={"per": "token", "threshold": 0.2, "stop": None},
        nothing={"threshold": 0},
    ),
    "merge": Mechanism(
        {"every": 5, "threshold": 0.4},
        together={"every": 3, "threshold": 0.6, "arithmetic": "auto", "stop": None},
        nothing={"every": 13},
    ),
    "firing-frequency": Mechanism(
        {"decay": 0.5}, changes="nothing", together={"decay": 0.9}, nothing={}
    ),
    "activation-threshold": Mechanism(
        {"base": 1.1, "unit": "mean_active", "start": 2},
        refused=NO_THRESHOLDS,
        together={"base": 0.8, "unit": "mean_active", "start": 3},
        nothing={"base": 0},
    ),
    "post-hoc-threshold": Mechanism(
        {"share": 0.7, "decay": 0.9},
        changes="saved",
        refused=NO_THRESHOLDS,
        together={"share": 0.1, "decay": 0.9},
        nothing={},
    ),
    "importance": Mechanism(changes="nothing", nothing={}),
    "importance-lr": Mechanism({"start": 2}, together={"start": 2}, nothing={"start": 13}),
    "mean-bias": Mechanism(),
    "slow-decoder": Mechanism({"after": 4}, together={"after": 3}, nothing={"rate": 1}),
    "auto-k": Mechanism(
        {"start": 1, "until": 18}, refused=NO_K, together={"start": 1, "until": 10}
    ),
    "k-factor": Mechanism(
        {"until": 12}, refused=NO_K, together={"factor": 2.0, "until": 5}, nothing={"factor": 1}
    ),
    "tied-weights": Mechanism(
        refused={"matching_pursuit": "decoder's transpose already"}, together={"until": 0.5}
    ),
    "decoder-orthogonality": Mechanism(
        {"start": 2}, together={"mask": "adaptive", "threshold": 0.2}, nothing={"weight": 0}
    ),
    "nearest-orthogonality": Mechanism({"chunk": 10}, nothing={"weight": 0}),
    "balanced-matryoshka": Mechanism(refused=NO_WIDTHS, nothing={"multiplier": 1}),
    "averaged-weights": Mechanism({"decay": 0.8}, together={"decay": 0.8}),
    "coactivation-penalty": Mechanism(
        {"fraction": 0.1, "gain": 0.1},
        together={"fraction": 0.05, "target": 1.0},
        nothing={"tau": 0, "adaptive": False},
    ),
    "nan-guard": Mechanism({"every": 2}, changes="nothing", together={"every": 5}, nothing={}),
}


@dataclass(frozen=True)
class Suite:
    """What the tests run a suite that calls SAEBench with.

    Attributes:
        module: of SAEBench, below `sae_bench.evals`, that evaluates.
        function: of that module.
        loads: the module that loads the language model, where it is another.
        tiny: settings with which it takes seconds.
        exact: settings that switch off every shortcut.
    """

    module: str
    tiny: dict[str, Any]
    exact: dict[str, Any] = field(default_factory=dict)
    function: str = "run_eval"
    loads: str = ""


SUITES = {
    "core": Suite(
        "core.main",
        {
            "n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 2,
            "batch_size_prompts": 4, "context_size": 32,
        },
        function="multiple_evals",
    ),
    "absorption": Suite(
        "absorption.main",
        {
            "max_k_value": 2, "k_sparse_probe_num_epochs": 4, "min_letters": 2,
            "min_GT_probe_f1": 0.2,
        },
        {"precalculate_codes": False},
    ),
    "scr": Suite(
        "scr_and_tpp.main",
        {
            "pairs": ("professor/nurse", "Books/CDs_and_Vinyl"), "n_values": (2, 5),
            "train_set_size": 40, "test_set_size": 24, "context_length": 40,
        },
        {"sum_codes": False},
    ),
    "tpp": Suite(
        "scr_and_tpp.main",
        {
            "n_values": (2, 5), "train_set_size": 40, "test_set_size": 24, "context_length": 40,
        },
        {"sum_codes": False},
    ),
    "sparse-probing": Suite(
        "sparse_probing.main",
        {
            "dataset_names": ("LabHC/bias_in_bios_class_set1", "fancyzhx/ag_news"),
            "k_values": (1, 2), "probe_train_set_size": 40, "probe_test_set_size": 24,
            "context_length": 16,
        },
        {"share_probes": False},
    ),
    "sae-probes": Suite(
        "sparse_probing_sae_probes.main",
        {
            "dataset_names": ("117_us_state_FL", "118_us_state_CA"), "ks": (1, 2),
            "context_length": 128,
        },
        loads="sae_probes.generate_model_activations",
    ),
    "ravel": Suite(
        "ravel.main",
        {
            "attributes": ("word/First letter", "word/Sequel"), "num_pairs_per_attribute": 40,
            "top_n_entities": 40, "n_generated_tokens": 2, "num_epochs": 1, "learning_rate": 0.5,
        },
    ),
    "unlearning": Suite(
        "unlearning.main",
        {
            "dataset_names": ("wmdp-bio", "human_aging"), "retain_thresholds": (0.3, 0.9),
            "n_features_list": (4, 16), "multipliers": (20, 40), "dataset_size": 12, "seq_len": 32,
        },
    ),
    "autointerp": Suite(
        "autointerp.main",
        {
            "n_latents": 6, "total_tokens": 4000, "context_length": 32, "key_variable": None,
        },
    ),
}  # fmt: skip
