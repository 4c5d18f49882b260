"""Unlearning: whom it asks, with what, and what it says of a model that is made by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import language_models
import pytest
import quiz

from sae_plugins.base.errors import SaePluginsError, SuiteError
from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Request
from sae_plugins.eval_suites.evaluation.plan import _on
from sae_plugins.eval_suites.inputs.data import CORPORA
from sae_plugins.eval_suites.inputs.file_data import FolderData, HubData
from sae_plugins.eval_suites.inputs.world_data import WorldData
from sae_plugins.eval_suites.saebench import facts, unlearning
from sae_plugins.eval_suites.unlearning import Unlearning
from sae_plugins.runs.language_models import choice

SUITE = Unlearning()
FORM = "https://docs.google.com/forms/"


def settings(**given: Any) -> Any:
    return SUITE.settings("canonical", given)


def test_the_defaults_are_saebenchs() -> None:
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    ours, theirs = settings().model_dump(mode="json"), vars(UnlearningEvalConfig())
    assert ours == {name: theirs[name] for name in ours}
    assert theirs.keys() - ours.keys() == {
        "random_seed", "model_name", "llm_batch_size", "llm_dtype",  # which are known
        "intervention_method", "n_batch_loss_added", "target_metric", "save_metrics",  # hazard 43
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset_names": ("human_aging",)}, "dataset_names: name wmdp-bio too"),
        ({"dataset_names": ("wmdp-bio", "college_biology")}, "name a subject of MMLU that shall"),
        ({"dataset_names": ("wmdp-bio", "a", "a")}, "dataset_names: a is given twice"),
        ({"retain_thresholds": (0.00001,)}, "retain_thresholds 1e-05: it must be at least"),
        ({"retain_thresholds": ()}, "retain_thresholds: name a threshold at least"),
        ({"multipliers": (-25,)}, "multipliers -25: it must be at least 0"),
        ({"multipliers": (25, 25)}, "multipliers: 25 is given twice"),
        ({"n_features_list": (0,)}, "n_features_list 0: it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SaePluginsError, match=f"--unlearning.*{words}"):
        settings(**given)


def test_what_to_ask_for_and_where_to_put_it(tmp_path: Path) -> None:
    place = tmp_path / CORPORA / "bio-forget-corpus.jsonl"
    lack = SUITE.lack(settings(), FolderData(tmp_path))
    assert str(lack).startswith(f"needs {place}, which is not there: ask the authors")
    assert FORM in str(lack)
    quiz.write(tmp_path)
    lack = SUITE.lack(settings(), FolderData(tmp_path))
    us_history = tmp_path / "cais/mmlu/high_school_us_history/test.parquet"
    assert str(lack).startswith(f"needs {us_history}, .jsonl or .csv, which is not there: download")
    few = settings(dataset_names=("wmdp-bio", "human_aging"))
    assert SUITE.lack(few, FolderData(tmp_path)) is None
    before = FolderData(tmp_path).fingerprint(CORPORA)
    place.write_text("{}")
    assert FolderData(tmp_path).fingerprint(CORPORA) != before


def test_the_hub_has_no_corpus_and_the_embedded_world_no_answers() -> None:
    lack = str(SUITE.lack(settings(), HubData()))
    assert lack.startswith("needs bio-forget-corpus.jsonl of cais/wmdp-corpora, which is not on")
    assert FORM in lack
    assert "put it at FOLDER/cais/wmdp-corpora/bio-forget-corpus.jsonl, with" in lack
    with pytest.raises(SuiteError, match="which is not on the Hub"):
        HubData().path(CORPORA, "bio-forget-corpus.jsonl")
    world = WorldData()
    assert "no stand-in" in str(SUITE.lack(settings(), world))
    assert "FOLDER/cais/mmlu/a/test.parquet" in world.lack_of_table("cais/mmlu", "a")
    with pytest.raises(SuiteError, match="no stand-in"):
        world.table("cais/mmlu", "a")


@pytest.mark.parametrize(
    ("name", "hook", "words"),
    [
        ("gemma-2-2b-it", "blocks.1.hook_resid_pre", None),
        ("google/gemma-2-9b-it", "blocks.1.hook_mlp_out", None),
        ("/models/gemma-2-2b-it", "blocks.1.hook_resid_post", None),
        ("gemma-2-2b-it", "blocks.1.attn.hook_z", "with core only"),
        ("gemma-2-2b", "blocks.1.hook_resid_post", "--model_name gemma-2-2b-it"),
        ("google/gemma-2-9b", "blocks.1.hook_resid_post", "--model_name gemma-2-9b-it"),
        ("granite", "blocks.1.hook_resid_post", "asks gemma-2-2b-it and gemma-2-9b-it only"),
    ],
)
def test_whom_it_asks(name: str, hook: str, words: str | None) -> None:
    subject: Any = SimpleNamespace(model_name=name, hook_name=hook, hook_head_index=None)
    refusal = SUITE.refusal(subject)
    assert (refusal is None) if words is None else (words in str(refusal))


CLAMPED: dict[str, Any] = {
    "retain_thresholds": (0.001, 0.5), "n_features_list": (2, 6), "multipliers": (0, 100)
}  # fmt: skip


def test_what_is_forgotten_and_what_is_kept(lab: Any) -> None:
    """The latents are the words themselves, so that everything can be told beforehand."""
    words = (*quiz.ABOUT_BIOLOGY, *quiz.ABOUT_AGING)
    subject = lab.sae("standard", "words", quiz.knowing(*words))
    scores = lab.scores("unlearning", subject, **CLAMPED)
    shares = {
        (row["retain_threshold"], row["n_features"], row["multiplier"]): (
            row["wmdp-bio"], row["side_effects"]
        )
        for row in scores.details.values()
    }  # fmt: skip
    # the text has "plague" too, so at the lower threshold five latents are left of six; a latent
    # that is switched off leaves some of its word, one that is turned round leaves less than none
    assert shares == {
        (threshold, n, multiplier): (pytest.approx(1 - n / 6 if multiplier else 1), 1)
        for threshold, numbers in ((0.001, (2, 5)), (0.5, (2, 6)))
        for n in numbers
        for multiplier in (0, 100)
    }
    assert scores.metrics["interventions_kept"].value == 1
    assert scores.metrics["unlearning_score"].value == 1
    assert scores.metrics["unlearning_score"].n == 6
    assert "at threshold 0.001 5 latents fire" in scores.warnings[0]
    assert "no more were clamped, where 6 were asked for" in scores.warnings[0]
    assert "answers 6 questions about biology and 4 others rightly" in scores.warnings[1]
    assert len(scores.warnings) == 2


def test_zero_that_says_nothing(lab: Any) -> None:
    """The only latent that fires stands for what must be kept, too."""
    subject = lab.sae("standard", "one", quiz.knowing("memory"))
    folder = quiz.write(lab.folder / "quiz of memory")
    file = folder / quiz.FOLDERS["corpus"] / "bio-forget-corpus.jsonl"
    file.write_text(file.read_text().replace("toxin", "memory"))
    text = folder / quiz.FOLDERS["text"] / "test.jsonl"
    text.write_text(text.read_text().replace("memory", "retire"))
    bench = dataclasses.replace(lab.bench_of("unlearning"), data=FolderData(folder))
    scores = lab.evaluate("unlearning", subject, bench, n_features_list=(1,), multipliers=(100,))
    assert scores.metrics["unlearning_score"].value == 0
    assert scores.metrics["interventions_kept"].value == 0
    assert any("no intervention leaves 99% of the other" in text for text in scores.warnings)
    none = lab.sae("standard", "none", quiz.knowing())
    scores = lab.scores("unlearning", none)
    assert scores.metrics["unlearning_score"].value == 0
    assert "at threshold 0.3 0 latents fire" in scores.warnings[0]


def test_the_model_is_asked_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.scores("unlearning", lab.topk)
    monkeypatch.setattr(unlearning, "_answered", lambda *_: pytest.fail("it was asked before"))
    suite, of_it = lab.suite("unlearning")
    asked = suite.prepare(lab.bench_of("unlearning"), of_it, 8)
    assert asked.right["wmdp-bio"].tolist() == [0, 1, 2, 3, 4, 5]
    assert asked.right["human_aging"].tolist() == [0, 1, 2, 3]


def prepare(lab: Any, folder: Path, **replaced: Any) -> None:
    suite, of_it = lab.suite("unlearning", seq_len=quiz.POSITIONS)
    bench = dataclasses.replace(lab.bench_of("unlearning"), data=FolderData(folder), **replaced)
    suite.prepare(bench, of_it, 7)


def test_a_model_that_knows_nothing(lab: Any, tmp_path: Path) -> None:
    file = quiz.write(tmp_path) / quiz.FOLDERS["aging"] / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in quiz.questions(())))
    with pytest.raises(SuiteError, match="answers none of the 1 questions of human_aging rightly"):
        prepare(lab, tmp_path)


@pytest.mark.parametrize(
    ("what", "text", "words"),
    [
        ("aging/test", '{"question": "?", "choices": ["a", "b"], "answer": 0}', "has 2 choices"),
        ("aging/test", '{"question": "?", "choices": ["a"]}', "no column 'answer'"),
        ("corpus/bio-forget-corpus", '{"texts": ""}', "is not what SAEBench reads"),
        ("corpus/bio-forget-corpus", "no JSON", "is not what SAEBench reads"),
        ("corpus/bio-forget-corpus", json.dumps({"text": " the" * 15}), "has fewer than 80 tokens"),
        ("text/test", json.dumps({"text": " the" * 15}), "has fewer than 80 tokens"),
    ],
)
def test_data_that_do_not_fit(lab: Any, tmp_path: Path, what: str, text: str, words: str) -> None:
    folder, _, name = what.partition("/")
    (quiz.write(tmp_path) / quiz.FOLDERS[folder] / f"{name}.jsonl").write_text(text + "\n")
    with pytest.raises(SuiteError, match=words):
        prepare(lab, tmp_path)


def test_a_bridge_is_not_asked(lab: Any) -> None:
    model, folder = lab.quiz
    bridge = dataclasses.replace(model, hooked=SimpleNamespace(), loaded_as="TransformerBridge")
    with pytest.raises(SuiteError, match=r"is loaded as TransformerBridge.*--model_class_name"):
        prepare(lab, folder, model=bridge)


def test_an_sae_on_another_language_model(lab: Any) -> None:
    assert _on(lab.topk.model_name, lab.topk) is lab.topk
    there = _on("gemma-2-2b-it", lab.topk)
    assert there.model_name == "gemma-2-2b-it"
    assert there.hash != lab.topk.hash
    assert there.source == f"{lab.topk.source} on gemma-2-2b-it"
    own = lab.topk.model_name
    assert there.warnings[-1] == f"it was trained on {own}, and is evaluated on gemma-2-2b-it"
    synthetic = dataclasses.replace(lab.topk, model_name="synthetic:small")
    with pytest.raises(SuiteError, match=r"was trained on synthetic:small.*leave out --model_name"):
        _on("gemma-2-2b-it", synthetic)


def test_from_a_command_to_its_results(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = lab.quiz
    data = shutil.copytree(folder, tmp_path / "data")
    monkeypatch.setattr(
        choice, "loader_of", lambda name, *_: language_models.Given(model.hooked, name)
    )
    monkeypatch.setattr(facts, "default_dtype", lambda _: "float32")  # for a faster test
    monkeypatch.chdir(tmp_path)

    def evaluate(name: str | None) -> Any:
        made = Evaluation(
            Request(
                sources=[lab.topk.source], suites={"unlearning": lab.suite("unlearning")},
                seeds=[7], preset="canonical", output_path=tmp_path / "out",
                cache_path=lab.folder / "caches" / "cache", data="data", model_name=name,
            )
        )  # fmt: skip
        made.run(SimpleNamespace(stage=lambda _: None, finished=lambda *_, **__: None))
        return made

    (row,) = evaluate("gemma-2-2b-it").rows
    assert row.status == "ok", row.reason
    result = json.loads((tmp_path / "out" / row.file).read_text())
    score = lab.scores("unlearning", lab.topk).metrics["unlearning_score"].value
    assert result["metrics"]["unlearning_score"]["value"] == score
    assert result["datasets"].keys() == {
        "cais/wmdp#wmdp-bio", "cais/mmlu#human_aging", "cais/wmdp-corpora",
        "Salesforce/wikitext#wikitext-2-raw-v1",
    }  # fmt: skip
    # on its own language model it does not apply, and both have their rows
    both = evaluate(None)
    assert [row.status for row in both.rows] == ["not applicable"]
    assert "whose prompts it knows; this SAE was trained on" in both.rows[0].reason
    assert [row.status for row in both.output.manifest.rows] == ["ok", "not applicable"]
    shutil.rmtree(data / CORPORA)
    (row,) = evaluate("gemma-2-2b-it").rows
    assert row.status == "not applicable"
    assert FORM in str(row.reason)
