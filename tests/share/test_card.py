"""The model card: what it says, what it keeps of people's words, and what it must never show."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown import markdown

from sae_plugins.base.errors import PluginError
from sae_plugins.eval_suites.evaluation.results import ModelInfo, Result, SAEInfo
from sae_plugins.eval_suites.suite import Value
from sae_plugins.share.card import card
from sae_plugins.share.facts import facts_of
from sae_plugins.testing import train

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GEMMA = {"model_name": "gemma-2-2b", "hook_name": "blocks.19.hook_resid_post"}
PILE = "monology/pile-uncopyrighted"


def folder(
    path: Path,
    *,
    options: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    **place: Any,
) -> Path:
    """The folder of a run, its weights left out; without `recipe`, one that SAELens saved."""
    (path / "figures").mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"sae_lens_version": "6.54.12", **place}
    if options is not None:
        reorder = {"name": "reorder", "package": "sae-plugins", "version": "0.1.0"}
        jitter = {"name": "jitter", "package": "sae-jitter", "version": "0.3", "options": {}}
        plugins = [{**reorder, "options": options}, jitter]
        metadata["sae_plugins"] = {"methods": ["hybrid-order"], "plugins": plugins}
    sae = {"architecture": "standard", "d_in": 2304, "d_sae": 16384, "metadata": metadata}
    (path / "cfg.json").write_text(json.dumps(sae))
    if recipe is not None:
        (path / "run.yaml").write_text(yaml.safe_dump(recipe))
        (path / "figures" / "loss_and_l0.png").touch()
        summary = {"heldout/l0": 61.3, "heldout/explained_variance": 0.71, "training/tokens": 4096}
        summary |= {"training/b_dec_off_mean_at_start": 1.0, "training/b_dec_off_mean": 0.98765}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def gemma(path: Path, **place: Any) -> Path:
    recipe = {"seed": 7, "versions": {"sae-plugins": "0.1.0"}, "lr": 3e-4}
    return folder(
        path, options={"interval": 250}, recipe=recipe, **GEMMA, dataset_path=PILE, **place
    )


def result(suite: str = "core", seed: int = 42, **metrics: float) -> Result:
    sae = SAEInfo(
        name="sae", source="/home/jane/sae", hash="0", architecture="standard",
        d_in=2304, d_sae=16384, hook_name=GEMMA["hook_name"],
    )  # fmt: skip
    return Result(
        suite=suite, status="ok", sae=sae, model=ModelInfo(name="gemma-2-2b", hash="0", dtype="f"),
        datasets={"Skylion007/openwebtext": COMMIT}, seed=seed, preset="quick",
        metrics={name: Value(value=value) for name, value in metrics.items()},
        versions={"sae-bench": "0.6.0"},
    )  # fmt: skip


def results() -> list[Result]:
    scores = ((42, 0.91), (43, 0.93))
    return [result(seed=seed, ce_loss_score=score, l0=61.0) for seed, score in scores]


def metadata(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def test_a_run_on_a_real_model(tmp_path: Path):
    text = card(facts_of("l19/sae", gemma(tmp_path), results()), None, "jane/saes")
    assert metadata(text) | {"model-index": None} == {
        "library_name": "saelens",
        "license": "gemma",
        "base_model": ["google/gemma-2-2b"],
        "datasets": [PILE],
        "tags": ["saelens", "sparse-autoencoder", "sae-plugins", "hybrid-order"],
        "model-index": None,
    }
    for words in (
        'SAE.from_pretrained("jane/saes", "l19/sae")',
        "sae-plugins evaluate jane/saes:l19/sae",
        "sae-plugins train --recipe l19/sae/run.yaml",
        "where sae-plugins and sae-jitter are installed:",
        "| `jitter` | sae-jitter 0.3 | not known where this was written | none |",
        "![loss and l0](l19/sae/figures/loss_and_l0.png)",
        "About 61.3 of them are active per token",
        "||b_dec - mean|| / ||mean||, of the mean of the first batch: 1 at the start, 0.988 at the",
        "`interval=250`", "4,096 tokens", "Seed: 7", "loss recovered ↑", "0.9200 ± 0.014",
        "mean ± sd of 2 seeds: 42, 43", "sae-bench 0.6.0", "Skylion007/openwebtext",
    ):  # fmt: skip
        assert words in text


def test_the_code_of_a_recipe_may_be_called_as_people_call_files(tmp_path: Path):
    found = folder(
        tmp_path, recipe={"seed": 7, "plugin": ["plugin_files/my id\u00e9a.py:Id\u00e9a"]}
    )
    (found / "plugin_files").mkdir()
    (found / "plugin_files" / "my id\u00e9a.py").touch()
    text = card(facts_of("sae", found, []), None, "jane/saes")
    assert "sae/run.yaml 'sae/plugin_files/my id\u00e9a.py' --local-dir" in text
    assert "--plugin 'sae/plugin_files/my id\u00e9a.py:Id\u00e9a' --output_path again\n" in text


@pytest.mark.parametrize("name", ["plugin_files/a.py:B\n```\n<b>", "../`x`/a.py:B"])
def test_the_code_of_a_recipe_is_named_only_if_its_name_is_one(name: str, tmp_path: Path):
    recipe = {"seed": 7, "plugin": ["reorder", "plugin_files/idea.py:Idea"]}
    found = folder(tmp_path, recipe=recipe)
    (found / "plugin_files").mkdir()
    (found / "plugin_files" / "idea.py").touch()
    text = card(facts_of("sae", found, []), None, "jane/saes")
    again = "sae/run.yaml --plugin reorder sae/plugin_files/idea.py:Idea --output_path again"
    assert f"sae-plugins train --recipe {again}\n" in text
    (found / "run.yaml").write_text(yaml.safe_dump({**recipe, "plugin": ["reorder", name]}))
    text = card(facts_of("sae", found, []), None, "jane/saes")
    assert "--plugin" not in text
    assert "a.py:B" not in text


def test_the_hub_reads_the_results(tmp_path: Path):
    odd = 'a "b": {c} | # \u00e9 %'
    scores = [*results(), result("somebody's", **{odd: 0.5})]
    text = card(facts_of("sae", gemma(tmp_path), scores), None, "jane/saes")
    data = ModelCard(text).data
    loss, l0, other = data.eval_results
    assert (loss.metric_type, loss.metric_name) == ("ce_loss_score", "loss recovered")
    assert loss.metric_value == 0.92
    assert loss.metric_args == {"seeds": [42, 43], "sd": 0.0141421, "sae-bench": "0.6.0"}
    assert (loss.dataset_type, loss.dataset_revision) == ("Skylion007/openwebtext", COMMIT)
    assert (l0.metric_type, other.metric_type) == ("l0", odd)
    index = metadata(text)["model-index"]
    assert index == eval_results_to_model_index(*model_index_to_eval_results(index))
    assert index[0]["name"] == "sae"


def test_other_settings_are_not_averaged(tmp_path: Path):
    other = result(seed=43, ce_loss_score=0.5).model_copy(update={"settings": {"context_size": 64}})
    first, again = result(ce_loss_score=0.9), result(ce_loss_score=0.1)
    found = facts_of("sae", gemma(tmp_path), [first, other, again]).evaluations
    settings = {"preset quick", "preset quick, context_size 64"}
    assert {evaluation.settings for evaluation in found} == settings
    assert [len(evaluation.results) for evaluation in found] == [1, 1]


@pytest.mark.parametrize(
    "differs",
    [{"versions": {"sae-bench": "0.7.0"}}, {"datasets": {"Skylion007/openwebtext": "a copy"}},
     {"model": ModelInfo(name="gemma-2-2b", hash="1", dtype="f")}, {"preset": "paper"}],
)  # fmt: skip
def test_what_does_not_compare_is_not_averaged(differs: dict[str, Any], tmp_path: Path):
    scores = [result(ce_loss_score=0.9, l0=61), result(seed=43, ce_loss_score=0.5, l0=30)]
    scores[1] = scores[1].model_copy(update=differs)
    facts = facts_of("sae", gemma(tmp_path), scores)
    assert sorted(r.seed for one in facts.evaluations for r in one.results) == [42, 43]
    assert [len(one.results) for one in facts.evaluations] == [1, 1]
    assert facts_of("sae", folder(tmp_path / "unknown"), scores).l0 in (61, 30)
    assert "mean ± sd" not in card(facts, None, "jane/saes")


def test_what_is_undefined_is_left_out(tmp_path: Path):
    nan = result(ce_loss_score=float("nan"), l0=3.0)
    other = result(seed=43, l0=4.0, kl_div_score=0.5)
    text = card(facts_of("sae", gemma(tmp_path), [nan, other], ["scr"]), None, "jane/saes")
    found = {score.metric_type: score.metric_args for score in ModelCard(text).data.eval_results}
    assert found.keys() == {"l0", "kl_div_score"}
    assert (found["l0"]["seeds"], found["kl_div_score"]["seeds"]) == ([42, 43], [43])
    assert "nan" not in text.lower()
    assert "Failed, with some seed at least: scr." in text


@pytest.mark.parametrize("model", ["sae-plugins-world", "synthetic:toy", "/home/jane/my-model"])
def test_what_is_no_model_of_the_hub_is_not_called_one(model: str, tmp_path: Path):
    run = folder(tmp_path, model_name=model, dataset_path="")
    text = card(facts_of("sae", run, []), None, "jane/saes")
    assert not {"base_model", "datasets", "license", "model-index"} & metadata(text).keys()


def test_the_embedded_world_is_called_what_it_is(tmp_path: Path):
    score = result(ce_loss_score=0.9)
    score = score.model_copy(
        update={"model": ModelInfo(name="sae-plugins-world", hash="", dtype="")}
    )
    run = folder(tmp_path, model_name="sae-plugins-world", dataset_path="")
    text = card(facts_of("sae", run, [score]), None, "jane/saes")
    assert "No real model" in text
    (shown,) = ModelCard(text).data.eval_results
    assert shown.dataset_name == "core: the embedded world's own texts"
    assert "openwebtext" not in text


def test_an_sae_of_plain_saelens_says_what_is_not_known(tmp_path: Path):
    text = card(facts_of("sae", folder(tmp_path), []), None, "jane/saes")
    for words in ("texts that its config does not name", "an unknown number of", "Seed: unknown",
                  "There is no recipe", "has not been evaluated"):  # fmt: skip
        assert words in text
    assert "None" not in text


def test_what_training_really_writes_is_understood(tmp_path: Path):
    trainer = train("reorder", steps=4, options={"reorder": {"interval": 3}})
    trainer.sae.save_inference_model(tmp_path)
    facts = facts_of("sae", tmp_path, [])
    assert [(m.name, m.options["interval"]) for m in facts.mechanisms] == [("reorder", 3)]
    assert facts.training["accumulate"] == 1
    assert (facts.d_in, facts.d_sae) == (8, 24)


def test_a_calibrated_threshold_is_named(tmp_path: Path):
    details = {"training_architecture_details": {"k": 4}}
    for calibrated in (True, False):
        training = {"training": {"calibrate_threshold": calibrated}, "plugins": [], "methods": []}
        sae = folder(tmp_path / str(calibrated), **GEMMA, **details, sae_plugins=training)
        text = card(facts_of("sae", sae, []), None, "jane/saes")
        sentence = (
            "calibrated when training ended: on the activations that came next, k = 4 features"
        )
        assert (sentence in " ".join(text.split())) is calibrated


@pytest.mark.parametrize("name", ["cfg.json", "summary.json", "run.yaml"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path):
    (gemma(tmp_path) / name).write_text("[1")
    with pytest.raises(PluginError, match=name):
        facts_of("sae", tmp_path, [])


# -- the card that is there ---------------------------------------------------------------------

EDITED = """\
---
# our lab's models
license: mit   # agreed with Joe
tags: [our-lab, saelens]
widget:
  - text: hello
---
# Our SAEs

Read this first.\x20\x20
"""


def test_people_s_words_stay(tmp_path: Path):
    facts = facts_of("sae", gemma(tmp_path), results())
    text = card(facts, EDITED, "jane/saes")
    front, body = text.split("\n---\n", 1)
    assert front.startswith("---\n# our lab's models\nlicense: mit   # agreed with Joe\n")
    assert "widget:\n  - text: hello\n" in front
    assert body.startswith("# Our SAEs\n\nRead this first.  \n\n<!-- sae-plugins: begin sae -->")
    assert metadata(text)["tags"] == [
        "our-lab", "saelens", "sparse-autoencoder", "sae-plugins", "hybrid-order"
    ]  # fmt: skip
    assert card(facts, text, "jane/saes") == text


def test_only_the_own_section_changes(tmp_path: Path):
    first = facts_of("a", gemma(tmp_path / "a"), results())
    second = facts_of("a/b", gemma(tmp_path / "b"), results())
    text = card(second, card(first, None, "jane/saes"), "jane/saes")
    text = text.replace(
        "<!-- sae-plugins: begin a/b", "Words between.\n\n<!-- sae-plugins: begin a/b"
    )
    text += "\nWords at the end.\n"
    third = facts_of("a", tmp_path / "a", [result(ce_loss_score=0.5)])
    new = card(third, text, "jane/saes")
    assert [row["name"] for row in yaml.safe_load(new.split("---")[1])["model-index"]] == [
        "a",
        "a/b",
    ]
    assert "0.5000" in new
    cut = "<!-- sae-plugins: end a -->"
    assert new.split(cut)[1] == text.split(cut)[1]
    assert card(first, new, "jane/saes") == text


def test_new_results_leave_the_rest_of_a_section_as_people_have_it(tmp_path: Path):
    facts = facts_of("sae", gemma(tmp_path), results())
    ours, theirs = "Nobody has said what the features mean", "Jane has said what they mean"
    text = card(facts, None, "jane/saes")
    edited = text.replace(ours, theirs)
    new = facts_of("sae", tmp_path, [result(ce_loss_score=0.5)])
    again = card(new, edited, "jane/saes", results_only=True)
    assert "0.5000" in again
    assert "0.9200" not in again
    for part in (0, 2):  # before and after the results
        before, after = (re.split("<!-- .*results-.* -->", x)[part] for x in (edited, again))
        assert before.split("---")[-1] == after.split("---")[-1]
    assert card(facts, again, "jane/saes", results_only=True) == edited
    assert card(facts, again, "jane/saes") == text
    bare = "\n".join(line for line in edited.splitlines() if "results-" not in line)
    assert "0.5000" in card(new, bare, "jane/saes", results_only=True)


def test_a_card_on_another_branch_speaks_of_that(tmp_path: Path):
    text = card(facts_of("sae", gemma(tmp_path), []), None, "jane/saes", "v2")
    assert 'snapshot_download("jane/saes", revision="v2")' in text
    assert text.count("--revision v2") == 2
    for of_main in ("from_pretrained", "selected_saes", "jane/saes:sae"):
        assert of_main not in text


def test_results_that_are_gone_leave_the_metadata(tmp_path: Path):
    text = card(facts_of("sae", gemma(tmp_path), results()), None, "jane/saes")
    assert "model-index" not in metadata(card(facts_of("sae", tmp_path, []), text, "jane/saes"))


@pytest.mark.parametrize("word", ["begin", "end"])
def test_a_deleted_marker_costs_no_words(word: str, tmp_path: Path):
    facts = facts_of("sae", gemma(tmp_path), [])
    text = card(facts, None, "jane/saes") + "\nPeople's own words.\n"
    damaged = text.replace(f"<!-- sae-plugins: {word} sae -->", "")
    new = card(facts, damaged, "jane/saes")
    kept = [line for line in damaged.splitlines() if not line.startswith("<!-- sae-plugins")]
    assert [line for line in kept if line not in new.splitlines()] == []
    assert new.count("People's own words.") == 1
    assert new.index("People's own words.") < new.index("<!-- sae-plugins: begin sae -->")
    assert card(facts, new, "jane/saes") == new


@pytest.mark.parametrize(
    "previous",
    ["", "\n", "no metadata\n", "no newline at the end", "---\n{license: mit, tags: a}\n---\nx\n",
     "---\ntags: &x\n- a\nother: *x\n---\n\nwords", "---\r\nlicense: mit\r\n---\r\n\r\nwords\r\n",
     "---\nlicense: mit\ntags:\n- a\n\n# the end\n---\n"],
)  # fmt: skip
def test_any_card_is_completed_once(previous: str, tmp_path: Path):
    facts = facts_of("sae", gemma(tmp_path), results())
    text = card(facts, previous, "jane/saes")
    assert card(facts, text, "jane/saes") == text
    data = metadata(text)
    assert "saelens" in data["tags"]
    assert data["model-index"]
    assert ("a" in data["tags"]) == ("tags" in previous)
    assert data.get("license") == (
        "mit" if "mit" in previous else None if "tags" in previous else "gemma"
    )
    assert "words" not in previous or "words" in text
    assert "# the end" not in previous or "# the end" in text
    assert ("\r" in previous) == ("\r" in text)
    assert not re.search("(?<!\r)\n", text) or "\r" not in previous


@pytest.mark.parametrize("block", ["a: [1", "- a", "model-index: 3"])
def test_metadata_that_nobody_can_read_are_refused(block: str, tmp_path: Path):
    with pytest.raises(PluginError, match=r"metadata at the top of README\.md in jane/saes"):
        card(facts_of("sae", gemma(tmp_path), []), f"---\n{block}\n---\n", "jane/saes")


# -- what must not be shown ---------------------------------------------------------------------


def test_no_path_and_no_token_is_shown(tmp_path: Path):
    run = folder(
        tmp_path / "tell-tale",
        options={"file": "/home/jane doe/secrets/list.txt", "other": r"C:\Users\jane\x.txt",
                 "many": ["/home/jane/a.txt"], "key": "hf_abcdefghij"},
        recipe={"seed": 1, "dataset_path": "/home/jane/texts", "output_path": str(tmp_path)},
        model_name="/home/jane/models/mine",
        hook_name="blocks.0",
        dataset_path="/home/jane/texts",
    )  # fmt: skip
    note = (
        f"read from {tmp_path}/tell-tale/data, file:///home/jane/b and ~/jane/c: error / variance"
    )
    score = result(ce_loss_score=0.9).model_copy(
        update={"warnings": [note], "settings": {"dataset": "/home/jane/d"},
                "datasets": {"/home/jane/d": COMMIT}}
    )  # fmt: skip
    text = card(facts_of("sae", run, [score]), None, "me/saes")
    for told in ("jane", "tell-tale", "home", "Users", "secrets", "abcdefghij", str(tmp_path)):
        assert told not in text
    for kept in ("list.txt", "x.txt", "a.txt", "mine", "error / variance"):
        assert kept in text


def test_no_words_break_out_of_their_place(tmp_path: Path):
    evil = "a | b\n\n# c <script>alert(1)</script> [d](http://e) `f` <!-- sae-plugins: end sae -->"
    run = folder(tmp_path, options={evil: evil}, recipe={"seed": 1, "versions": {evil: evil}})
    config = json.loads((run / "cfg.json").read_text())
    config["metadata"] |= {"model_name": evil, "hook_name": evil, "dataset_path": evil}
    (run / "cfg.json").write_text(json.dumps(config))
    score = result("somebody's", **{evil: 0.5}).model_copy(update={"warnings": [evil]})
    facts = facts_of("sae", run, [score])
    text = card(facts, None, "jane/saes")
    assert card(facts, text, "jane/saes") == text
    assert ModelCard(text).text.count("<!-- sae-plugins:") == 4
    html = markdown(ModelCard(text).text, extensions=["tables", "fenced_code"])
    assert "<script" not in html
    assert 'href="http://e"' not in html
    assert html.count("<h1>") == 1
    for table in re.findall("<table>.*?</table>", html, re.S):
        columns = table.count("</th>")
        assert all(
            row.count("<td") in (0, columns) for row in re.findall("<tr>.*?</tr>", table, re.S)
        )
