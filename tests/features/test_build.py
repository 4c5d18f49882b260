"""`build`: from two runs to pages, whose data are those of a naive loop over the same text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from sae_plugins import world
from sae_plugins.base.errors import PluginError, SaePluginsError, SuiteError
from sae_plugins.base.files import read_rows
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.inputs.models import Expected, load_language_model
from sae_plugins.features import build as module
from sae_plugins.features.build import Request, build, check_together
from sae_plugins.features.result import FeaturePages
from sae_plugins.features.shards import INDEX, read
from sae_plugins.features.text import prompts_of
from sae_plugins.features.vocabulary import Vocabulary
from sae_plugins.runs.folder import METRICS_BY_FEATURE


@pytest.fixture(scope="module")
def naive(runs: list[Path], pages: FeaturePages) -> dict[str, Any]:
    """All activations of the first SAE, by plain TransformerLens and SAELens."""
    model = world.load_hooked_transformer()
    subject = load_subject(str(runs[0]))
    text = prompts_of(subject, load_language_model(world.NAME, "cpu", "float32"), {})
    tokens = torch.cat([*text.batches(16, 5)])
    sae = SAE.load_from_disk(runs[0])
    sae.fold_W_dec_norm()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter="blocks.1.hook_resid_post")
        acts = sae.encode(cache["blocks.1.hook_resid_post"])
    special = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id,
               model.tokenizer.pad_token_id}  # fmt: skip
    counts = torch.tensor([[int(t) not in special for t in row] for row in tokens])
    return {
        "tokens": tokens,
        "acts": (acts * counts[..., None]).numpy(),
        "counted": int(counts.sum()),
        "words": Vocabulary(model.tokenizer),
        "model": model,
        "W_dec": sae.W_dec.detach(),
    }


def test_the_list_has_what_a_naive_loop_finds(pages: FeaturePages, naive: dict[str, Any]) -> None:
    about = pages.index["saes"][0]
    flat = naive["acts"].reshape(-1, 96)
    assert pages.index["counted"] == naive["counted"] < pages.index["read"] == 2048
    assert about["count"] == (flat > 0).sum(axis=0).tolist()
    assert about["largest"] == pytest.approx(flat.max(axis=0), rel=5e-3)


def test_a_feature_shows_the_text_at_which_it_fires(
    pages: FeaturePages, naive: dict[str, Any]
) -> None:
    tokens, alive = naive["tokens"].numpy(), np.array(pages.index["saes"][0]["count"]) > 20
    for number in alive.nonzero()[0][::5].tolist():
        feature, acts = pages.feature(number), naive["acts"][..., number]
        peaks = []
        for each, (peak, _, _) in zip(feature.examples(), feature.data["top"], strict=True):
            words, values = zip(*each, strict=True)
            peaks.append(each[peak])
            places = np.argwhere(np.isclose(acts, values[peak], rtol=6e-3)).tolist()
            spans = [(p, slice(t - peak, t - peak + len(each))) for p, t in places if t >= peak]
            assert any(
                values == pytest.approx(acts[p, span].tolist(), rel=6e-3, abs=1e-4)
                and [*words] == [*map(naive["words"].text, tokens[p, span].tolist())]
                for p, span in spans
                if len(acts[p, span]) == len(each)
            )
        shown = [value for _, value in peaks]
        assert shown == sorted(shown, reverse=True)
        assert shown[0] == pytest.approx(acts.max(), rel=5e-3)
        common = Counter(word for word, _ in peaks)
        assert common[feature.tops[0]] == max(common.values())


def test_promoted_tokens_are_those_of_the_direct_path(
    pages: FeaturePages, naive: dict[str, Any]
) -> None:
    model, number = naive["model"], 5
    residual = torch.zeros(2, 1, 192)
    residual[0, 0] = torch.randn(192) * 1000  # of a length that the feature does not change
    residual[1] = residual[0] + naive["W_dec"][number]
    with torch.no_grad():
        length = residual[0].square().mean().sqrt()
        logits = model.ln_final(residual) * length @ model.W_U
    change = (logits[1] - logits[0])[0]
    change = change - change.mean()
    feature = pages.feature(number)
    promoted = [(feature.words[i], value) for i, value in feature.data["up"]]
    assert [v for _, v in promoted] == pytest.approx(change.topk(8).values.tolist(), abs=0.05)
    assert promoted[0][0] in [naive["words"].text(int(i)) for i in change.topk(3).indices]
    assert pages.index["saes"][0]["readout"] == "W_dec · scale of the final norm · W_U"


def test_twins_are_the_same_from_both_sides(pages: FeaturePages) -> None:
    first, second = pages.index["saes"]
    assert 0 <= first["twins"] <= 1
    for number in (0, 30):
        twin, cosine, *_ = pages.feature(number).data["twin"]
        assert first["twin"][number] == pytest.approx(100 * cosine, abs=1)
        assert second["twin"][twin] >= first["twin"][number] - 1  # it may have a nearer one


def test_what_happened_to_features_is_said(pages: FeaturePages, runs: list[Path]) -> None:
    ordered, merged = pages.index["saes"]
    assert ordered["history"] == ["The features were reordered 3 times, from step 8 to 24."]
    assert ordered["order"]["correlation"] < -0.1
    moved = {row["feature"]: row["place"] for row in read_rows(runs[0] / METRICS_BY_FEATURE)}
    assert len(moved) > 48
    for number in range(0, 96, 9):
        past = pages.feature(number).data.get("past", {"place": number})
        assert past["place"] == moved.get(number, number)
    assert ordered["started"] is None
    said = " ".join(merged["history"])
    assert "merged into others" in said
    assert "started again" in said
    assert merged["order"] is None
    rows = {row.pop("feature"): row for row in read_rows(runs[1] / METRICS_BY_FEATURE)}
    assert merged["started"] == [rows.get(i, {}).get("started", 0) for i in range(96)]
    assert sum(merged["merges"]) > 0
    for number, row in [*rows.items()][:9]:
        past = pages.feature(number, 1).data["past"]
        assert past | row == past
        if "into" in row:  # of two that were merged, each names the other
            assert rows[row["into"]]["took_at"] >= row["into_at"]


@pytest.mark.ci  # the Hub's client takes seconds
def test_an_sae_of_the_hub_tells_what_its_run_does(
    runs: list[Path], pages: FeaturePages, tmp_path: Path, loopback_hub: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loopback_hub.here(monkeypatch, None)
    loopback_hub.add("someone/saes", runs[0].parent, "models")
    found = build(Request(["someone/saes:merged"], tmp_path / "out", tokens=256))
    about = found.index["saes"][0]
    assert about["name"] == "someone-saes-merged"
    here = pages.index["saes"][1]
    for what in ("history", "started", "merges", "facts"):
        assert about[what] == here[what]


def test_nothing_but_ascii_is_written(pages: FeaturePages) -> None:
    scripts = [*(pages.path / "data").glob("*.js")]
    assert len(scripts) == 5
    for file in scripts:
        assert "<" not in file.read_text("ascii")


def test_it_is_there_whole_or_not_at_all(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: FeaturePages
) -> None:
    """The disk fills while a shard is written; a folder that was there stays."""
    out = tmp_path / "out"
    small = Request([str(runs[0])], out, tokens=256)
    build(small)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(SaePluginsError, match=r"holds feature pages already; add --overwrite"):
        build(small)
    written = Path.write_text

    def full(path: Path, text: str, *args: Any) -> int:
        if path.name == "0-0001.js":
            raise OSError(28, "No space left on device")
        return written(path, text, *args)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaePluginsError, match=r"could not be written .* no space left on device"):
        build(Request([str(runs[0])], out, tokens=512, overwrite=True))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_short_text_is_used_and_said(runs: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(
        "\n".join(json.dumps({"text": f"The lawyer number {i} won."}) for i in range(90))
    )
    found = build(Request([str(runs[0])], tmp_path / "out", 10_000, {"dataset_path": str(text)}))
    assert found.index["read"] % 128 == 0
    assert found.index["notes"] == [
        f"The text ended after {found.index['read']} tokens in whole prompts, before the 10,000 "
        "asked for."
    ]
    assert found.index["text"] == text.name  # and no folder of this machine
    text.write_text('{"text": "short"}\n')
    with pytest.raises(SuiteError, match="shorter than one prompt of 128 tokens"):
        build(Request([str(runs[0])], tmp_path / "no", 10_000, {"dataset_path": str(text)}))
    with pytest.raises(PluginError, match="there is no such file or folder"):
        build(Request([str(runs[0])], tmp_path / "no", 9, {"dataset_path": "/no/such.jsonl"}))
    assert not (tmp_path / "no").exists()
    assert not [*tmp_path.glob("*.partial")]


def changed(run: Path, folder: Path, **metadata: Any) -> str:
    """A copy of a run with another config."""
    folder.mkdir()
    for file in run.glob("*.safetensors"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((run / "cfg.json").read_text())
    config["metadata"] |= metadata
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model_name": "gpt2"}, "has the language model gpt2, and .* has sae-plugins-world"),
        ({"hook_name": "blocks.0.hook_resid_post"}, "has the hook blocks.0.hook_resid_post, and"),
        ({"hook_head_index": 1}, "has the head 1, and .* has None"),
        ({}, "is the same SAE as .*; leave it out"),
        ({"model_name": "synthetic:toy"}, "trained on synthetic:toy, which has no text"),
    ],
)
def test_saes_that_do_not_belong_together_are_refused(
    runs: list[Path], tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    other = changed(runs[0], tmp_path / "other", **metadata)
    with pytest.raises(SuiteError, match=message):
        check_together([load_subject(str(runs[0])), load_subject(other)])


def test_what_no_page_can_show_is_refused_in_its_own_words(
    runs: list[Path], tmp_path: Path
) -> None:
    sae = changed(runs[0], tmp_path / "sae", hook_name_out="blocks.1.hook_mlp_out")
    with pytest.raises(SuiteError, match="a feature page would show its decoder rows") as caught:
        build(Request([sae], tmp_path / "out"))
    assert "SAEBench" not in str(caught.value)
    gone = changed(runs[0], tmp_path / "gone", dataset_path="./gone.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Expected, "load", None)  # it is said before
        with pytest.raises(SuiteError, match="name another text"):
            build(Request([gone], tmp_path / "out"))


def test_a_page_says_what_an_sae_was_trained_as_and_counts_its_silent_features(
    pages: FeaturePages, runs: list[Path], tmp_path: Path
) -> None:
    about = pages.index["saes"][0]
    assert dict(about["facts"])["architecture"] == "standard"
    ((name, said),) = about["silent"]
    assert name == "training/dead_features"
    assert said.startswith("not known yet since a feature is dead after 200 silent steps, and the ")
    sae = load_subject(changed(runs[0], tmp_path / "sae", training_architecture="batchtopk"))
    assert dict(module._facts(sae))["architecture"] == "standard, trained as batchtopk"


def test_a_model_that_cannot_be_loaded_is_said(runs: list[Path], tmp_path: Path) -> None:
    sae = changed(runs[0], tmp_path / "sae", model_name="/no/such/model")
    with pytest.raises(SuiteError, match="there is no folder /no/such/model"):
        build(Request([sae], tmp_path / "out"))
    wrong = changed(runs[0], tmp_path / "wrong", hook_name="blocks.9.hook_resid_post")
    with pytest.raises(SuiteError, match=r"has no hook 'blocks.9.hook_resid_post'"):
        build(Request([wrong], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_notebook_shows_a_few_features(pages: FeaturePages) -> None:
    shown = pages._repr_html_()
    assert str(pages.page) in shown
    assert shown.count("<tr>") == 8
    alive = next(i for i, count in enumerate(pages.index["saes"][0]["count"]) if count)
    one = pages.feature(alive)
    assert "background:rgba" in one._repr_html_()
    one.words[:] = ["<b>&"] * len(one.words)
    assert "<b>&" not in one._repr_html_()
    with pytest.raises(IndexError, match="features 0 to 95"):
        pages.feature(96)


def test_files_of_others_are_no_pages(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / INDEX).write_text("alert(1)")
    with pytest.raises(SaePluginsError, match="holds no feature pages"):
        read(tmp_path / INDEX)


def test_all_files_of_the_page_are_there() -> None:
    folder = Path(module.__file__).parent
    assert all((folder / name).is_file() for name in module.PAGE)
