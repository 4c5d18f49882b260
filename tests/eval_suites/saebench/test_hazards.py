"""Where SAEBench 0.6 misleads or fails, what our suites make of it instead.

One test per hazard. Most also show that SAEBench still has it: where such a test fails, a hazard
may be gone, and with it something of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import pickle
import random
import re
import subprocess
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import language_models
import numpy as np
import openai
import pandas as pd
import pytest
import quiz
import torch

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.patches import replaced
from sae_plugins.base.seeds import seed_everything
from sae_plugins.eval_suites.ablation import Ablation
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.inputs.data import Need
from sae_plugins.eval_suites.inputs.models import load_language_model
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.sae_probes import SAEProbesSettings
from sae_plugins.eval_suites.saebench.autointerp import Found, _reproducible
from sae_plugins.eval_suites.saebench.isolation import _Given, undisturbed
from sae_plugins.eval_suites.saebench.probing import _probing
from sae_plugins.eval_suites.saebench.ravel import _tuples, begin_alike

DATASET = "Skylion007/openwebtext"
UNSTRUCTURED = "eval_result_unstructured"


@dataclasses.dataclass(frozen=True)
class Changed(Subject):
    """A subject whose copies are changed before they are evaluated."""

    change: Any = None

    def copy(self, device: str, dtype: str) -> Any:
        sae = super().copy(device, dtype)
        self.change(sae)
        return sae


def changed(subject: Subject, name: str, change: Any) -> Changed:
    return Changed(**{**vars(subject), "name": name}, change=change)


def values(scores: Any) -> dict[str, float | None]:
    return {name: metric.value for name, metric in scores.metrics.items()}


def test_hazard_01_core_swallows_errors(lab):
    def encode(_: Any) -> Any:
        raise ArithmeticError("a broken encoder")

    broken = changed(lab.topk, "broken", lambda sae: setattr(sae, "encode", encode))
    assert lab.saebench("core", broken) == []
    with pytest.raises(ArithmeticError, match="a broken encoder"):
        lab.evaluate("core", broken)

    def text(*_: Any) -> Any:
        from datasets import Dataset

        return Dataset.from_dict({"text": ["too short"]}).to_iterable_dataset()

    data: Any = SimpleNamespace(text=text)
    with pytest.raises(SuiteError, match="text ends before"):
        lab.evaluate("core", lab.topk, lab.bench(data=data))


def test_hazard_02_absorption_gives_up_on_all_saes(lab, tmp_path, monkeypatch):
    from sae_bench.evals.absorption import main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    asked: list[str] = []

    def no_letters(sae_name: str, **_: Any) -> Any:
        asked.append(sae_name)
        return pd.DataFrame({"letter": ["a"], "f1_probe": [0.0]})

    monkeypatch.chdir(tmp_path)
    saes = [(s.name, s.copy("cpu", "float32")) for s in (lab.topk, lab.standard)]
    given = _Given(lab.model.hooked)
    config = AbsorptionEvalConfig(model_name="any", llm_dtype="float32")
    with (
        undisturbed(),
        replaced(main, HookedTransformer=given, run_k_sparse_probing_experiment=no_letters),
    ):
        assert main.run_eval(config, saes, "cpu", str(tmp_path)) == {}
    assert len(asked) == 1  # the other SAE is never looked at

    with pytest.raises(SuiteError, match=r"first letters .* 26 are needed"):
        lab.evaluate("absorption", lab.topk, min_letters=26, min_GT_probe_f1=0.9)


def test_hazard_03_minus_one_for_nan(lab):
    def kill(sae: Any) -> None:
        sae.b_enc.fill_(-1e6)
        sae.b_dec.zero_()

    scores = lab.evaluate("core", lab.sae("standard", "dead", kill))
    assert scores.metrics["cossim"].value is None
    assert scores.metrics["relative_reconstruction_bias"].value is None
    assert scores.metrics["frac_alive"].value == 0
    raw = json.loads(scores.raw)["eval_result_metrics"]["reconstruction_quality"]
    assert raw["cossim"] == -1  # a cosine could be that

    def spoil(sae: Any) -> None:
        own = sae.decode
        sae.decode = lambda codes: own(codes) * float("nan")

    with pytest.raises(SuiteError, match=r"ce_loss_score.* of nan is not a number"):
        lab.evaluate("core", changed(lab.topk, "nan", spoil))


@pytest.mark.parametrize(
    ("suite", "setting", "field", "class_name"),
    [
        ("sparse-probing", "k_values", "sae_top_3_test_accuracy", "SparseProbingSaeMetrics"),
        ("scr", "n_values", "scr_metric_threshold_3", "ScrMetrics"),
        ("tpp", "n_values", "tpp_threshold_3_total_metric", "TppMetrics"),
        pytest.param(
            "sae-probes",
            "ks",
            "sae_top_3_test_accuracy",
            "SaeProbesSaeMetrics",
            marks=pytest.mark.ci,
        ),
    ],
)
def test_hazard_04_numbers_that_are_dropped(suite, setting, field, class_name, lab):
    from sae_bench.evals.scr_and_tpp import eval_output as ablating
    from sae_bench.evals.sparse_probing import eval_output as probing

    module = probing if suite == "sparse-probing" else ablating
    if suite == "sae-probes":
        from sae_bench.evals.sparse_probing_sae_probes import eval_output as module
    metrics = getattr(module, class_name)(**{field: 0.5})
    assert not hasattr(metrics, field)
    with pytest.raises(SuiteError, match=f"{setting} 3: SAEBench drops it"):
        lab.evaluate(suite, lab.topk, **{setting: (3,)})
    with pytest.raises(SuiteError, match="has only 256 latents"):
        lab.evaluate("scr", lab.topk, n_values=(500,))


@pytest.mark.parametrize("pairs", [1, 2])
def test_hazard_05_scr_leaves_out_pairs(pairs, lab):
    from sae_bench.evals.scr_and_tpp import main

    own, calls = main.get_scr_plotting_dict, []

    def tied(accuracies: Any, clean: dict[str, float]) -> Any:
        calls.append(clean)
        if len(calls) <= pairs:
            biased = "male_professor / female_nurse probe on"
            ties = [f"{biased} professor / nurse data", f"{biased} male / female data"]
            clean = {**clean, **dict.fromkeys(ties, 0.7)}
        found = own(accuracies, clean)
        assert ("scr_metric_threshold_2" in found) == (len(calls) > pairs)
        return found

    with replaced(main, get_scr_plotting_dict=tied):
        if pairs == 2:
            named = "professor/nurse, Books/CDs_and_Vinyl"
            with pytest.raises(SuiteError, match=f"undefined for {named}: the biased probe"):
                lab.evaluate("scr", lab.topk)
            return
        scores = lab.evaluate("scr", lab.topk)
    assert scores.metrics["scr_metric_threshold_2"].n == 1
    assert any("professor/nurse does not count" in text for text in scores.warnings)
    assert not any("Books" in text and "does not count" in text for text in scores.warnings)


def test_hazard_05_scr_says_0_where_the_bias_cost_nothing(lab):
    from sae_bench.evals.scr_and_tpp import main

    own = main.get_scr_plotting_dict

    def free(accuracies: Any, clean: dict[str, float]) -> Any:
        return own(accuracies, {**clean, "professor / nurse": 0.0})

    with replaced(main, get_scr_plotting_dict=free):
        scores = lab.evaluate("scr", lab.topk)
    expected = "direction 1 of professor/nurse, Books/CDs_and_Vinyl is 0"
    assert any(text.startswith(expected) for text in scores.warnings)


def test_hazard_06_sparse_probing_fails_on_a_fresh_install(lab):
    from sae_bench.evals.sparse_probing import probe_training

    generator = torch.Generator().manual_seed(0)
    acts = {name: torch.randn(20, 8, generator=generator) for name in "ab"}
    with pytest.raises(Exception, match="train_sklearn_probe"), undisturbed():
        probe_training.train_probe_on_activations(acts, acts, select_top_k=1)
    assert lab.scores("sparse-probing", lab.topk).metrics["sae_top_1_test_accuracy"].value > 0


def test_hazard_07_the_explained_variance_forgets_the_mean(lab):
    mean = lab.sae("standard", "mean", lambda sae: sae.b_enc.fill_(-1e6))
    found = values(lab.evaluate("core", mean))
    assert found["explained_variance_centred"] < 0.01
    assert found["explained_variance"] > 0.1
    headline = [m.name for m in lab.suite("core")[0].metrics if m.headline]
    assert "explained_variance_centred" in headline
    assert "explained_variance" not in headline


@torch.no_grad()
def test_hazard_08_padding_leaks_into_scr(lab):
    from sae_bench.evals.scr_and_tpp.main import ablated_precomputed_activations as own

    sae, text = lab.topk.copy("cpu", "float32"), lab.acts[:12].reshape(3, 4, -1)
    padded = torch.cat([text, torch.zeros(3, 5, lab.d_in)], dim=1)
    active_at_0 = sae.encode(torch.zeros(1, lab.d_in))[0] > 0
    assert active_at_0.sum() == 16
    truth, leaking = own(text, sae, active_at_0, 2), own(padded, sae, active_at_0, 2)
    assert (leaking - truth).norm() > 0.1 * truth.norm()
    masks = {b"all": (active_at_0, {16})}
    for sum_codes in (False, True):
        for mask_padding, expected in ((False, leaking), (True, truth)):
            ablation = Ablation(sum_codes, mask_padding)
            found = ablation(padded, sae, masks, 2, own)[b"all"]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert ablation.leak((16,))[16] > 0.1
    quiet = Ablation(True, False)
    quiet(padded, lab.standard.copy("cpu", "float32"), {b"all": (~active_at_0, {240})}, 2, own)
    assert set(quiet.leak((240,)).values()) == {0}
    assert "padding_leak_threshold_5" in lab.scores("scr", lab.topk).metrics
    masked = lab.evaluate("scr", lab.topk, mask_padding=True)
    assert any("padding" in text for text in masked.deviations)
    assert lab.suite("scr")[1].mask_padding is False  # as published, by default


def test_hazard_09_probes_take_the_best_epoch_on_the_test_set(lab):
    from sae_bench.evals.sparse_probing import probe_training

    accuracies = iter([0.5, 0.6, 0.5, 0.9, 0.5, 0.1])  # train and test in turn
    data, labels = torch.randn(8, 4), torch.arange(8) % 2
    with (
        replaced(probe_training, test_probe_gpu=lambda *_: next(accuracies)),
        torch.enable_grad(),
    ):
        _, accuracy = probe_training.train_probe_gpu(
            data, labels, data, labels, dim=4, batch_size=4, epochs=3, lr=0.1
        )
    assert accuracy == 0.9


@pytest.mark.parametrize(
    "suite", ["sparse-probing", "scr", pytest.param("tpp", marks=pytest.mark.ci)]
)
def test_hazard_09_is_told_of_in_a_result(suite, lab):
    warnings = lab.scores(suite, lab.topk).warnings
    assert any("best epoch" in text and "test set" in text for text in warnings)


def test_hazard_10_absorption_reads_one_hook_only(lab):
    from sae_bench.evals.absorption import common

    hooks: list[str] = []
    with replaced(common, create_and_train_probe=lambda hook_point, **_: hooks.append(hook_point)):
        common.train_and_save_probes(lab.model.hooked, [3], "{word}", -1)
    assert hooks == ["blocks.3.hook_resid_post"]
    absorption = lab.suite("absorption")[0]
    assert absorption.refusal(lab.topk) is None
    for hook_name in ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.2.attn.hook_z"):
        other = lab.sae("topk", "elsewhere", hook_name=hook_name)
        reason = absorption.refusal(other)
        assert reason is not None
        assert hook_name in reason
    assert absorption.refusal(dataclasses.replace(lab.topk, hook_head_index=1)) is not None


def test_hazard_11_core_reads_the_first_documents(lab):
    from datasets import Dataset
    from sae_lens import ActivationsStore

    documents = [f"{i} " * 40 for i in range(40)]
    text = Dataset.from_dict({"text": documents}).to_iterable_dataset()
    sae = lab.topk.copy("cpu", "float32")
    store = ActivationsStore.from_sae(lab.model.hooked, sae, text, context_size=16)
    store.shuffle_input_dataset(seed=42)
    assert next(store._iterate_raw_dataset()) == documents[0]

    class Recorded:
        def text(self, *arguments: Any) -> Any:
            asked.append(arguments)
            raise SuiteError("enough")

    def asks(subject: Any, **overrides: Any) -> Any:
        with pytest.raises(SuiteError, match="enough"):
            lab.evaluate("core", subject, lab.bench(data=Recorded()), **overrides)
        return asked.pop()

    asked: list[Any] = []
    trained = dataclasses.replace(lab.topk, dataset=DATASET, training_tokens=1000)
    assert asks(lab.topk) == (DATASET, 0, 7)
    assert asks(trained) == (DATASET, 3, 7)
    assert asks(trained, skip_documents=4) == (DATASET, 4, 7)
    assert asks(dataclasses.replace(trained, dataset="another")) == (DATASET, 0, 7)
    unknown = dataclasses.replace(trained, training_tokens=None)
    assert any("may have seen this text" in t for t in lab.evaluate("core", unknown).warnings)
    assert not lab.scores("core", lab.topk).warnings


def test_hazard_12_namesakes_get_each_others_results(lab):
    from sae_bench.sae_bench_utils.general_utils import get_results_filepath

    sae = "custom_sae"
    assert get_results_filepath("", "a/b", sae) == get_results_filepath("", "a_b", sae)
    namesake = dataclasses.replace(lab.topk, name=lab.standard.name)
    expected = lab.scores("core", lab.topk)
    assert lab.scores("core", namesake).metrics == expected.metrics
    assert expected.metrics != lab.scores("core", lab.standard).metrics


def test_hazard_13_activations_of_another_run(lab, tmp_path):
    """Whatever they depend on is another entry of the cache."""
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    computed: list[Any] = []

    def own(name: str, *_: Any) -> Any:
        computed.append(name)
        return {"1": torch.ones(1, 1, 1), "0": torch.zeros(1, 1, 1)}, {"1": torch.ones(1, 1, 1)}

    def activations(name: str = "fancyzhx/ag_news", **other: Any) -> None:
        facts: dict[str, Any] = {
            "hash": lab.model.hash, "dtype": "float32", "version": "v1", "need": 1, "layer": 1,
            "hook_name": lab.hook_name,
        }  # fmt: skip
        settings = {field: value for field, value in other.items() if field not in facts}
        facts |= other
        config = SparseProbingEvalConfig(model_name="any", **settings)
        model = SimpleNamespace(hash=facts["hash"], dtype=facts["dtype"], device="cpu")
        data = SimpleNamespace(fingerprint=lambda _: facts["version"])
        bench = lab.bench(str(tmp_path), model=model, data=data)
        need = Need(facts["need"], 1, (0, 1))
        probing = _probing(bench, main, lambda _: need, 7)
        with replaced(main, get_dataset_activations=own), probing:
            train, test = main.get_dataset_activations(
                name, config, model, 32, facts["layer"], facts["hook_name"], "cpu"
            )
        assert [*train] == ["1", "0"]  # their order is SAEBench's
        assert [*test] == ["1"]

    others = [
        {}, {"hash": "x"}, {"dtype": "bfloat16"}, {"version": "v2"}, {"need": 2}, {"layer": 2},
        {"hook_name": "blocks.1.hook_mlp_out"}, {"random_seed": 43}, {"context_length": 64},
        {"probe_train_set_size": 50}, {"probe_test_set_size": 50},
        {"name": "LabHC/bias_in_bios_class_set1"}, {"name": "LabHC/bias_in_bios_class_set2"},
    ]  # fmt: skip
    for other in others:
        activations(**other)
    assert len(computed) == len(others)
    for other in others:
        activations(**other)
    activations(sae_batch_size=3)  # which they do not depend on
    assert len(computed) == len(others)


@pytest.mark.ci
def test_hazard_14_absorption_writes_into_the_package(lab):
    """And into the working folder, which tests/eval_suites/saebench/test_equality.py looks at."""
    import sae_bench
    from sae_bench.evals.absorption import common

    package = Path(sae_bench.__file__).parent
    default = inspect.signature(common.load_or_train_probe).parameters["probes_dir"].default
    assert package in Path(default).parents
    assert lab.scores("absorption", lab.topk).details
    written = (path.stat().st_mtime for path in (package / "artifacts").rglob("*"))
    assert max(written, default=0) < lab.began


def test_hazard_15_grad_mode_and_what_is_left_behind(lab):
    """Of all suites: tests/eval_suites/saebench/test_equality.py."""
    from sae_bench.evals.sparse_probing import probe_training

    acts = {name: torch.randn(8, 4) for name in "ab"}
    with torch.no_grad():
        probe_training.train_probe_on_activations(acts, acts, use_sklearn=False, epochs=1)
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    bench = lab.bench()
    lab.evaluate("scr", lab.topk, bench)  # SAEBench's switches it off
    assert torch.is_grad_enabled()
    left = [file.name for file in bench.folder.rglob("*") if file.is_file()]
    assert not [name for name in left if name.endswith((".pt", ".pkl"))]


def test_hazard_16_saes_are_changed(lab):
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    copy = lab.topk.copy("cpu", "float32")
    assert load_and_format_sae("name", copy, "cpu")[1] is copy
    before = {name: tensor.clone() for name, tensor in lab.topk.sae.state_dict().items()}
    config = repr(lab.topk.sae.cfg)
    model = load_language_model(lab.model.name, "cpu", "bfloat16")
    scores = lab.evaluate("core", lab.topk, lab.bench(model=model))
    assert scores.metrics["l0"].value == pytest.approx(16)
    assert lab.topk.sae.dtype == torch.float32
    assert repr(lab.topk.sae.cfg) == config
    for name, tensor in lab.topk.sae.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_hazard_17_the_commit_of_the_working_folder(lab, tmp_path, monkeypatch):
    from sae_bench.sae_bench_utils import get_sae_bench_version

    monkeypatch.chdir(tmp_path)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert get_sae_bench_version() == head  # it is none of SAEBench's
    scores = lab.evaluate("core", lab.topk)
    assert json.loads(scores.raw)["sae_bench_commit_hash"] == "Unknown"


@pytest.mark.parametrize(
    "suite",
    [
        "core",
        pytest.param("sparse-probing", marks=pytest.mark.slow),
        pytest.param("scr", marks=pytest.mark.slow),
        pytest.param("tpp", marks=pytest.mark.ci),
        pytest.param("absorption", marks=pytest.mark.slow),
    ],
)
def test_hazard_18_seeds_matter_in_every_suite(suite, lab):
    from sae_bench.evals.core import main

    assert "shuffle_input_dataset(seed=42)" in inspect.getsource(main.multiple_evals)
    one, another = (lab.scores(suite, lab.topk, seed=seed) for seed in (7, 8))
    assert (one.metrics, one.details) != (another.metrics, another.details)


@pytest.mark.ci
def test_hazard_19_absorption_has_no_seed(lab, monkeypatch):
    """The vocabulary's order differs between processes."""
    from sae_bench.evals.absorption.probing import create_dataset_probe_training
    from sae_bench.evals.absorption.prompting import first_letter_formatter

    def words(vocabulary: list[str]) -> Any:
        with undisturbed():
            seed_everything(7)
            train, _ = create_dataset_probe_training(
                vocabulary, first_letter_formatter(), 1, "{word}"
            )
        return {prompt.word for prompt, _ in train}

    assert words(lab.words) != words(lab.words[::-1])
    first = lab.scores("absorption", lab.topk)
    monkeypatch.setattr(lab, "words", lab.words[::-1])
    again = lab.scores("absorption", lab.topk, cache="reversed")
    assert (first.metrics, first.details) == (again.metrics, again.details)
    assert any("sorted" in text for text in again.deviations)


@pytest.mark.ci
def test_hazard_20_tpp_depends_on_the_position(lab):
    """Ours are all the first: tests/eval_suites/saebench/test_equality.py."""
    (alone,) = lab.saebench("tpp", lab.topk)
    _, second = lab.saebench("tpp", lab.standard, lab.topk)
    assert alone["tpp_threshold_5_total_metric"] != second["tpp_threshold_5_total_metric"]


def test_hazard_20_sparse_probing_depends_on_the_position(lab):
    """Ours does not: tests/eval_suites/saebench/test_equality.py."""
    (alone,) = lab.saebench("sparse-probing", lab.topk, share_probes=False)
    _, second = lab.saebench("sparse-probing", lab.standard, lab.topk)
    assert alone["sae_test_accuracy"] != second["sae_test_accuracy"]
    deviations = lab.scores("sparse-probing", lab.topk).deviations
    assert any("random state of their own" in text for text in deviations)
    exact = lab.scores("sparse-probing", lab.topk, share_probes=False)
    assert not exact.deviations


@pytest.mark.slow
def test_hazard_21_absorption_has_a_dtype_of_its_own(lab):
    """And may so on CUDA; ours takes the language model's."""
    from sae_bench.evals.absorption import common

    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert expected == common.DEFAULT_DTYPE
    model = load_language_model(lab.model.name, "cpu", "bfloat16")
    bench = lab.bench("bfloat16", model=model)
    suite, settings = lab.suite("absorption")
    with lab.few_words():
        shared, given = suite.prepare(bench, settings, 7)
        scores = suite.evaluate(lab.topk, bench, settings, 7, (shared, given))
    assert {p.dtype for p in given.probe.parameters()} == {torch.bfloat16}
    assert {acts.dtype for acts, _ in given.splits.values()} == {torch.bfloat16}
    assert json.loads(scores.raw)["eval_config"]["llm_dtype"] == "bfloat16"


def test_hazard_22_decoder_norms_only_warn(lab):
    from sae_bench.sae_bench_utils.general_utils import check_decoder_norms

    long = lab.sae("standard", "long", scale=3.0)
    with pytest.warns(UserWarning, match="not normalized"):
        assert not check_decoder_norms(long.sae.W_dec.data)
    for suite in ("core", "sparse-probing"):
        found, expected = (values(lab.scores(suite, s)) for s in (long, lab.standard))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_hazard_23_fields_of_the_config(lab, monkeypatch):
    from sae_bench.sae_bench_utils import general_utils

    def forget(sae: Any) -> None:
        sae.cfg.metadata.prepend_bos = None

    retries: list[float] = []
    monkeypatch.setattr(general_utils, "time", SimpleNamespace(sleep=retries.append))
    assert lab.saebench("core", changed(lab.topk, "no BOS", forget)) == []
    assert retries

    silent = lab.sae("topk", "silent", prepend_bos=None)
    assert any("prepend_bos" in text for text in silent.warnings)
    assert lab.evaluate("core", silent).metrics == lab.scores("core", lab.topk).metrics

    folder = lab.folder / "saes" / "silent"
    config = json.loads((folder / "cfg.json").read_text())
    for field in ("hook_name", "model_name"):
        metadata = {**config["metadata"], field: None}
        (folder / "cfg.json").write_text(json.dumps({**config, "metadata": metadata}))
        with pytest.raises(SuiteError, match=f"add {field} to the metadata"):
            load_subject(str(folder))


@pytest.mark.ci
def test_hazard_24_tpp_compares_accuracies_on_other_texts(lab):
    """Where nothing is ablated, nothing should change."""
    from sae_bench.evals.scr_and_tpp import main

    def no_latent(effects: Any, *_: Any) -> Any:
        return torch.zeros_like(effects, dtype=torch.bool)

    with replaced(main, select_top_n_features=no_latent):
        found = values(lab.evaluate("tpp", lab.topk))
        same = lab.evaluate("tpp", lab.topk, same_texts=True)
    for name in ("total_metric", "intended_diff_only", "unintended_diff_only"):
        assert found[f"tpp_threshold_2_{name}"] != 0
        assert values(same)[f"tpp_threshold_2_{name}"] == 0
    assert any("same texts" in text for text in same.deviations)
    assert lab.suite("tpp")[1].same_texts is False  # as published, by default


def test_hazard_25_tpp_fills_up_with_any_latents():
    from sae_bench.evals.scr_and_tpp.main import select_top_n_features

    effects = torch.tensor([0.0, 2.0, 0.0, -1.0, -3.0])
    mask = select_top_n_features(effects, 3, "x")
    assert mask.sum() == 3
    assert (effects[mask] == 0).sum() == 2
    ablation = Ablation(True, False)
    ablation.choose(3, mask, effects)
    ablation.choose(1, select_top_n_features(effects, 1, "x"), effects)
    assert ablation.fewer == {3: 1}


@pytest.mark.ci
def test_hazard_25_is_told_of_in_a_result(lab):
    warnings = lab.evaluate("tpp", lab.topk, n_values=(2, 100)).warnings
    (told,) = (text for text in warnings if "speak for their class" in text)
    assert told.startswith("tpp_threshold_100: down to ")


@pytest.mark.ci
def test_hazard_26_sae_probes_loses_binarised_results():
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_probes.run_sae_evals import get_save_metrics_path

    looked_for = re.findall(r'expected_suffix = f"(.+)"', inspect.getsource(main.run_eval))
    assert looked_for == ["_{sae.cfg.hook_name}_{config.reg_type}.json"]
    path = get_save_metrics_path("d", "blocks.1.hook_x", "l1", "m", "results", binarize=True)
    assert not path.name.endswith("_blocks.1.hook_x_l1.json")
    assert "binarize" not in SAEProbesSettings.model_fields


@pytest.mark.ci
def test_hazard_27_sae_probes_reads_texts_that_are_too_long(lab):
    """The embedded model reads 256 tokens; some spam has 400."""
    spam = ("96_spam_is",)
    assert lab.model.hooked.cfg.n_ctx == 256
    with pytest.raises(RuntimeError, match="must match"):
        lab.saebench("sae-probes", lab.topk, dataset_names=spam)
    scores = lab.evaluate("sae-probes", lab.topk, dataset_names=spam, ks=(1,), context_length=16)
    assert any("cut at 16 tokens" in text for text in scores.deviations)
    suite, settings = lab.suite("sae-probes", context_length=1024)
    assert getattr(settings, suite.context) == 1024  # which evaluate compares with the model's


@pytest.mark.ci
def test_hazard_28_sae_probes_changes_the_tokeniser():
    """Ours is put back: tests/eval_suites/saebench/test_equality.py."""
    from sae_probes.generate_model_activations import _get_tokenizer

    model: Any = SimpleNamespace(tokenizer=SimpleNamespace(truncation_side="right"))
    _get_tokenizer(model)
    assert model.tokenizer.truncation_side == "left"


@pytest.mark.ci
def test_hazard_29_sae_probes_has_a_dtype_of_its_own(lab):
    from sae_probes import generate_model_activations

    source = inspect.getsource(generate_model_activations)
    assert "dtype" not in source
    model = load_language_model(lab.model.name, "cpu", "bfloat16")
    one = {"dataset_names": ("118_us_state_CA",), "ks": (1,)}
    scores = lab.evaluate("sae-probes", lab.topk, lab.bench("bfloat16", model=model), **one)
    assert any("bfloat16" in text for text in scores.deviations)
    assert scores.metrics["llm_test_accuracy"].value > 0.4


@pytest.mark.ci
def test_hazard_30_sae_probes_takes_what_is_there(lab):
    """Whatever k and seed it is of; ours is found by all that it depends on."""
    # a function of its name hides it in the package
    run_sae_evals = importlib.import_module("sae_probes.run_sae_evals")
    source = inspect.getsource(run_sae_evals.run_sae_evals)
    assert "if save_path.exists():" in source
    parameters = inspect.signature(run_sae_evals.get_save_metrics_path).parameters
    assert not {"ks", "seed"} & {*parameters}
    one, another = (lab.scores("sae-probes", lab.topk, seed=seed) for seed in (7, 8))
    for name in ("sae_top_1_test_accuracy", "llm_test_accuracy"):
        assert one.metrics[name] != another.metrics[name]


@pytest.mark.ci
def test_hazard_31_autointerps_prompts_depend_on_who_answers_first():
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

    examples = [SimpleNamespace(toks=[1, 2], to_str=lambda **_: "a text")]

    def prompts(kind: Any) -> list[Any]:
        autointerp = kind.__new__(kind)
        autointerp.cfg = AutoInterpEvalConfig()
        return [autointerp.get_scoring_prompts("nothing", examples) for _ in range(2)]

    with undisturbed():
        one, another = prompts(main.AutoInterp)
        assert one != another  # the next numbers of a random state that all latents share
        state = random.getstate()
        one, another = prompts(_reproducible(main.AutoInterp, Found()))
        assert one == another
        assert random.getstate() == state


@pytest.mark.ci
def test_hazard_32_autointerp_goes_on_sending(lab):
    """After an error, and after Ctrl-C: whatever is queued is paid for, and kept by nobody."""
    judge, own, many = lab.judge, lab.judge.answer, {"n_latents": 60, "dead_latent_threshold": 1}

    def refuse(_: Any) -> Any:
        if len(judge.requests) > 1:
            time.sleep(0.05)
        return 400, {"error": {"message": "no"}}

    sent = {}
    try:
        judge.answer = refuse
        for whose, evaluate in (("theirs", lab.saebench), ("ours", lab.evaluate)):
            judge.requests.clear()
            with pytest.raises((SuiteError, openai.BadRequestError)):
                evaluate("autointerp", lab.topk, **many)
            sent[whose] = len(judge.requests)
    finally:
        judge.answer = own
    assert sent["theirs"] > 50
    assert sent["ours"] <= 30


@pytest.mark.ci
def test_hazard_33_autointerp_takes_random_examples_for_inactive(lab):
    scores = lab.scores("autointerp", lab.topk)
    assert scores.metrics["random_active"].value > 0.2
    told = lab.scores("autointerp", lab.topk, label_random=True)
    assert told.metrics["random_active"] == scores.metrics["random_active"]
    assert told.metrics["autointerp_score"] != scores.metrics["autointerp_score"]
    assert any("where the latent fires count as active" in each for each in told.deviations)
    active = [
        sum(len(row["correct seqs"]) for row in json.loads(each.raw)[UNSTRUCTURED].values())
        for each in (scores, told)
    ]
    n = 10 * scores.metrics["latents_scored"].value
    assert active[1] - active[0] == pytest.approx(n * scores.metrics["random_active"].value)


@pytest.mark.ci
def test_hazard_34_autointerp_scores_silence():
    """Ours: tests/eval_suites/test_autointerp.py."""
    from sae_bench.evals.autointerp import main

    this: Any = None
    parse = main.AutoInterp.parse_predictions
    assert parse(this, "") == []
    examples: Any = [SimpleNamespace(is_active=i < 4) for i in range(14)]
    assert main.AutoInterp.score_predictions(this, [], examples) == 10 / 14
    assert parse(this, "I think 3 and 5") is None
    assert "if result:" in inspect.getsource(main.AutoInterp.run)  # or else it is left out


@pytest.mark.ci
def test_hazard_35_autointerp_does_not_say_who_judged(lab):
    from sae_bench.evals.autointerp import main

    asking = inspect.getsource(main.AutoInterp.get_api_response)
    assert 'model="gpt-4o-mini"' in asking
    assert "base_url" not in asking
    raw = json.loads(lab.scores("autointerp", lab.topk).raw)
    assert "gpt" not in json.dumps(raw["eval_config"])
    _, settings = lab.suite("autointerp")
    assert {"model", "endpoint"} <= {*settings.model_dump()}


@pytest.mark.ci
def test_hazard_36_autointerp_takes_tokens_that_are_there(lab):
    from sae_bench.evals.autointerp import main

    source = inspect.getsource(main.run_eval_single_sae)
    (name,) = re.findall(r'tokens_filename = f"(.+)"', source)
    assert "total_tokens" in name
    assert "dataset" not in name
    assert "if os.path.exists(tokens_path):" in source
    other: Any = SimpleNamespace(text=lambda name, skip, seed: lab.data.text(name, skip, seed + 1))
    one, another = (
        json.loads(each.raw)[UNSTRUCTURED]
        for each in (
            lab.scores("autointerp", lab.topk),
            lab.evaluate("autointerp", lab.topk, lab.bench(data=other)),
        )
    )
    assert one != another


@pytest.mark.ci
def test_hazard_37_ravel_does_not_run_on_a_fresh_install():
    """Layers give tensors today, of which the hooks take the first text for all of them."""
    from sae_bench.sae_bench_utils import activation_collection

    from sae_plugins import world

    model, tokens = world.load_hf_model(), torch.tensor([[2, 46, 1785], [2, 4589, 1584]])
    inputs: Any = {"input_ids": tokens}
    positions = torch.tensor([-1, -2])
    with pytest.raises(IndexError):
        activation_collection.get_layer_activations(model, 1, inputs, positions)
    own = activation_collection.get_module
    with replaced(activation_collection, get_module=_tuples(own)):
        found = activation_collection.get_layer_activations(model, 1, inputs, positions)
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(found, torch.stack([expected[0, -1], expected[1, -2]]))


@pytest.mark.ci
def test_hazard_38_ravel_misses_the_entity(lab, monkeypatch):
    """Where a tokenizer adds no token at the beginning, such as that of Pythia."""
    from sae_bench.evals.ravel.instance import RAVELInstance

    from sae_plugins import world
    from sae_plugins.eval_suites.saebench import ravel

    def at_the_entity(tokenizer: Any) -> str:
        instance = RAVELInstance()
        instance.entityLBL_attrTYP_attrLBL = {"castle": {"Size": "big"}}
        instance.attribute_type_to_templates = {"Size": ["A %s is"]}
        instance.template_splits, instance.entity_splits = {"A %s is": "train"}, {"castle": "val"}
        (prompt,) = instance.build_and_tokenize_prompts(tokenizer)
        return tokenizer.decode([prompt.input_ids[prompt.final_entity_token_pos]])

    assert at_the_entity(world.load_tokenizer()) == " castle"
    without = language_models.tokenizer()
    assert without.encode("e")[0] != without.bos_token_id
    assert at_the_entity(without) == " "  # not "e"
    given = (world.load_hf_model(), without)
    monkeypatch.setattr(ravel, "transformers_model", lambda *_: given)
    with pytest.raises(SuiteError, match="adds no token at the beginning"):
        lab.evaluate("ravel", lab.topk)


@pytest.mark.ci
def test_hazard_39_ravel_takes_answers_that_begin_alike_for_isolation():
    from sae_bench.evals.ravel import intervention

    source = inspect.getsource(intervention.generate_batched_interventions)
    assert "if base_pred == source_pred:\n                iso_scores.append(" in source
    prompts = [
        {"attribute_type": "Country", "attribute_label": label, "first_generated_token_id": first}
        for label, first in (("United States", 1), ("United Kingdom", 1), ("France", 2))
    ]
    assert begin_alike(prompts) == {"Country": pytest.approx(1 / 3)}


@pytest.mark.ci
def test_hazard_40_ravel_takes_questions_that_are_there():
    import sae_bench
    from sae_bench.evals.ravel.instance import get_instance_name

    assert {*inspect.signature(get_instance_name).parameters} == {
        "entity_type", "model_name", "downsample", "top_n_entities"
    }  # fmt: skip
    package = Path(sae_bench.__file__).parent / "evals" / "ravel"
    users = [p.name for p in package.glob("*.py") if "top_n_templates" in p.read_text()]
    assert users == ["eval_config.py"]  # a setting that nobody reads


def asking(lab: Any, words: tuple[str, ...] = quiz.ABOUT_AGING) -> Any:
    """SAEBench's module that asks questions, and while open, questions for it."""
    from sae_bench.evals.unlearning.utils import metrics

    def load_dataset(*_: Any, **__: Any) -> Any:
        return [*quiz.questions(words)]

    return metrics, replaced(metrics, load_dataset=load_dataset)


def test_hazard_41_unlearning_takes_what_lies_there(tmp_path):
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.utils import feature_activation

    def write(multiplier: int, biology: float) -> None:
        shares = {"wmdp-bio": biology, "human_aging": 1.0}
        found = {
            name: {"mean_correct": share, "total_correct": int(4 * share), "is_correct": [0] * 4}
            for name, share in shares.items()
        }
        name = f"clamp_multiplier{multiplier}_nfeatures5_layer1_retainthres0.1.pkl"
        (tmp_path / name).write_bytes(pickle.dumps(found))

    write(25, 1.0)
    write(777, 0.5)  # of an earlier evaluation, with other settings
    assert main.get_unlearning_scores(main.get_metrics_df(tmp_path)) == 0.5
    folder = tmp_path / "sae" / feature_activation.SPARSITIES_DIR
    folder.mkdir(parents=True)
    for name in (feature_activation.FORGET_FILENAME, feature_activation.RETAIN_FILENAME):
        (folder / name).touch()
    # which asks for nothing of this SAE
    with contextlib.redirect_stdout(io.StringIO()):
        feature_activation.save_feature_sparsity(None, None, tmp_path, "sae", 1, 1, 1)


def test_hazard_42_unlearning_of_a_second_sae_reads_other_text(lab):
    from sae_bench.evals.unlearning.utils import feature_activation

    texts, model = [f"{word} the of and " * 10 for word in quiz.KNOWN], lab.quiz[0].hooked

    def cut() -> Any:
        return feature_activation.get_shuffled_forget_retain_tokens(
            model, batch_size=4, seq_len=16
        )[0]

    with (
        undisturbed(),
        contextlib.redirect_stdout(io.StringIO()),
        replaced(feature_activation, get_forget_retain_data=lambda *_: (texts, texts)),
    ):
        seed_everything(1)
        first, second = cut(), cut()
        seed_everything(1)
        again = cut()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_hazard_43_settings_of_unlearning_that_do_nothing_or_fail(lab):
    from sae_bench.evals.unlearning import main

    metrics, questions = asking(lab)
    with questions, pytest.raises(AssertionError, match="target_metric not recognised"):
        metrics.calculate_MCQ_metrics(None, 1, "", "human_aging", "correct-no-tricks")
    source = inspect.getsource(metrics.modify_and_calculate_metrics)
    assert "target_metric" not in inspect.signature(metrics.modify_and_calculate_metrics).parameters
    assert 'metric_param = {"target_metric": "correct", "verbose": verbose}' in source
    name = "clamp_feature_activation_multiplier{}_nfeatures5_layer1_retainthres{}.pkl"
    assert main.get_params(name.format(25, 0.001)) == ("25", "5", "1", "0.001")
    for multiplier, threshold in ((25, 0.00001), (0.5, 0.001), (-25, 0.001)):
        assert main.get_params(name.format(multiplier, threshold)) is None


def test_hazard_44_zero_of_unlearning_says_several_things(lab):
    from sae_bench.evals.unlearning import main

    def score(biology: float, others: float) -> float:
        table = pd.DataFrame({"wmdp-bio": [biology], "all_side_effects_mcq": [others]})
        return main.get_unlearning_scores(table)

    assert score(1.0, 1.0) == score(0.25, 0.98) == 0
    assert score(0.25, 0.99) == 0.75
    subject = lab.sae("standard", "none", quiz.knowing())  # no latent at all
    assert lab.saebench("unlearning", subject) == [{"unlearning_score": 0}]
    assert "no more were clamped" in lab.scores("unlearning", subject).warnings[0]


def test_hazard_45_unlearning_clamps_fewer_latents_than_asked_for():
    from sae_bench.evals.unlearning.utils import feature_activation, metrics

    firing, silent = np.array([0.1, 0.2, 0.0, 0.3]), np.array([0.0, 0.0, 0.0, 0.5])
    assert feature_activation.get_top_features(firing, silent)[:10].tolist() == [1, 0]
    source = inspect.getsource(metrics.calculate_metrics_list)
    assert 'n_features = len(ablate_params["features_to_ablate"])' in source
    assert "if os.path.exists(full_path) and not force_rerun:" in source


def test_hazard_46_unlearning_finds_out_late_whom_it_can_ask(lab):
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.utils import eval as of_one_sae

    assert '"it" not in config.model_name' in inspect.getsource(main.run_eval)
    source = inspect.getsource(of_one_sae.run_eval_single_sae)
    assert source.index("save_feature_sparsity(") < source.index("run_metrics_calculation(")
    metrics, questions = asking(lab)
    model = lab.quiz[0].hooked
    with questions, undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a division by zero
        with pytest.raises(RuntimeError, match="non-empty TensorList"):
            metrics.calculate_MCQ_metrics(model, 4, "", "human_aging", question_subset=[])
        with (
            replaced(model.cfg, model_name="granite"),
            pytest.raises(Exception, match="Model prompt format not found"),
        ):
            metrics.calculate_MCQ_metrics(model, 4, "", "human_aging")


def test_hazard_47_unlearning_clamps_to_a_number(lab):
    """An SAE with longer decoder rows computes the same, and forgets more."""
    of_one = {"n_features_list": (6,), "multipliers": (1,)}
    words = (*quiz.ABOUT_BIOLOGY, *quiz.ABOUT_AGING)
    subject = lab.sae("standard", "short", quiz.knowing(*words, least=2))
    longer = changed(subject, "longer", quiz.knowing(*words, least=2, norm=4))
    (short,), (long,) = (lab.saebench("unlearning", s, **of_one) for s in (subject, longer))
    assert (short["unlearning_score"], long["unlearning_score"]) == (0, 1)
    folded = lab.sae("standard", "long", quiz.knowing(*words, least=2, norm=4))
    assert lab.scores("unlearning", folded, **of_one).metrics["unlearning_score"].value == 0
