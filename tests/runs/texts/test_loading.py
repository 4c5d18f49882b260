"""What `--dataset_path` may be: a file, a folder, what `save_to_disk` wrote, a name on the Hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from datasets_of_people import settings, write_rows
from hub import LoopbackHub

from sae_plugins.base.errors import PluginError
from sae_plugins.runs.texts.columns import read_rows
from sae_plugins.runs.texts.loading import load_rows, reason

TEXTS = ["one two", "three", "four five six"]
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts(path: Any, **runner: Any) -> list[str]:
    return [row["text"] for row in read_rows(load_rows(settings(path, **runner)), str(path))]


def refused(path: Any, **runner: Any) -> str:
    with pytest.raises(PluginError) as error:
        texts(path, **runner)
    return str(error.value)


def write(kind: str, path: Path) -> None:
    """A file of one kind, with the texts."""
    rows = Dataset.from_list(ROWS)
    if kind == "txt":
        path.write_text("\ufeff" + "\n".join(TEXTS) + "\n", "utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "tsv":
        rows.to_csv(path, sep="\t", index=False)
    elif kind in ("csv", "parquet"):
        getattr(rows, f"to_{kind}")(str(path))
    else:
        write_rows(ROWS, str(path))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "txt", "csv", "tsv", "parquet"])
def test_one_file_and_a_folder_of_such_are_datasets(kind: str, streaming: bool) -> None:
    Path("a folder").mkdir()
    file = Path("a folder", f"my [best] text.{kind}")
    write(kind, file)
    assert texts(file, streaming=streaming) == TEXTS
    Path("data").mkdir()
    file.rename(f"data/train.{kind}")
    Path("data", "sae_lens.json").write_text("{}")
    assert texts("data", streaming=streaming) == TEXTS


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_files_may_be_compressed(suffix: str, streaming: bool) -> None:
    content = write_rows(ROWS).read_bytes()
    if suffix == "zst":
        import zstandard

        packed = zstandard.compress(content)
    else:
        packed = {"gz": gzip, "bz2": bz2, "xz": lzma}[suffix].compress(content)
    Path(f"data.jsonl.{suffix}").write_bytes(packed)
    assert texts(f"data.jsonl.{suffix}", streaming=streaming) == TEXTS


def test_what_a_file_holds_must_show_in_its_name() -> None:
    for name in ("data.pkl", "data.py", "data.pt", "data.npy"):
        Path(name).write_text("raise SystemExit")
        assert f"{name}: loading a .{name[5:]} file could run code" in refused(name)
    Path("data").write_text("x")
    Path("data.docx").write_text("x")
    for name in ("data", "data.docx"):
        assert f"{name}: its name does not tell what it holds; give .jsonl, " in refused(name)
    Path("data.txt").touch()
    assert refused("data.txt") == "--dataset_path data.txt is empty"
    assert refused("./no.txt") == "--dataset_path no.txt: there is no such file or folder"


CARD = """---
configs:
- config_name: default
  data_files: train.jsonl
---
"""


def test_a_folder_must_have_files_of_one_kind() -> None:
    write_rows(ROWS, "data/train.jsonl")
    Path("data", "notes.txt").write_text("x")
    assert "data has notes.txt and train.jsonl, so it cannot be told" in refused("data")
    Path("data", "README.md").write_text("My texts")  # which does not say which they are
    assert "data has notes.txt and train.jsonl, so it cannot be told" in refused("data")
    Path("data", "README.md").write_text(CARD)
    assert texts("data") == TEXTS
    Path("code").mkdir()
    assert (
        "code holds no dataset, but no files; a folder must have files of one kind, of .jsonl"
        in (refused("code"))
    )
    Path("code", "model.pkl").touch()
    assert "code holds no dataset, but model.pkl;" in refused("code")


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_no_text_in_utf_8_is_refused(streaming: bool) -> None:
    Path("data.txt").write_bytes("schön\n".encode("latin-1"))
    said = refused("data.txt", streaming=streaming)
    assert "codec can't decode byte 0xf6" in said
    assert said.endswith("; save the file as UTF-8")


def test_a_row_of_another_type_is_named_by_its_number() -> None:
    write_rows([*ROWS, {"text": 4}])
    assert "changed from string to number in row 3" in refused("data.jsonl", streaming=False)


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    Path("data.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    assert "data.jsonl cannot be read (ArrowInvalid: JSON parse error" in refused("data.jsonl")


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_no_json_of_rows_says_what_is_needed(streaming: bool) -> None:
    Path("data.json").write_text(json.dumps(ROWS), "utf-8-sig")
    said = refused("data.json", streaming=streaming)
    assert said.endswith('; each row must be an object, such as {"text": "..."}')
    Path("data.jsonl").write_text(json.dumps(ROWS[0]), "utf-16")
    assert refused("data.jsonl", streaming=streaming).endswith("; the file must be JSON, in UTF-8")


def test_a_long_reason_ends_at_a_word_and_keeps_its_cure() -> None:
    said = reason(ConnectionError("check your connection " * 20 + "BuilderConfig is lacking."))
    assert "connection check your ...); choose another --dataset_config" in said
    assert len(said) < 350
    assert reason(ConnectionError("No network.")) == "(ConnectionError: No network)"


@pytest.mark.parametrize("streaming", [True, False])
def test_what_has_no_rows_is_without_rows(streaming: bool) -> None:
    Path("blank.jsonl").write_text("\n\n")
    Path("mark.txt").write_text("", "utf-8-sig")
    assert not texts("blank.jsonl", streaming=streaming)
    assert not texts("mark.txt", streaming=streaming)


def test_a_part_of_a_split_may_be_without_rows() -> None:
    save_splits()
    write_rows(ROWS)
    for split in ("train[1000:]", "train[90%:10%]"):
        assert not texts("saved", dataset_split=split)
        assert not texts("data.jsonl", dataset_split=split, streaming=False)


def test_a_path_that_would_be_looked_for_elsewhere_is_refused() -> None:
    write_rows(ROWS, "all [new]/a.jsonl")
    assert "all [new]: the datasets library takes [ in a path for a pattern; rename it" in refused(
        "all [new]"
    )
    assert texts("all [new]/a.jsonl") == TEXTS
    write_rows(ROWS, "a::b.jsonl")
    assert "a::b.jsonl: the datasets library takes :: in a path" in refused("a::b.jsonl")
    Path("link.jsonl").symlink_to("gone.jsonl")
    said = refused("https://me:pass@the.web/a.jsonl")
    assert "the.web/a.jsonl is an address: give the dataset's name on the Hub" in said
    assert "pass" not in said
    for name in ("link.jsonl", "no.jsonl", "no.txt.gz"):
        assert refused(name) == f"--dataset_path {name}: there is no such file or folder"


def test_a_script_is_not_run_and_nobody_is_told_to_run_it() -> None:
    write_rows(ROWS, "data/a.jsonl")
    Path("data", "data.py").write_text("raise SystemExit")
    said = refused("data")
    assert said.endswith("; a dataset's script is never run, so name the files with its data")
    assert "trust_remote_code" not in said


def save_splits() -> None:
    train, test = ([{"text": f"{name} {i}"} for i in range(10)] for name in "ab")
    splits = {"train": Dataset.from_list(train), "test": Dataset.from_list(test)}
    DatasetDict(splits).save_to_disk("saved")


def test_a_saved_dataset_has_splits() -> None:
    save_splits()
    assert texts("saved")[0] == texts("saved", dataset_split="train")[0] == "a 0"
    assert texts("saved", dataset_split="test")[0] == "b 0"
    assert texts("saved", dataset_split="test[20%:40%]") == ["b 2", "b 3"]
    assert texts("saved", dataset_split="test[:1]+train[-1:]") == ["b 0", "a 9"]
    assert "saved has no split 'tets'; did you mean 'test'?" in refused(
        "saved", dataset_split="tets[:3]"
    )
    assert "no split 'valid'; known: test, train" in refused("saved", dataset_split="valid")
    assert "--dataset_split train[" in refused("saved", dataset_split="train[x]")
    assert refused("saved", dataset_config="en").startswith("--dataset_config en: saved was saved")


def test_one_saved_split_is_taken_whatever_it_is_called_unless_another_is_named() -> None:
    save_splits()
    alone = Path("saved", "test")
    assert texts(alone)[0] == "b 0"
    Dataset.from_list(ROWS).save_to_disk("plain")
    assert texts("plain") == texts("plain", dataset_split="train") == TEXTS
    assert "no split 'test'; known: train" in refused("plain", dataset_split="test")


def test_a_part_of_a_split_is_not_streamed() -> None:
    write_rows(ROWS)
    assert texts("data.jsonl", dataset_split="train[:2]", streaming=False) == TEXTS[:2]
    assert "--dataset_split train[:2]: a part of a split cannot be streamed" in refused(
        "data.jsonl", dataset_split="train[:2]"
    )
    for streaming in (True, False):
        said = refused("data.jsonl", dataset_split="test", streaming=streaming)
        assert "test" in said
        assert "train" in said
        assert said.endswith("; choose one with --dataset_split NAME")


README = """---
configs:
- config_name: en
  data_files: en.jsonl
- config_name: de
  data_files: de.jsonl
---
"""
ASK = """
from datasets_of_people import settings
from sae_plugins.runs.texts.loading import load_rows
for flags in {flags}:
    try:
        print(*(row["text"] for row in load_rows(settings("me/text", **flags))))
    except Exception as error:
        print(error)
"""


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_with_configs_asks_which(
    streaming: bool, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("en", "de"):
        write_rows([{"text": f"in {name}"}], f"repo/{name}.jsonl")
    Path("repo", "README.md").write_text(README)
    loopback_hub.add("me/text", tmp_path / "repo")
    flags = [{}, {"dataset_config": "de"}, {"dataset_config": "fr"}, {"dataset_config": "en",
             "dataset_split": "test"}]  # fmt: skip
    code = ASK.format(flags=[{**each, "streaming": streaming} for each in flags])
    none, de, fr, test = loopback_hub.run_here(code, monkeypatch).splitlines()
    assert de == "in de"
    assert "['en', 'de']" in none
    assert none.endswith("; choose one with --dataset_config NAME")
    assert "fr" in fr
    assert fr.endswith("; choose another --dataset_config")
    assert test.endswith("; choose one with --dataset_split NAME")
    assert texts("repo", dataset_config="de", streaming=streaming) == ["in de"]
