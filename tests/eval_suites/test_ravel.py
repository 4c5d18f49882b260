"""RAVEL: what it is asked with, and where it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from language_models import save

from sae_plugins.base.errors import SaePluginsError, SuiteError
from sae_plugins.eval_suites.inputs import file_data
from sae_plugins.eval_suites.inputs.data import RAVEL as DATASET
from sae_plugins.eval_suites.inputs.file_data import FolderData, HubData
from sae_plugins.eval_suites.inputs.world_data import WorldData
from sae_plugins.eval_suites.ravel import RAVEL
from sae_plugins.eval_suites.saebench.ravel import files_of

SUITE = RAVEL()
FILE = files_of("city")[0]


def settings(**given: Any) -> Any:
    return SUITE.settings("canonical", given)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (("city",), "'city' is no ENTITY/ATTRIBUTE, such as city/Country"),
        (("city/Country",), "name two attributes of city at least"),
        (("city/Country", "city/Country"), "name two attributes of city at least, each once"),
        ((), "name two attributes at least"),
    ],
)
def test_attributes_that_do_not_fit(attributes: tuple[str, ...], words: str) -> None:
    with pytest.raises(SaePluginsError, match=f"--ravel.attributes.*{words}"):
        settings(attributes=attributes)


def test_where_the_data_must_lie(tmp_path: Path) -> None:
    data = FolderData(tmp_path)
    lack = SUITE.lack(settings(), data)
    assert lack is not None
    assert lack.startswith(f"needs {tmp_path / DATASET / FILE}, which is not there: download")
    for entity in ("city", "nobel_prize_winner"):
        for name in files_of(entity):
            (tmp_path / DATASET).mkdir(parents=True, exist_ok=True)
            (tmp_path / DATASET / name).write_text(f'{{"of": "{entity}"}}')
    assert SUITE.lack(settings(), data) is None
    assert json.loads(data.file(DATASET, FILE)) == {"of": "city"}
    before = data.fingerprint(DATASET)
    (tmp_path / DATASET / FILE).write_text("{}")
    assert FolderData(tmp_path).fingerprint(DATASET) != before
    with pytest.raises(SuiteError, match=r"needs .*other"):
        data.file(DATASET, "other.json")


def test_the_embedded_world_knows_no_facts() -> None:
    lack = SUITE.lack(settings(), WorldData())
    assert lack is not None
    assert f"FOLDER/{DATASET}/{FILE}" in lack
    with pytest.raises(SuiteError, match="no stand-in"):
        WorldData().file(DATASET, FILE)


def test_the_hub_is_read_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repo: str, name: str, *, repo_type: str, revision: str) -> str:
        asked.append((repo, name, repo_type, revision))
        (tmp_path / "file").write_text("{}")
        return str(tmp_path / "file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(file_data, "commit_of", lambda *_: "c0ffee")
    data = HubData()
    assert SUITE.lack(settings(), data) is None
    assert data.file(DATASET, FILE) == "{}"
    assert asked == [(DATASET, FILE, "dataset", "c0ffee")]
    assert data.fingerprint(DATASET) == data.revisions[DATASET] == "c0ffee"
    assert HubData({DATASET: "older"}).fingerprint(DATASET) == "older"
    monkeypatch.setattr(file_data, "commit_of", lambda *_: None)
    with pytest.raises(SuiteError, match=f"{DATASET} cannot be read from the Hub"):
        HubData().file(DATASET, FILE)


def test_other_hooks_do_not_apply() -> None:
    subject: Any = SimpleNamespace(
        hook_layer=1, hook_name="blocks.1.hook_resid_pre", hook_head_index=None
    )
    assert "hook_resid_pre" in str(SUITE.refusal(subject))


@pytest.mark.ci
def test_what_the_model_knows_is_asked_once(lab: Any, tmp_path: Path) -> None:
    scores = lab.scores("ravel", lab.topk)
    assert [*scores.details] == ["word/First letter", "word/Sequel"]
    assert any("begin with one token" in text for text in scores.warnings)
    from sae_plugins.eval_suites.saebench import ravel

    suite, of_it = lab.suite("ravel")

    def never(*_: Any) -> Any:
        raise AssertionError("it was asked before")

    own = ravel._answered
    try:
        ravel._answered = never
        suite.prepare(lab.bench(data=lab.data_of("ravel")), of_it, 7)
    finally:
        ravel._answered = own


@pytest.mark.ci
def test_a_model_that_knows_too_little(lab: Any) -> None:
    folder = lab.folder / "ignorant"
    place = folder / DATASET
    place.mkdir(parents=True)
    for name in files_of("word"):
        text = (lab.questions / DATASET / name).read_text()
        if "entity_attributes" in name:
            known = json.loads(text)
            text = json.dumps({word: {**row, "Sequel": "zzz"} for word, row in known.items()})
        (place / name).write_text(text)
    bench = dataclasses.replace(lab.bench("ignorant"), data=FolderData(folder))
    with pytest.raises(SuiteError, match="of word/Sequel it gives 0 right answers that differ"):
        lab.evaluate("ravel", lab.topk, bench)


@pytest.mark.ci
def test_too_few_pairs(lab: Any) -> None:
    with pytest.raises(SuiteError, match="too few pairs to test"):
        lab.evaluate("ravel", lab.topk, num_pairs_per_attribute=4)


@pytest.mark.ci
def test_transformers_own_models(lab: Any, tmp_path: Path) -> None:
    from sae_plugins.eval_suites.saebench.ravel import _loaded

    def bench(kind: str) -> Any:
        name = str(save(tmp_path / kind, kind))
        model = SimpleNamespace(name=name, device="cpu", dtype="bfloat16")
        return SimpleNamespace(model=model)

    with pytest.raises(SuiteError, match=r"is a LlamaForCausalLM, and SAEBench's ravel"):
        _loaded(bench("Llama"))
    with pytest.raises(SuiteError, match=r"Gemma2 adds no token at the beginning"):
        _loaded(bench("Gemma2"))
    model, tokenizer = _loaded(lab.bench())
    assert type(model).__name__ == "Gemma2ForCausalLM"
    assert tokenizer.bos_token_id == tokenizer.encode("a")[0]
    with pytest.raises(SuiteError, match=r"language model .*nowhere"):
        _loaded(
            SimpleNamespace(model=SimpleNamespace(name="./nowhere", device="cpu", dtype="float32"))
        )
