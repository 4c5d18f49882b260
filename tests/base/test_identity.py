"""What something was made from: what changes a fact, what does not, and how a change is named."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from sae_plugins import Plugin
from sae_plugins.base import code as module
from sae_plugins.base import fingerprints
from sae_plugins.base.code import CHANGE_NOTHING, EVALUATING, TRAINING, WORLD, code
from sae_plugins.base.fingerprints import Remembered, fingerprint, of_files
from sae_plugins.base.identity import (
    compare,
    listed,
    of_path,
    of_rows,
    of_tensors,
    of_tokenizer,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read to be hashed."""
    names: list[str] = []
    own = fingerprints.hash_of

    def hash_of(file: Path) -> str:
        names.append(file.name)
        return own(file)

    monkeypatch.setattr(fingerprints, "hash_of", hash_of)
    return names


def settle(folder: Path) -> None:
    """Let all files of a folder be of yesterday, as far as one can say so."""
    yesterday = time.time() - 86_400
    for file in folder.rglob("*"):
        os.utime(file, (yesterday, yesterday))


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as one that has not changed for long."""
    monkeypatch.setattr(fingerprints, "_SETTLED", -1)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl"):
        (made / name).write_text(f"the text of {name}\n")
    return made


@pytest.mark.usefixtures("old")
def test_a_file_is_read_once_and_again_only_when_it_moves(folder: Path, read: list[str]) -> None:
    first = of_files(folder)
    assert list(first) == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert sorted(read) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert of_files(folder) == first
    assert len(read) == 3, "nothing moved"
    (folder / "b.jsonl").write_text("other text of b\n")
    again = of_files(folder)
    assert {name for name in first if again[name] != first[name]} == {"b.jsonl"}
    assert read[3:] == ["b.jsonl"]


@pytest.mark.usefixtures("old")
def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_read(folder: Path) -> None:
    file, first = folder / "a.jsonl", of_files(folder)
    status, text = file.stat(), file.read_text()
    other = folder / "other"
    other.write_text(text.swapcase())
    other.replace(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert of_files(folder)["a.jsonl"] != first["a.jsonl"]


def test_a_file_that_changed_just_now_is_not_trusted(folder: Path, read: list[str]) -> None:
    """It may change again and bear the same time."""
    of_files(folder)
    of_files(folder)
    assert len(read) == 6


@pytest.mark.usefixtures("old")
def test_a_damaged_record_is_no_record(folder: Path, cache: Path, read: list[str]) -> None:
    first = of_files(folder)
    (record,) = (cache / "sae-plugins" / "fingerprints").iterdir()
    whole = record.read_text()
    known = first["a.jsonl"]
    for damaged in (whole[:40], "[]", whole.replace(known, known[::-1]), '["x", {"a": 1}]', "\0"):
        record.write_text(damaged)
        assert of_files(folder) == first
    assert len(read) == 3 * 6


def test_where_no_record_can_be_kept_files_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(of_files(folder)) == 3


def test_what_cannot_be_read_is_not_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"dataset": of_path(folder)}
    own_hash, own_list = fingerprints.hash_of, Path.iterdir

    def hash_of(file: Path) -> str:
        if file.name == "a.jsonl":
            raise PermissionError(13, "Permission denied")
        return own_hash(file)

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == "deep":
            raise PermissionError(13, "Permission denied")
        return own_list(self)

    with monkeypatch.context() as patched:
        patched.setattr(fingerprints, "hash_of", hash_of)
        now = {"dataset": of_path(folder)}
        assert compare(before, now).changes == []
        assert compare(before, now).unknown == ["a.jsonl"]
        patched.setattr(Path, "iterdir", iterdir)
        assert of_path(folder)["files"]["deep"] is None


def test_what_tools_leave_beside_data_is_no_data(folder: Path) -> None:
    first = of_files(folder)
    (folder / ".cache").mkdir()
    for name in (".cache/x", "cache-12ab.arrow", "tmpx1y2z3ab", ".hidden"):
        (folder / name).write_text("?")
    assert of_files(folder) == first


def test_links_are_followed_and_circles_of_them_end(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "weights").symlink_to(folder / "a.jsonl")
    (snapshot / "more").symlink_to(folder)
    (folder / "deep" / "back").symlink_to(snapshot)
    found = of_files(snapshot)
    assert {"weights", "more/b.jsonl", "more/deep/c.jsonl"} <= found.keys()
    assert found["weights"] == found["more/a.jsonl"]


def test_one_file_is_a_source_too(folder: Path) -> None:
    fact = of_path(folder / "a.jsonl")
    assert list(fact["files"]) == ["a.jsonl"]
    assert fact["at"] == str(folder / "a.jsonl")


# -- what is in memory -----------------------------------------------------------------------------


def test_one_weight_tells_models_apart_whatever_their_dtype_and_layout() -> None:
    def model(dtype: torch.dtype = torch.float32, **parameters: Any) -> Any:
        made = torch.nn.Module()
        draw = torch.Generator().manual_seed(0)
        made.matrix = torch.nn.Parameter(torch.randn(60, 70, generator=draw).to(dtype))
        made.empty = torch.nn.Parameter(torch.zeros(0, 3))
        for name, value in parameters.items():
            setattr(made, name, torch.nn.Parameter(value))
        return made

    def fact(made: Any) -> str:
        return str(of_tensors(made.state_dict())["content"])

    plain = model()
    known = {fact(plain)}
    assert fact(model(matrix=plain.matrix.detach().t().contiguous().t())) in known
    for place in [(0, 0), (17, 33), (59, 69)]:
        almost = plain.matrix.detach().clone()
        almost[place] = almost[place].nextafter(torch.tensor(torch.inf))
        assert fact(model(matrix=almost)) not in known
        known.add(fact(model(matrix=almost)))
    for other in (
        model(torch.bfloat16),
        model(torch.float64),
        model(matrix=plain.matrix.detach().t()),
        model(more=torch.zeros(1)),
    ):
        assert fact(other) not in known
        known.add(fact(other))
    assert of_tensors({"elsewhere": torch.empty(3, device="meta")}) is None
    buffered = model()
    buffered.register_buffer("mean", torch.ones(2))
    assert fact(buffered) not in known


def test_large_tensors_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(1000.0).reshape(10, 100).T
    whole = fingerprint(tensor)
    monkeypatch.setattr(fingerprints, "_CHUNK", 7)
    assert fingerprint(tensor) == whole


def rows(texts: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts})


def test_rows_in_memory_are_told_apart_by_all_of_them_in_their_order() -> None:
    texts = [f"text {number}" for number in range(30)]
    first = of_rows(rows(texts))
    assert first == of_rows(rows(texts))
    assert first == of_rows(rows([*texts, "more"]).select(range(30)))
    edited = [*texts[:-1], "another"]
    others = [rows(edited), rows(texts).shuffle(seed=0), rows(texts[:-1]), rows([])]
    others.append(rows(texts).rename_column("text", "problem"))
    found = [of_rows(other) for other in others]
    assert first not in found
    assert all(one != two for place, one in enumerate(found) for two in found[:place])


def test_rows_on_disk_are_told_apart_by_their_files(tmp_path: Path) -> None:
    place = str(tmp_path / "rows")
    facts = []
    for last in ("the last", "the LAST"):
        rows(["a", "b", last]).save_to_disk(place)
        facts.append(of_rows(datasets.load_from_disk(place)))
    assert list(facts[0]["files"]) == ["data-00000-of-00001.arrow"]
    assert facts[0] != facts[1]


def test_rows_that_are_read_one_by_one_are_not_known() -> None:
    assert of_rows(rows(["a"]).to_iterable_dataset()) is None


def test_a_tokenizer_is_told_by_how_it_splits_text() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def made(split: Any = None) -> Any:
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        if split is not None:
            tokenizer.pre_tokenizer = split
        return of_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))

    assert made() == made()
    assert made() != made(pre_tokenizers.Whitespace())
    used = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        pad_token="[UNK]",
    )
    before = of_tokenizer(used)
    used(["a", "a a"], padding=True, truncation=True, max_length=1)
    assert of_tokenizer(used) == before, "how it was called last does not matter"
    assert of_tokenizer(None) is None


# -- code ------------------------------------------------------------------------------------------


def meaning(text: str) -> str:
    import ast

    return module._meaning(ast.parse(text))


def test_comments_docstrings_and_layout_mean_nothing() -> None:
    plain = "class A:\n    x: int = 1\n\n    def f(self, a):\n        return a + self.x\n"
    said = (
        '"""A module."""\n# about A\nclass A:\n    """A class."""\n\n    x: int = (1)  # one\n'
        '    """An attribute."""\n\n    def f(self, a):\n        """Add."""\n'
        "        return (\n            a\n            + self.x\n        )\n"
    )
    assert meaning(plain) == meaning(said)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + b", "b + a"), ("a + b + c", "a + (b + c)"), ("1", "1.0"), ("1", "True"),
        ("'1'", "1"), ("x = 'a'", "x = 'b'"), ("x = b'a'", "x = 'a'"), ("f(a)", "f(a=a)"),
        ("def f(a=None): pass", "def f(a): pass"), ("def f(): return", "def f(): return None"),
        ("if a:\n    b\nc", "if a:\n    b\n    c"), ("a[b:]", "a[:b]"), ("a[b:c]", "a[b::c]"),
        ("f'{a}'", "f'{a!r}'"), ("x = ''", "x = None"), ("{**a}", "{a}"), ("yield", "yield None"),
        ("async def f(): pass", "def f(): pass"), ("import a", "import a as b"),
        ("from . import a", "from .. import a"), ("x: int", "x: int = 0"), ("a, = b", "a = b"),
        ("try: a\nexcept: b\nelse: c", "try: a\nexcept: b\nfinally: c"),
    ],
)  # fmt: skip
def test_what_a_text_does_is_what_it_means(one: str, other: str) -> None:
    assert meaning(one) != meaning(other)


def test_the_rooms_are_whole_but_for_what_changes_nothing() -> None:
    """A new file counts until somebody says that it changes nothing."""
    root = Path(module.__file__).parents[1]
    assert all((root / name).is_file() for name in CHANGE_NOTHING)
    training = code(TRAINING)
    assert all(training.values())
    for room in ("framework", "runs"):
        there = {file.relative_to(root).as_posix() for file in (root / room).rglob("*.py")}
        assert there - training.keys() == {n for n in CHANGE_NOTHING if n.startswith(f"{room}/")}
    assert {"base/saelens.py", "base/seeds.py"} <= training.keys()
    assert {"resume/stream.py", "resume/mixing.py"} <= training.keys()
    assert not any(name.startswith(("mechanisms", "entrypoints", "study")) for name in training)
    assert "eval_suites/saebench/core.py" in code(EVALUATING)
    assert {"world/text.py", "world/data/model.safetensors"} <= code(WORLD).keys()


def test_a_mechanism_counts_with_those_that_it_imports() -> None:
    from sae_plugins.mechanisms.coactivation_penalty import CoactivationPenalty

    found = {name for name in code((), [CoactivationPenalty]) if name.startswith("mechanisms/")}
    assert found >= {f"mechanisms/{n}.py" for n in ("coactivation_penalty", "pairs", "importance")}
    assert "mechanisms/reorder.py" not in found


PLUGIN = """
from sae_plugins import Plugin
from {package}.maths import twice

class Mine(Plugin):
    \"\"\"A plugin.\"\"\"

    name = "mine"

    def attached(self, run):
        from .later import thrice
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with a plugin in a package, and a module beside the package."""
    name = f"package_{tmp_path.name.replace('-', '_')}"
    files = {
        "__init__.py": "", "plugin.py": PLUGIN.format(package=name), "later.py": "import numpy",
        "maths.py": "from . import constants\nimport beside_it\ntwice = 2",
        "constants.py": "a = 1", "unused.py": "b = 1", "../beside_it.py": "c = 1",
        "../alone.py": "d = 1",
    }  # fmt: skip
    folder = tmp_path / "checkout" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for known in [known for known in sys.modules if known.startswith((name, "beside_it"))]:
        del sys.modules[known]


def own(package: Path) -> dict[str, str | None]:
    """The files of the package's plugin, read again."""
    module._code.cache_clear()
    module._of_class.cache_clear()
    plugin = import_module(f"{package.name}.plugin").Mine
    found = code((), [plugin])
    return {n: h for n, h in found.items() if not n.startswith("framework/")}


def test_a_plugins_own_files_are_those_that_it_imports(package: Path) -> None:
    names = ("__init__", "constants", "later", "maths", "plugin")
    assert own(package).keys() == {*(f"{package.name}/{n}.py" for n in names), "beside_it.py"}


def test_an_edit_of_what_a_plugin_imports_is_named(package: Path) -> None:
    before = {"code": {"files": own(package)}}
    (package / "constants.py").write_text("a = 1  # one\n")
    assert compare(before, {"code": {"files": own(package)}}).changes == []
    (package / "constants.py").write_text("a = 2\n")
    (package.parent / "alone.py").write_text("d = 2\n")
    (changed,) = compare(before, {"code": {"files": own(package)}}).changes
    assert changed == f"{package.name}/constants.py changed"


def test_an_installed_copy_counts_with_its_distribution_alone(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = package.parent.rename(package.parent.with_name("site-packages"))
    monkeypatch.syspath_prepend(str(site))
    (site / package.name / "later.py").write_text("import alone")
    info = site / "mine-1.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(f"{package.name}/plugin.py,sha256=x,9\nbeside_it.py,,\n")
    found = own(site / package.name)
    assert f"{package.name}/constants.py" in found
    assert "beside_it.py" in found
    assert "alone.py" not in found, "it is of another distribution"


def test_a_class_of_a_notebook_is_what_its_text_says() -> None:
    def made(text: str) -> dict[str, str | None]:
        space: dict[str, Any] = {"__name__": "__main__", "Plugin": Plugin}
        exec(text, space)
        return code((), [space["Mine"]])

    found = made("class Mine(Plugin):\n    name = 'mine'\n")
    assert found["Mine of __main__"] is None, "there is no text of it"
    before = {"code": {"files": found}}
    assert compare(before, before).changes == []
    assert compare(before, before).unknown == ["Mine of __main__"]


def test_a_file_that_cannot_be_parsed_counts_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    found = set()
    for text in ("def (", "def ((", "def (#"):
        file.write_text(text)
        with Remembered("x", tmp_path, module._understood) as known:
            found.add(known.of(file)["meaning"])
    assert len(found) == 3


# -- where facts differ ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "sentences"),
    [
        ({"code": {"files": {"a.py": "1", "b.py": "1"}}},
         {"code": {"files": {"a.py": "2", "c.py": "1"}}}, ["a.py, b.py and c.py changed"]),
        ({"code": {"files": {f"{n}.py": "1" for n in range(9)}}}, {"code": {"files": {}}},
         ["0.py, 1.py, 2.py and 6 more changed"]),
        ({"dataset": {"at": "/x", "files": {"a": "1", "b": "1"}}},
         {"dataset": {"at": "/x", "files": {"a": "2", "b": "1"}}},
         ["the dataset in /x changed: 1 file (a)"]),
        ({"dataset": {"at": "/x", "files": {"a": "1"}}},
         {"dataset": {"at": "/moved", "files": {"a": "1"}}}, []),
        ({"dataset": {"at": "me/text", "commit": "a" * 40}},
         {"dataset": {"at": "me/text", "commit": "b" * 40}},
         ["the dataset me/text is at commit bbbbbbbbbbbb, and was at aaaaaaaaaaaa"]),
        ({"model": {"at": "me/one", "commit": "a" * 40}},
         {"model": {"at": "me/two", "commit": "a" * 40}},
         ["the language model is me/two on the Hub, and was me/one"]),
        ({"model": {"content": "1"}}, {"model": {"content": "2"}}, ["the language model changed"]),
        ({"model": {"content": "1"}, "world": {"files": {"x": "1"}}},
         {"model": {"content": "1"}, "world": {"files": {"x": "1"}}}, []),
    ],
)  # fmt: skip
def test_a_change_is_named_in_a_sentence(before: Any, now: Any, sentences: list[str]) -> None:
    compared = compare(before, now)
    assert compared.changes == sentences
    assert compared.unknown == []


def test_what_nobody_knows_is_said_and_is_no_change() -> None:
    before = {"dataset": "?", "model": {"content": "1"}, "code": {"files": {}}}
    now = {"dataset": None, "model": {"at": "x", "commit": "1"}, "tokenizer": {"content": "1"}}
    compared = compare(before, now)
    assert compared.changes == []
    assert listed(compared.unknown) == "the dataset, the language model, the code and the tokenizer"
