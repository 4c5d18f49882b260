"""The data of the suites: enough of every class, at a known version, without anybody's code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs import data as data_module
from sae_plugins.eval_suites.inputs import file_data
from sae_plugins.eval_suites.inputs.data import Data, Need
from sae_plugins.eval_suites.inputs.data_source import data_source
from sae_plugins.eval_suites.inputs.file_data import FolderData, HubData
from sae_plugins.eval_suites.inputs.world_data import WorldData
from sae_plugins.world import text as world_text

BIOS = "LabHC/bias_in_bios"
REVIEWS = "canrager/amazon_reviews_mcauley_1and5"
NEWS = "fancyzhx/ag_news"
CODE = "codeparrot/github-code"
EUROPARL = "Helsinki-NLP/europarl"
PAIRS = ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt")
LANGUAGES = ("C", "Python", "HTML", "Java", "PHP")
PROFESSIONS = (0, 1, 2, 6, 9, 11, 13, 14, 18, 19, 20, 21, 22, 25, 26)  # of the class sets 1-3
CATEGORIES = (1, 2, 3, 5, 6)
TRAIN, TEST = 40, 20
"""Sizes that SAEBench is given in these tests."""
CLASSES: dict[str, tuple[Any, ...]] = {
    BIOS: PROFESSIONS,
    REVIEWS: CATEGORIES,
    NEWS: (0, 1, 2, 3),
    CODE: LANGUAGES,
    EUROPARL: ("en", "fr", "de", "es", "nl"),
}
PROBED = (
    f"{BIOS}_class_set1",
    f"{BIOS}_class_set2",
    f"{BIOS}_class_set3",
    REVIEWS,
    f"{REVIEWS}_sentiment",
    CODE,
    NEWS,
    EUROPARL,
)


def need_of(dataset: str, train: int = TRAIN, test: int = TEST) -> Need:
    parts = 4 if dataset in (BIOS, REVIEWS) else 2
    return Need(train // parts, test // parts, CLASSES[dataset])


def everything(source: Data) -> Iterator[tuple[str, str, Any]]:
    """(dataset, split, text) of all rows."""
    for dataset in (BIOS, REVIEWS, NEWS):
        for split, rows in source.load(dataset, None, need_of(dataset)).items():
            for text in rows[data_module.SCHEMAS[dataset].text]:
                yield dataset, split, text
    for row in source.load(CODE, None, need_of(CODE)):
        yield CODE, "", row["code"]
    for pair in PAIRS:
        for row in source.load(EUROPARL, pair, need_of(EUROPARL)):
            yield pair, "", row["translation"][pair[:2]]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def saebench(monkeypatch: pytest.MonkeyPatch) -> Callable[[Data, Callable[[str], Need]], Any]:
    """SAEBench's two functions that read labelled data, reading from a source of ours."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_utils

    def reading(source: Data, need: Callable[[str], Need]) -> Any:
        def load_dataset(name: str, config: str | None = None, **_: Any) -> Any:
            return source.load(name, config, need(name))

        monkeypatch.setattr(dataset_creation, "load_dataset", load_dataset)
        monkeypatch.setattr(dataset_utils, "load_dataset", load_dataset)
        return dataset_creation, dataset_utils

    return reading


# --- the world ------------------------------------------------------------------------------------


def test_world_texts_are_held_out_and_unique() -> None:
    by_dataset: dict[str, list[str]] = {}
    for dataset, _, text in everything(WorldData()):
        assert world_text.split_of(text) == "heldout"
        by_dataset.setdefault(dataset, []).append(text)
    assert len(by_dataset) == 4 + len(PAIRS)
    # of so many the generator draws some twice
    rows = WorldData().load(EUROPARL, "es-fr", Need(1500, 500, ("es",)))
    by_dataset["es-fr"] = [row["translation"]["es"] for row in rows]
    for texts in by_dataset.values():  # so the train rows are none of the test rows
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("dataset", [BIOS, REVIEWS, NEWS])
def test_world_fills_every_cell_and_no_more(dataset: str) -> None:
    need = need_of(dataset)
    schema = data_module.SCHEMAS[dataset]
    for split, least in (("train", need.train), ("test", need.test)):
        rows = WorldData().load(dataset, None, need)[split]
        assert Counter(schema.cell_of(row, None) for row in rows) == dict.fromkeys(
            schema.cells(need.classes), least
        )


def test_world_streams_one_row_more_than_saebench_takes() -> None:
    need = need_of(EUROPARL)
    assert len(WorldData().load(EUROPARL, "fr-it", need)) == need.train + need.test + 1
    counts = Counter(row["language"] for row in WorldData().load(CODE, None, need_of(CODE)))
    assert set(counts) == set(LANGUAGES)
    assert min(counts.values()) == need.train + need.test + 1


@pytest.mark.parametrize("name", PROBED)
def test_saebench_probes_on_the_world(name: str, saebench: Any) -> None:
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    _, utils = saebench(WorldData(), need_of)
    train, test = utils.get_multi_label_train_test_data(name, TRAIN, TEST, 42)
    for class_name in chosen_classes_per_dataset[name]:
        assert len(train[class_name]) == TRAIN // 2
        assert len(test[class_name]) == TEST // 2
        assert not set(train[class_name]) & set(test[class_name])


def scr_pairs() -> list[tuple[str, tuple[str, str], tuple[Any, Any]]]:
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    attributes = {BIOS: ("male", "female"), REVIEWS: (1.0, 5.0)}
    return [
        (name, pair, attributes[name.split("_class_set")[0]])
        for name, pairs in ScrAndTppEvalConfig().column1_vals_lookup.items()
        for pair in pairs
    ]


def test_saebench_removes_correlations_of_the_world(saebench: Any) -> None:
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata

    pairs = scr_pairs()
    assert len(pairs) == 8
    for name, pair, attributes in pairs:
        ids = dataset_metadata[name.split("_class_set")[0]]["column1_mapping"]
        # SAEBench asserts, without a word, that there are more than twice the quarter
        need = Need(2 * (TRAIN // 4) + 1, 2 * (TEST // 4) + 1, tuple(ids[c] for c in pair))
        creation, _ = saebench(WorldData(), lambda _, need=need: need)
        train, test = creation.get_train_test_data(name, True, TRAIN, TEST, 42, pair, attributes)
        assert {len(texts) for texts in train.values()} == {TRAIN // 2}
        assert {len(texts) for texts in test.values()} == {TEST // 2}


@pytest.mark.ci  # its generators: tests/world/test_world.py
def test_world_is_the_same_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import hashlib; from itertools import islice\n"
        "from sae_plugins.eval_suites.inputs.data import Need\n"
        "from sae_plugins.eval_suites.inputs.world_data import WorldData\n"
        f"rows = WorldData().load({BIOS!r}, None, Need(5, 3, (2, 25)))['train'].to_list()\n"
        f"rows += WorldData().load({EUROPARL!r}, 'nl-pt', Need(5, 3, ('nl',)))\n"
        "rows += islice(WorldData().text('any', 1000, 3), 40)\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest(), WorldData().fingerprint('any'))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exec(code)  # here, where strings have other hashes
    assert capsys.readouterr().out == other.stdout != ""


def test_world_open_text_is_endless_heldout_and_seeded() -> None:
    def read(skip: int, seed: int, count: int) -> list[str]:
        dataset = WorldData().text("Skylion007/openwebtext", skip, seed)
        # SAEBench shuffles with a seed of its own, which must not replace ours
        shuffled = dataset.shuffle(seed=42, buffer_size=1)
        return [row["text"] for row in islice(shuffled, count)]

    texts = read(0, 0, 1500)
    assert len(texts) == 1500  # more than one block of the mix
    assert read(3, 0, 10) == texts[3:13]
    assert len(set(read(0, 1, 200)) & set(texts)) < 20


def test_world_says_which_class_it_lacks_or_cannot_fill() -> None:
    with pytest.raises(SuiteError, match=r"category 'Gift_Cards', rating 1\.0 has 0 rows"):
        WorldData().load(REVIEWS, None, Need(1, 1, (4,)))
    with pytest.raises(SuiteError, match="language 'Haskell' has 0 rows, 3 are needed"):
        WorldData().load(CODE, None, Need(2, 1, ("Haskell",)))
    with pytest.raises(SuiteError, match="known are LabHC/bias_in_bios"):
        WorldData().load("squad", None, Need(1, 1, (1,)))


# --- folders --------------------------------------------------------------------------------------


def write_rows(file: Path, rows: Any) -> None:
    from datasets import Dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, Dataset) else Dataset.from_list([dict(row) for row in rows])
    if file.suffix == ".parquet":
        table.to_parquet(str(file))
    elif file.suffix == ".csv":
        table.to_csv(str(file))
    else:
        table.to_json(str(file))


def bios(count: int, first: int = 0) -> list[dict[str, Any]]:
    """`count` rows of each cell of surgeons and poets."""
    return [
        {"hard_text": f"biography {i} of {p} {g}", "profession": p, "gender": g}
        for i in range(first, first + count)
        for p in (20, 25)
        for g in (0, 1)
    ]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_folder_round_trip(suffix: str, tmp_path: Path, saebench: Any) -> None:
    """What the world gives, written to files of each kind, is read as the same rows."""
    world = WorldData()
    for dataset in (BIOS, NEWS):
        for split, rows in world.load(dataset, None, need_of(dataset)).items():
            write_rows(tmp_path / dataset / f"{split}.{suffix}", rows)
    write_rows(tmp_path / CODE / f"train.{suffix}", world.load(CODE, None, need_of(CODE)))
    if suffix != "csv":  # which has no nested columns
        parallel = world.load(EUROPARL, "fr-it", need_of(EUROPARL))
        write_rows(tmp_path / EUROPARL / "fr-it" / f"train.{suffix}", parallel)
        again = FolderData(tmp_path).load(EUROPARL, "fr-it", need_of(EUROPARL))
        assert [row["translation"]["fr"] for row in again] == [
            row["translation"]["fr"] for row in parallel
        ]
    for dataset in (BIOS, NEWS):
        again = FolderData(tmp_path).load(dataset, None, need_of(dataset))
        for split, rows in world.load(dataset, None, need_of(dataset)).items():
            assert again[split].to_list() == rows.to_list()
    assert [r["code"] for r in FolderData(tmp_path).load(CODE, None, need_of(CODE))] == [
        r["code"] for r in world.load(CODE, None, need_of(CODE))
    ]


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    from datasets import DatasetDict

    splits = WorldData().load(NEWS, None, need_of(NEWS))
    DatasetDict(splits).save_to_disk(str(tmp_path / NEWS))
    again = FolderData(tmp_path).load(NEWS, None, need_of(NEWS))
    assert again["test"].to_list() == splits["test"].to_list()


def test_too_few_rows_name_the_cell(tmp_path: Path) -> None:
    short = [r for r in bios(5) if (r["profession"], r["gender"]) != (25, 1)] + bios(4)[3::4]
    write_rows(tmp_path / BIOS / "train.jsonl", short)
    write_rows(tmp_path / BIOS / "test.jsonl", bios(5, 100))
    source = FolderData(tmp_path)
    assert len(source.load(BIOS, None, Need(4, 5, (20, 25)))["train"]) == 19
    source.load(BIOS, None, Need(5, 5, (20,)))  # whoever is not needed may be few
    message = (
        r"LabHC/bias_in_bios of '.*', split 'train': "
        r"profession 'surgeon', gender 'female' has 4 rows, 5 are needed"
    )
    with pytest.raises(SuiteError, match=message):
        source.load(BIOS, None, Need(5, 5, (20, 25)))
    with pytest.raises(SuiteError, match="split 'test': profession 'poet', gender 'male' has 5"):
        source.load(BIOS, None, Need(1, 6, (20, 25)))


def test_streamed_rows_that_saebench_skips_do_not_count(tmp_path: Path) -> None:
    rows = [
        {"code": "x" * size, "language": language}
        for size in (534, 535, 600)
        for language in ("C", "PHP", "Perl")
    ]
    write_rows(tmp_path / CODE / "train.parquet", rows)
    source = FolderData(tmp_path)
    assert [
        (len(r["code"]), r["language"]) for r in source.load(CODE, None, Need(1, 1, ("C",)))
    ] == [(535, "C"), (600, "C")]
    with pytest.raises(SuiteError, match="language 'C' has 2 rows, 3 are needed"):
        source.load(CODE, None, Need(2, 1, ("C", "PHP")))


def test_folder_without_a_dataset_or_column_says_what_is_expected(tmp_path: Path) -> None:
    source = FolderData(tmp_path)
    with pytest.raises(SuiteError, match=r"ag_news: no train.parquet, .* columns text, label"):
        source.load(NEWS, None, need_of(NEWS))
    with pytest.raises(SuiteError, match=r"ag_news: no train.parquet"):
        source.fingerprint(NEWS)
    write_rows(tmp_path / NEWS / "train.jsonl", [{"text": "a", "topic": 1}])
    with pytest.raises(SuiteError, match=r"ag_news: no test.parquet"):
        source.load(NEWS, None, need_of(NEWS))
    write_rows(tmp_path / NEWS / "test.jsonl", [{"text": "a", "label": 1}])
    with pytest.raises(SuiteError, match=r"no column 'label'; expected are the columns text, lab"):
        source.load(NEWS, None, need_of(NEWS))
    write_rows(tmp_path / NEWS / "train.jsonl", [{"text": 5, "label": 1}])
    with pytest.raises(SuiteError, match=r"split 'train': column 'text' holds no text"):
        source.load(NEWS, None, need_of(NEWS))
    write_rows(tmp_path / EUROPARL / "fr-it" / "train.jsonl", [{"translation": {"it": "ciao"}}])
    with pytest.raises(SuiteError, match=r"row 0 has no text in column 'translation' for 'fr'"):
        source.load(EUROPARL, "fr-it", need_of(EUROPARL))
    (tmp_path / CODE).mkdir(parents=True)
    (tmp_path / CODE / "train.parquet").write_bytes(b"this is no parquet file")
    with pytest.raises(SuiteError, match=r"github-code cannot be read \("):
        source.load(CODE, None, need_of(CODE))


def test_folder_open_text_is_skipped_then_shuffled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_data, "SHUFFLED_TOGETHER", 20)
    name = "my/text"
    write_rows(tmp_path / name / "train.jsonl", [{"text": f"{i}", "n": i} for i in range(50)])

    def read(skip: int, seed: int) -> list[int]:
        rows = FolderData(tmp_path).text(name, skip, seed).shuffle(seed=42, buffer_size=1)
        return [int(row["text"]) for row in rows]

    assert sorted(read(10, 0)) == list(range(10, 50))
    assert set(read(10, 0)[:20]) == set(range(10, 30))
    assert read(10, 0) == read(10, 0)
    assert read(10, 0) != read(10, 1)
    write_rows(tmp_path / "other/text" / "train.jsonl", [{"content": "x"}])
    with pytest.raises(SuiteError, match=r"no text in a column 'text'; there are .* content"):
        FolderData(tmp_path).text("other/text", 0, 0)


def test_folder_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_rows(tmp_path / folder / NEWS / "train.jsonl", [{"text": "a", "label": 0}])
    before = FolderData(tmp_path / "a").fingerprint(NEWS)
    assert before == FolderData(tmp_path / "b").fingerprint(NEWS)
    write_rows(tmp_path / "b" / NEWS / "test.jsonl", [{"text": "b", "label": 0}])
    assert before != FolderData(tmp_path / "b").fingerprint(NEWS)
    write_rows(tmp_path / "a" / NEWS / "train.jsonl", [{"text": "c", "label": 0}])
    assert before != FolderData(tmp_path / "a").fingerprint(NEWS)


def test_data_source(tmp_path: Path) -> None:
    assert isinstance(data_source(None, "sae-plugins-world"), WorldData)
    assert isinstance(data_source(None, "gemma-2-2b"), HubData)
    assert isinstance(data_source("world", "gemma-2-2b"), WorldData)
    assert data_source("hub", "sae-plugins-world", {NEWS: "abc"}).revisions == {NEWS: "abc"}
    assert data_source(str(tmp_path), "gemma-2-2b").name == str(tmp_path)
    with pytest.raises(SuiteError, match="--data nowhere: neither 'world' nor 'hub' nor a folder"):
        data_source("nowhere", "gemma-2-2b")


# --- the Hub --------------------------------------------------------------------------------------

CLIENT = """
import json
from itertools import islice
from sae_plugins.base.errors import SuiteError
from sae_plugins.eval_suites.inputs.data import Need
from sae_plugins.eval_suites.inputs.file_data import HubData
def attempt(work):
    try:
        return work()
    except SuiteError as error:
        return str(error)
"""


@pytest.fixture
def news_repository(loopback_hub: Any, tmp_path: Path) -> Callable[[str], str]:
    """Commits another version of the news, whose texts begin with a word; gives its sha."""

    def commit(word: str) -> str:
        folder = tmp_path / f"news-{word}"
        for split in ("train", "test"):
            rows = [{"text": f"{word} {split} {i}", "label": i % 4} for i in range(12)]
            write_rows(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
        return loopback_hub.add(NEWS, folder)

    return commit


NEWS_CLIENT = f"""{CLIENT}
import sys
hub = HubData(REVISIONS)
def work():
    splits = hub.load({NEWS!r}, None, Need(3, 3, (0, 1, 2, 3)))
    return [splits["train"][0]["text"], splits["test"].num_rows, hub.fingerprint({NEWS!r})]
print(json.dumps([attempt(work), hub.revisions]))
"""


def news_client(hub: Any, revisions: dict[str, str], **environment: str) -> Any:
    return json.loads(hub.run(f"REVISIONS = {revisions!r}\n{NEWS_CLIENT}", **environment))


def test_hub_reads_and_records_one_commit(loopback_hub: Any, news_repository: Any) -> None:
    old = news_repository("old")
    assert news_client(loopback_hub, {}) == [["old train 0", 12, old], {NEWS: old}]
    new = news_repository("new")
    assert news_client(loopback_hub, {}) == [["new train 0", 12, new], {NEWS: new}]
    loopback_hub.requests.clear()
    # a rerun: the other commit is the newest one, in the cache too
    assert news_client(loopback_hub, {NEWS: old}) == [["old train 0", 12, old], {NEWS: old}]
    paths = [path for _, path, _ in loopback_hub.requests if NEWS in path]
    assert paths
    assert all(old in path for path in paths)


FAULTS = {NEWS: 404, BIOS: 403, REVIEWS: 500, CODE: 429}


def test_hub_faults_name_the_dataset_and_the_cure(
    loopback_hub: Any, news_repository: Any, tmp_path: Path
) -> None:
    (tmp_path / "README.md").touch()
    for name, status in FAULTS.items():
        loopback_hub.add(name, tmp_path)
        loopback_hub.fail(name, status)
    client = f"""{CLIENT}
hub = HubData()
need = Need(1, 1, (0, 1))
print(json.dumps([attempt(lambda: hub.load(name, None, need)) for name in {[*FAULTS]!r}]))
"""
    said = loopback_hub.run(client, HF_TOKEN="hf_secretsecretsecretsecretsecretsec")
    for message, (name, status) in zip(json.loads(said), FAULTS.items(), strict=True):
        assert f"dataset {name} cannot be read from the Hub" in message
        assert f"into FOLDER/{name} and use --data FOLDER" in message
        assert str(status) in message
        assert "\n" not in message
        assert "secret" not in message
    assert "Bearer hf_secret" in str(loopback_hub.requests)  # it was there to be shown


def test_hub_offline_does_not_take_another_version(loopback_hub: Any, news_repository: Any) -> None:
    old = news_repository("old")
    news_repository("new")
    online = f"""{CLIENT}
def work(revisions):
    splits = HubData(revisions).load({NEWS!r}, None, Need(3, 3, (0, 1, 2, 3)))
    return splits["train"][0]["text"]
both = ({{}}, {{{NEWS!r}: "0" * 40}})
print(json.dumps([attempt(lambda: work(revisions)) for revisions in both]))
"""
    newest, unknown = json.loads(loopback_hub.run(online))
    assert newest == "new train 0"
    assert "cannot be read from the Hub" in unknown
    message, _ = news_client(loopback_hub, {NEWS: old}, HF_HUB_OFFLINE="1")
    assert f"dataset {NEWS} cannot be read from the Hub" in message


def test_hub_scripts_are_never_run(loopback_hub: Any, tmp_path: Path) -> None:
    """Their parquet files are read, or what the Hub converted them to; or nothing is."""
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')"
    for name in (CODE, "Skylion007/openwebtext", "someone/text"):
        script = tmp_path / name / f"{name.split('/')[1]}.py"
        script.parent.mkdir(parents=True)
        script.write_text(trap)
    paths = ("a/main.c", "a/util.h", "b/run.py", "b/run.pyc", "c/README", "d/x.php5")
    files = [{"content": f"{path:600}", "path": path, "size": 600} for path in paths]
    write_rows(tmp_path / CODE / "data" / "train-00000-of-00002.parquet", files[:3])
    write_rows(tmp_path / CODE / "data" / "train-00001-of-00002.parquet", files[3:])
    converted = tmp_path / "converted"
    rows = [{"text": f"document {i}"} for i in range(5)]
    write_rows(converted / "plain_text" / "partial-train" / "0000.parquet", rows)
    for name in (CODE, "Skylion007/openwebtext", "someone/text"):
        loopback_hub.add(name, tmp_path / name)
    sha = loopback_hub.add("Skylion007/openwebtext", converted, branch="refs/convert/parquet")

    client = f"""{CLIENT}
hub = HubData()
languages = ("C", "Python", "PHP")
rows = hub.load({CODE!r}, None, Need(1, 0, languages))
print(json.dumps([
    [(row["code"].strip(), row["language"]) for row in rows],
    sorted(row["text"] for row in hub.text("Skylion007/openwebtext", 2, 0)),
    hub.fingerprint("Skylion007/openwebtext"),
    attempt(lambda: hub.text("someone/text", 0, 0)),
    attempt(lambda: hub.load({CODE!r}, None, Need(2, 0, languages))),
]))
"""
    code, text, fingerprint, refused, few = json.loads(
        loopback_hub.run(client, HF_DATASETS_TRUST_REMOTE_CODE="1")
    )
    languages = ["C", "C", "Python", "PHP"]
    assert code == [list(row) for row in zip((*paths[:3], paths[5]), languages, strict=True)]
    assert text == ["document 2", "document 3", "document 4"]
    assert fingerprint == sha
    assert "someone/text cannot be read from the Hub" in refused
    assert "language 'Python' has 1 rows, 2 are needed" in few
    assert not (tmp_path / "executed").exists()


def test_loopback_hub_serves_models_and_nothing_writes(loopback_hub: Any, tmp_path: Path) -> None:
    """What other tests rely on."""
    folder = tmp_path / "model"
    (folder / "sae").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sae" / "cfg.json").write_text("{1}")
    sha = loopback_hub.add("someone/sae", folder, kind="models")
    client = """
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
print(Path(hf_hub_download("someone/sae", "sae/cfg.json")).read_text())
print(Path(snapshot_download("someone/sae")).name)
try:
    HfApi(token="x").upload_file(
        path_or_fileobj=b"", path_in_repo="a", repo_id="someone/sae"
    )
except Exception as error:
    print(type(error).__name__)
"""
    out = loopback_hub.run(client).split()
    assert out[:2] == ["{1}", sha]
    assert len(out) == 3
    assert sorted(f.name for f in folder.rglob("*.*")) == ["cfg.json", "config.json"]
