"""`FILE.py:CLASS`: which code runs, which does not, and what is said where it cannot be had."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_plugins import Method, Plugin, plugins
from sae_plugins.base import code as code_module
from sae_plugins.base.code import code, read_modules
from sae_plugins.base.errors import PluginError
from sae_plugins.framework import plugin_files
from sae_plugins.framework.plugin_files import copies, copy_of, load
from sae_plugins.framework.registry import names_file
from sae_plugins.framework.resolve import resolve
from sae_plugins.testing import train

IDEA = """
from __future__ import annotations

from pydantic import Field
from sae_plugins import Plugin, hookimpl


class Idea(Plugin):
    name = "idea"

    class Options(Plugin.Options):
        weight: float = Field(0.1, ge=0)

    @hookimpl
    def extra_losses(self, run):
        return {"size": self.options.weight * run.sae.W_dec.square().mean()}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose path nobody searches for modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def written(text: str = IDEA, name: str = "idea.py") -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_class_of_a_file_trains_and_leaves_no_trace_in_its_folder(folder: Path) -> None:
    written()
    idea = load("idea.py:Idea")
    assert load("idea.py:Idea") is idea  # once in a process, as long as it says the same
    assert load(f"{folder}/idea.py") is idea  # the only one need not be named
    assert copy_of(idea) == "plugin_files/idea.py:Idea"
    assert copies([idea]) == {"idea.py": IDEA.encode()}
    assert train(idea, steps=2, options={"idea": {"weight": 0.5}}).n_training_steps == 2
    assert [path.name for path in folder.iterdir()] == ["idea.py"]
    written(IDEA.replace("0.1", "0.2"))
    assert load("idea.py:Idea").Options().weight == 0.2
    assert idea.Options().weight == 0.1


def test_only_what_the_file_imports_of_its_folder_is_run(folder: Path) -> None:
    helpers = """
import helper
from inner.deep import DEEP
import inner.deep as again
from . import sibling

def lazily():
    import late
    return late.LATE
"""
    written(IDEA + helpers)
    written("import sibling\nHELP = sibling.SIDE", "helper.py")
    written("DEEP = 1", "inner/deep.py")
    written("SIDE = 2", "sibling.py")
    written("LATE = 3", "late.py")
    never = "raise RuntimeError('was imported')"
    for name in ("pickle.py", "tomllib.py", "unasked.py", "inner/unasked.py", "conftest.py"):
        written(never, name)
    idea = load("idea.py:Idea")
    module = sys.modules[idea.__module__]
    assert (module.helper.HELP, module.DEEP, module.again.DEEP) == (2, 1, 1)
    assert module.sibling is module.helper.sibling
    assert module.lazily() == 3
    found = {"idea.py", "helper.py", "inner/deep.py", "sibling.py", "late.py"}
    assert copies([idea]).keys() == found
    own = {name for name in code((), [idea]) if not name.startswith("framework/")}
    assert own == found
    assert str(folder) not in sys.path
    assert not {"helper", "sibling", "late", "inner", "unasked"} & sys.modules.keys()


@pytest.fixture
def lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as in PYTHONPATH, with a package, a module, and what nobody imports."""
    place = folder / "lab home"
    written("SCALE = 2.0", f"{place}/lab_tools/scales/fixed.py")
    written("", f"{place}/lab_tools/__init__.py")
    written("from lab_tools.scales.fixed import SCALE", f"{place}/lab_shared.py")
    written("raise AssertionError", f"{place}/lab_other.py")
    monkeypatch.syspath_prepend(str(place))
    yield place
    for name in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[name]


def hashes_of(selected: type) -> dict[str, str | None]:
    """As a new process would know it."""
    for each in (code_module._code, code_module._of_class):
        each.cache_clear()
    return code((), [selected])


def test_what_is_found_through_pythonpath_is_named_and_known_but_not_copied(
    lab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = "import lab_shared\nimport yaml, json\nfrom lab_tools.scales import fixed\n"
    written(IDEA.replace("from pydantic", f"{lines}from pydantic"))
    idea = load("idea.py:Idea")
    load("idea.py:Idea")
    (said,) = caplog.messages
    assert said.startswith(
        f"idea.py imports lab_shared ({lab}/lab_shared.py) and lab_tools ({lab}/lab_tools/"
        "__init__.py), which no package installs: a run has no copy of that"
    )
    assert {*copies([idea])} == {"idea.py"}
    before = hashes_of(idea)
    outside = {"lab_shared.py", "lab_tools/__init__.py", "lab_tools/scales/fixed.py"}
    assert {name for name in before if not name.startswith("framework/")} == {"idea.py", *outside}
    (lab / "lab_tools/scales/fixed.py").write_text("SCALE = 3.0")
    after = hashes_of(idea)
    assert {name for name in before if before[name] != after[name]} == {"lab_tools/scales/fixed.py"}


def test_a_module_that_is_not_found_any_more_is_named_with_the_cure() -> None:
    written("import lab_gone\n")
    with pytest.raises(PluginError, match=r"No module named 'lab_gone' .*its folder in PYTHONPATH"):
        load("idea.py:Idea")


def test_a_helper_that_changes_is_another_plugin() -> None:
    written(IDEA + "import helper\n")
    written("A = 1", "helper.py")
    first = load("idea.py:Idea")
    before = code((), [first])
    written("A = 2", "helper.py")
    second = load("idea.py:Idea")
    after = code((), [second])
    assert first is not second
    assert before["idea.py"] == after["idea.py"]
    assert before["helper.py"] != after["helper.py"]


def test_what_is_known_of_a_plugin_is_what_was_loaded_whatever_its_file_says_by_now() -> None:
    written(IDEA + "import helper\n")
    written("A = 1", "helper.py")
    idea = load("idea.py:Idea")
    meant = {own.path: own.meaning for own in read_modules(Path("idea.py"))}
    written("A = 2", "helper.py")
    written(IDEA.replace("0.1", "0.2") + "import helper\n")
    assert code((), [idea]).items() >= meant.items()
    assert copies([idea])["helper.py"] == b"A = 1"


@pytest.mark.parametrize("form", ["from kinds.idea import Base", "from .kinds.idea import Base"])
def test_a_base_class_in_a_module_of_the_same_name_is_copied_and_known(form: str) -> None:
    base = IDEA.replace("class Idea", "class Base")
    written(base, "kinds/idea.py")
    written(f"{form}\nclass Idea(Base):\n    name = 'idea'\n")
    first = load("idea.py:Idea")
    assert load("idea.py") is first
    assert copies([first]).keys() == {"idea.py", "kinds/idea.py"}
    assert copy_of(first) == "plugin_files/idea.py:Idea"
    before = code((), [first])
    written(base.replace("0.1", "0.2"), "kinds/idea.py")
    after = code((), [load("idea.py:Idea")])
    assert [name for name in before if before[name] != after[name]] == ["kinds/idea.py"]


def test_a_module_beside_it_may_be_imported_by_dots_alone() -> None:
    written(IDEA + "from . import sibling\n")
    written("SIDE = 2", "sibling.py")
    assert copies([load("idea.py")]).keys() == {"idea.py", "sibling.py"}


@pytest.mark.parametrize("is_importable", [True, False])
@pytest.mark.parametrize("has_init", [True, False])
def test_the_package_that_it_lies_in_is_not_imported_from_elsewhere(
    is_importable: bool, has_init: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(IDEA + "from thepkg.helpers import X\n", "thepkg/sub/idea.py")
    written("X = 1", "thepkg/helpers.py")
    if has_init:
        written("", "thepkg/__init__.py")
    if is_importable:
        monkeypatch.syspath_prepend(folder)
    said = r"imports from 'thepkg', the package that it lies in \(.*/thepkg\), of which .* no copy"
    with pytest.raises(PluginError, match=said):
        load("thepkg/sub/idea.py:Idea")
    assert "thepkg" not in sys.modules


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"idea/base.py": "X = 1"}, "from idea.base import X"),
        ({"idea/__init__.py": "X = 1"}, "from idea import X"),
        ({"helper.py": "", "helper/inner.py": "X = 1"}, "from helper.inner import X"),
    ],
)
def test_a_file_and_a_folder_of_one_name_are_told_apart(files: dict[str, str], line: str) -> None:
    for name, text in files.items():
        written(text, name)
    written(f"{IDEA}{line}\n")
    with pytest.raises(PluginError, match=r"imports from .*, which has the name of .*: rename one"):
        load("idea.py:Idea")
    written()  # which imports none of them
    assert copies([load("idea.py:Idea")]).keys() == {"idea.py"}


def test_modules_beside_it_may_import_each_other() -> None:
    written(IDEA + "import one\n")
    written("import two\nX = 1", "one.py")
    written("import one\ndef x(): return one.X", "two.py")
    assert sys.modules[load("idea.py").__module__].one.two.x() == 1


def test_a_link_is_a_file_where_it_lies(folder: Path) -> None:
    written(IDEA + "import helper\n", "real/idea.py")
    written("", "real/helper.py")
    Path("linked").symlink_to("real")
    assert copies([load("linked/idea.py")]).keys() == {"idea.py", "helper.py"}
    Path("link.py").symlink_to("real/idea.py")
    said = (
        rf"link\.py cannot be imported: .*'helper'.*; it is a link to {folder}/real/idea\.py: name"
    )
    with pytest.raises(PluginError, match=said):
        load("link.py")


def test_a_class_is_that_of_the_file_itself() -> None:
    written(IDEA.replace("class Idea", "class Base"), "basis.py")
    text = "from basis import Base\nclass Idea(Base):\n    name = 'idea'\n"
    written(text)
    assert load("idea.py") is load("idea.py:Idea")
    with pytest.raises(PluginError, match=r"Base in .* is a class of basis\.py, .* as basis\.py:B"):
        load("idea.py:Base")
    written(text + "Best = Idea\n")
    assert load("idea.py") is load("idea.py:Best")  # two names of one class
    written(text.replace("class Idea", "def made():\n  class Inner").replace("\n    ", "\n      ")
            + "  return Inner\nIdea = made()\n")  # fmt: skip
    assert copy_of(load("idea.py")) == "plugin_files/idea.py:Idea"


def test_files_of_two_folders_with_helpers_of_one_name_keep_apart() -> None:
    for name, number in (("a", 1), ("b", 2)):
        text = IDEA.replace('"idea"', f'"idea-{name}"') + "from helper import NUMBER\n"
        written(text, f"{name}/{name}.py")
        written(f"NUMBER = {number}", f"{name}/helper.py")
    found = [load("a/a.py:Idea"), load("b/b.py:Idea")]
    assert [sys.modules[each.__module__].NUMBER for each in found] == [1, 2]
    with pytest.raises(PluginError, match=r"helper\.py and .*helper\.py differ .*: rename one"):
        resolve(found)


def test_the_mechanisms_of_a_method_may_be_in_the_file_too() -> None:
    written(
        IDEA + "from sae_plugins import Method\n"
        "class Both(Method):\n    name = 'both'\n    mechanisms = ('idea', 'nan-guard')\n"
        "    options = {'idea': {'weight': 3}}\n"
    )
    both, idea = load("idea.py:Both"), load("idea.py:Idea")
    plan = resolve([both, idea])
    assert [plugin.name for plugin, _ in plan.plugins] == ["idea", "nan-guard"]
    assert plan.plugins[0][1].weight == 3
    assert plan.named == {n: f"plugin_files/idea.py:{n.title()}" for n in ("both", "idea")}
    alone = resolve([both])  # whose mechanism is that of its file
    assert (alone.plugins, alone.named) == (plan.plugins, plan.named)
    with pytest.raises(PluginError, match=r"several plugins, Idea, Both: name one"):
        load("idea.py")


def test_a_mechanism_may_require_another_one_of_its_file() -> None:
    written(IDEA + "class Next(Idea):\n    name = 'next'\n    requires = ('idea',)\n")
    plan = resolve([load("idea.py:Next")])
    assert [plugin.name for plugin, _ in plan.plugins] == ["idea", "next"]
    written(IDEA.replace('"idea"', '"reorder"')
            + "class Next(Idea):\n    name = 'next'\n    requires = ('reorder',)\n")  # fmt: skip
    with pytest.raises(PluginError, match=r"Idea in .* is called 'reorder', as is an installed"):
        resolve([load("idea.py:Next")])


def test_a_method_and_a_mechanism_cannot_have_one_name() -> None:
    written(
        IDEA + "from sae_plugins import Method\n"
        "class Whole(Method):\n    name = 'idea'\n    mechanisms = ('idea',)\n"
        "class Other(Method):\n    name = 'idea'\n    mechanisms = ('nan-guard',)\n"
    )
    whole, other, idea = (load(f"idea.py:{name}") for name in ("Whole", "Other", "Idea"))
    for chosen in ([whole], [idea, whole], [other, idea]):
        with pytest.raises(PluginError, match=r"the method \w+ and the mechanism Idea are both ca"):
            resolve(chosen)

    class Reordering(Method):
        name = "reorder"
        mechanisms = ("nan-guard",)

    with pytest.raises(PluginError, match=r"the method Reordering and the mechanism Reorder are"):
        resolve([Reordering, "reorder"])
    with pytest.raises(PluginError, match=r"the method Whole and the method Other are both called"):
        resolve([other, type("Whole", (Method,), {"name": "idea", "mechanisms": ()})])


def test_the_sae_says_which_file_it_was_trained_with() -> None:
    written()
    plan = resolve([load("idea.py:Idea")])
    known = plan.provenance()
    assert known["plugins"][0]["file"] == "plugin_files/idea.py:Idea"
    assert known["plugins"][0]["package"] is None
    assert known["files"].keys() == {"idea.py"}
    assert known["files"] == plugin_files.hashes(plan.files)


@pytest.mark.parametrize(
    ("given", "text", "said"),
    [
        ("idae.py:Idea", IDEA, r"the plugin file .*/idae\.py does not exist: .*'idea\.py'\?"),
        ("no/idea.py:Idea", IDEA, r"the plugin file .*/no/idea\.py does not exist"),
        ("idea.py:Idae", IDEA, r"idea\.py has no class 'Idae': did you mean 'Idea'\?"),
        ("idea.py:Field", IDEA, r"Field in .* must be a class of that file .* as Idea does"),
        ("idea.py:Plugin", IDEA, r"Plugin in .* must be a class of that file"),
        ("idea.py", "x = 1", r"idea\.py defines no subclass of sae_plugins\.Plugin or of Method"),
        (
            "idea.py",
            IDEA + "class Other(Idea):\n    name = 'other'\n",
            r"defines several plugins, Idea, Other: name one, such as idea\.py:Idea",
        ),
        (
            "idea.py:Idea",
            IDEA.replace('"idea"', '"reorder"'),
            r"called 'reorder', as is an installed plugin of sae-plugins: change its `name`, or "
            r"choose that one: --plugin reorder",
        ),
        ("idea.py:Idea", IDEA.replace('"idea"', '"recorder"'), "as is an installed plugin"),
        ("idea.py:Idea", IDEA.replace('"idea"', '"My Idea"'), "must be lower-case words"),
        ("idea.py:Idea", IDEA + "def f(:\n", r"idea\.py, line 17: invalid syntax"),
        (
            "idea.py:Idea",
            "import does_not_exist\n" + IDEA.replace("from __future__ import annotations", ""),
            r"cannot be imported: ModuleNotFoundError: .*does_not_exist.* \(idea\.py, line 1\)",
        ),
        ("idea.py:Idea", IDEA + "raise SystemExit(3)\n", r"imported: SystemExit: 3 \(idea\.py, "),
        (
            "idea.py:Idea",
            IDEA + "class Stop(BaseException): pass\nraise Stop('now')\n",
            r"idea\.py cannot be imported: Stop: now \(idea\.py, line 18\)",
        ),
        ("idea.py:Idea", IDEA + "\0", r"idea\.py: source code string cannot contain null bytes"),
        ("my.idea.py:Idea", IDEA, "without a further dot in its name"),
        ("idea.py:Idea.Options", IDEA, r"has no class 'Idea\.Options': did you mean 'Idea'"),
        ("idea.py:my-idea", IDEA, r"idea\.py has no class 'my-idea'"),
        (r"C:\x.py:Idea", IDEA, r"the plugin file .*/C:\\x\.py does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(given: str, text: str, said: str) -> None:
    written(text)
    written(text, "my.idea.py")
    with pytest.raises(PluginError) as caught:
        load(given)
    assert re.search(said, str(caught.value), re.S), caught.value


def test_a_file_beside_it_must_not_be_called_as_an_installed_module(folder: Path) -> None:
    written("X = 1", "yaml.py")
    written()
    assert load("idea.py:Idea").name == "idea"  # which does not import it
    written("import yaml\n" + IDEA.replace("from __future__ import annotations", ""))
    with pytest.raises(PluginError, match=r"imports 'yaml', which is in its folder and is insta"):
        load("idea.py:Idea")


@pytest.mark.parametrize("given", ["idea.py:Idea", "idea.py", "./idea.py:Idea", "/a b/é.py:A.B"])
def test_names_alone_run_nothing(given: str) -> None:
    written("raise RuntimeError('was run')")
    assert names_file(given)

    class Needy(Plugin):
        name = "needy"
        requires = (given,)

    for ask in (lambda: resolve([given]), lambda: resolve([Needy])):
        with pytest.raises(PluginError, match=r"in Python, import the class and give that"):
            ask()
    with pytest.raises(PluginError, match="import the class"), plugins(given):
        pass


@pytest.mark.parametrize("name", ["reorder", "idea", "idea.python", "package.module:Idea"])
def test_other_names_are_no_files(name: str) -> None:
    assert not names_file(name)
