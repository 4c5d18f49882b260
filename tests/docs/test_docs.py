"""The pages in docs: in step with the code, complete, and every command in them is valid."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import xml.etree.ElementTree
from pathlib import Path

import pytest
import yaml
from snippets import (
    DOCS,
    README,
    ROOT,
    block,
    blocks,
    check,
    commands,
    on_two_and_on_every_architecture,
    package,
    passes,
)

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main, root
from sae_plugins.eval_suites import registry as suite_registry
from sae_plugins.eval_suites.evaluation.tables import DETAIL_COLUMNS, RESULT_COLUMNS
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method, Plugin
from sae_plugins.settings.settle import settle
from sae_plugins.study import files as studies
from sae_plugins.study.plan import plan
from sae_plugins.testing import tiny_sae

GENERATE = runpy.run_path(str(DOCS / "generate.py"))
INSTALLED = registry.installed()
PAGES = sorted(set(DOCS.rglob("*.md")) - set((DOCS / "gallery").rglob("*.md")))
SPREAD = "class Spread(Plugin)"
METHODS = sorted(file for file in (DOCS / "methods").glob("*.md") if file.stem != "README")
TEXTS = [*PAGES, README]
PARTS = {
    "What it does": (),
    "One command": (),
    "Settings and options": ("settings", "options"),
    "Tables": ("tables",),
    "Readings chosen": (),
    "Not built": (),
    "What our measurements say": (),
    "Composition": ("composition",),
}
"""The template of a method's page: its sections, in this order, and what is generated in each."""


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def by_hand(text: str) -> str:
    """The text without its generated parts."""
    return str(GENERATE["PART"].sub("", text))


# -- in step with the code ---------------------------------------------------------------------


@pytest.mark.parametrize("file", [*PAGES, GENERATE["BENCHMARKS"]], ids=name)
def test_it_is_in_step_with_the_code(file: Path) -> None:
    text = file.read_text("utf-8")
    assert GENERATE["page"](text) == text, f"{name(file)} is out of step: run `make docs`"


def test_the_chart_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = GENERATE["chart"]
    assert chart() == GENERATE["CHART"].read_text("utf-8"), "run `make docs`"
    results = chart.__globals__["measured"]()
    (row,) = [r for r in results["shapes"][0]["time"] if r["arm"] == "topk, fast"]
    row["ratio"] = 1.2345
    monkeypatch.setitem(chart.__globals__, "measured", lambda: results)
    assert ">1.23<" in chart()
    assert chart() != GENERATE["CHART"].read_text("utf-8")
    xml.etree.ElementTree.fromstring(chart())


def test_a_changed_option_or_row_is_noticed() -> None:
    text = (DOCS / "methods" / "hybrid-order.md").read_text("utf-8")
    for said in ("`--reorder.interval` | `T` | `0.1`", "loss 6910.19", "`--accumulate` | `4`"):
        assert said in text
        assert GENERATE["page"](text.replace(said, "something else")) == text


@pytest.mark.parametrize(
    "said",
    [
        "| **KL divergence score** | `kl_div_score` | higher |",  # a metric
        "| `--core.context_size` | `128` |",  # a setting
        "| `1 2 5` |  | `1 5 20` |",  # of the preset `paper`
        "| scr | quick |",  # a cost
    ],
)
def test_a_changed_metric_setting_or_cost_of_a_suite_is_noticed(said: str) -> None:
    text = (DOCS / "evaluation.md").read_text("utf-8")
    assert said in text
    assert GENERATE["page"](text.replace(said, "something else")) == text


def test_every_suite_and_every_column_is_on_the_page_about_evaluations() -> None:
    text = (DOCS / "evaluation.md").read_text("utf-8")
    headings = re.findall(r"^### (.+)$", text, re.M)
    assert sorted(headings) == suite_registry.built_in()
    for column in (*RESULT_COLUMNS, *DETAIL_COLUMNS):
        assert f"`{column}`" in by_hand(text), f"nothing is said about the column {column}"


def test_every_hazard_of_saebench_has_a_section_and_a_test() -> None:
    text = (DOCS / "saebench-hazards.md").read_text("utf-8")
    tests = (ROOT / "tests" / "eval_suites" / "saebench" / "test_hazards.py").read_text("utf-8")
    sections = re.findall(r"^### (\d+)\. [^\n]+\n\n(.*?)(?=^#)", text, re.M | re.S)
    assert [int(number) for number, _ in sections] == list(range(1, 48))
    assert {int(n) for n in re.findall(r"^def test_hazard_(\d+)", tests, re.M)} == set(range(1, 48))
    for number, section in sections:
        said = re.findall(r"^- (\w+):", section, re.M)
        assert said == ["Evidence", "Repair", "Here"], number


def test_what_is_written_by_hand_stays() -> None:
    text = "# hybrid-order\n\n<!-- tables: generated -->\nOLD\n<!-- end -->\nby <!-- end --> hand\n"
    written = GENERATE["page"](text)
    assert written.startswith("# hybrid-order\n\n<!-- tables: generated -->\n\n**Table 1**")
    assert written.endswith("\n\n<!-- end -->\nby <!-- end --> hand\n")
    assert "OLD" not in written
    assert GENERATE["page"](written) == written


# -- complete ----------------------------------------------------------------------------------


def test_every_method_has_a_page() -> None:
    methods = {n for n in INSTALLED if issubclass(registry.load(n), Method)}
    assert methods == {file.stem for file in METHODS}


@pytest.mark.parametrize("file", METHODS, ids=name)
def test_it_follows_the_template(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.startswith(f"# {file.stem}\n")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings == list(PARTS)
    _, *sections = re.split(r"^## .+$", text, flags=re.M)
    for heading, section in zip(headings, sections, strict=True):
        assert by_hand(section).strip() or PARTS[heading], f"{heading!r} is empty"
        assert tuple(re.findall(r"<!-- (\w+): generated -->", section)) == PARTS[heading]
    assert sum("```bash\nsae-plugins train" in section for section in sections[:2]) == 1


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_its_lines_are_short(file: Path) -> None:
    for line in by_hand(file.read_text("utf-8")).splitlines():
        assert len(line) <= 100 or line.startswith("|"), line


# -- links -------------------------------------------------------------------------------------


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("file", TEXTS, ids=name)
def test_its_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text("utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{name(file)}: there is no {link}"
        assert not anchor or anchor in anchors(target), f"{name(file)}: {link} has no such heading"


# -- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", TEXTS, ids=name)
def test_its_commands_are_valid(file: Path, reader: Path) -> None:
    for text in blocks("yaml", file):
        Path("mine.yaml").write_text(text)
    wrong = []
    for words in commands(file.read_text("utf-8")):
        try:
            check(words)
        except SaePluginsError as error:
            wrong.append(f"{' '.join(words)}\n  {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", METHODS, ids=name)
def test_it_has_commands(file: Path) -> None:
    method = registry.load(file.stem)
    assert issubclass(method, Method)
    assert len(list(commands(file.read_text("utf-8")))) >= 1 + len(method.rows)


FLAGS = {
    "help",
    *(flag for command in GENERATE["commands"](root()) for flag in command.flags()),
}


@pytest.mark.parametrize("file", TEXTS, ids=name)
def test_the_flags_that_it_names_exist(file: Path) -> None:
    """Those in code, such as `--merge.every`, that are no whole command."""
    for said in re.findall(r"`(--[a-z][^`]*)`", file.read_text("utf-8")):
        flag, *_ = said.removeprefix("--").split()
        plugin, dot, option = flag.partition(".")
        if not dot:
            known = plugin in FLAGS
        elif plugin in ("slurm", "ray"):  # which have options of their own
            known = True
        elif plugin in suite_registry.names():
            known = option in suite_registry.load(plugin).Settings.model_fields
        elif plugin in INSTALLED:
            loaded = registry.load(plugin)
            known = issubclass(loaded, Plugin) and option in loaded.Options.model_fields
        else:
            known = plugin.startswith(("<", "spread", "word-order"))  # what we teach to write
        assert known, f"{name(file)} names --{flag}, which there is not"


# -- blocks of code ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of the page about writing one, installed."""
    module = block("python", "class Spread(Plugin)", DOCS / "plugin.md")
    project = block("toml", "sae-spread", DOCS / "plugin.md")
    return package(tmp_path_factory.mktemp("taught"), module, project, "sae_spread")


@pytest.fixture
def reader(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """The folder of one who has installed that plugin, or has it as the README's file."""
    monkeypatch.chdir(tmp_path)
    if request.node.callspec.params.get("file") == README:
        (tmp_path / "sae_spread.py").write_text(block("python", SPREAD, README))
    else:
        monkeypatch.syspath_prepend(str(taught))
    (tmp_path / "ideas").mkdir()
    idea = block("python", "class Jitter(Plugin)", DOCS / "plugin.md")
    (tmp_path / "ideas" / "jitter.py").write_text(idea)
    return tmp_path


def test_the_page_teaches_the_plugin_of_the_readme_whose_tests_run() -> None:
    """tests/docs/test_readme.py installs it, trains with it, and runs its contract."""
    taught, tested = DOCS / "plugin.md", "class TestSpread(PluginContract)"
    assert block("python", SPREAD, taught) == block("python", SPREAD, README)
    assert block("python", tested, DOCS / "testing.md") == block("python", tested, taught)


ELSEWHERE = {
    "SAE.from_pretrained(": "needs the Hub",
    "Result.model_validate_json(file": "goes on with a file of the reader's",
    "LanguageModelSAERunnerConfig(": "is run by tests/docs/test_readme.py, on fewer tokens",
    "features.build import": "needs an SAE of a language model; tests/features make pages so",
    **dict.fromkeys(
        ("sae.hooks(", "run_with_hooks(", "loader_of("), "is run by tests/docs/test_steering.py"
    ),
    "import PluginContract": "is for pytest; tests/docs/test_readme.py runs such a class",
}
"""What marks blocks of Python that are no whole script, or one that other tests run."""


@pytest.mark.parametrize("file", TEXTS, ids=name)
def test_its_python_runs(file: Path, reader: Path) -> None:
    for text in blocks("python", file):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        if any(mark in text for mark in ELSEWHERE):
            continue
        if "runs/demo" in text:
            tiny_sae("standard").save_inference_model("runs/demo")
        exec(compile(text, name(file), "exec"), {"__name__": "docs"})


MORE_PLUGINS = [pytest.param(n, marks=pytest.mark.ci) for n in ("FollowL0", "WideStart")]


@on_two_and_on_every_architecture
@pytest.mark.parametrize("plugin", [*("Quiet", "Jitter"), *MORE_PLUGINS])
def test_the_contract_of_a_plugin_on_the_page_passes(
    plugin: str, every: bool, tmp_path: Path
) -> None:
    text = block("python", f"class {plugin}(Plugin)", DOCS / "plugin.md")
    text = f"from sae_plugins.testing import PluginContract\n{text}"
    text += f"\n\nclass TestIt(PluginContract):\n    plugin = {plugin}\n"
    assert passes(text, tmp_path / f"test_{plugin.lower()}.py", every)


@pytest.mark.parametrize("file", TEXTS, ids=name)
def test_its_recipes_and_studies_can_be_run(file: Path, reader: Path) -> None:
    mine = reader / "mine.yaml"
    for text in blocks("yaml", file):
        mine.write_text(text)
        if {"arms", "models", "compare", "reference"} & yaml.safe_load(text).keys():
            assert plan(studies.load(str(mine)), lambda _: None)
        else:
            assert settle({"recipe": str(mine)}).names


# -- the suite that the page teaches to write -----------------------------------------------------


@pytest.mark.ci
def test_the_suite_that_it_teaches_can_be_installed_and_scores_an_sae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    from sae_plugins import world
    from sae_plugins.eval_suites.evaluation.results import Result

    module = block("python", "class WordOrder(Suite)", DOCS / "evaluation.md")
    project = block("toml", "sae-word-order", DOCS / "evaluation.md")
    site = package(tmp_path, module, project, "sae_word_order")
    monkeypatch.syspath_prepend(str(site))
    metadata = SAEMetadata(model_name=world.NAME, hook_name="blocks.1.hook_resid_post")
    config = TopKTrainingSAEConfig(d_in=192, d_sae=256, k=200, metadata=metadata)
    TopKTrainingSAE(config).save_inference_model(str(tmp_path / "sae"))
    monkeypatch.chdir(tmp_path)
    chosen = ["--suite", "word-order", "--word-order.documents", "20"]
    assert "word-order" not in suite_registry.built_in()
    assert main(["evaluate", "sae", *chosen, "--cache_path", "cache"]) == 0
    (file,) = tmp_path.glob("evaluations/sae-*/word-order-*.json")
    found = Result.model_validate_json(file.read_text("utf-8"))
    ratio = found.metrics["l0_ratio"]
    assert ratio.value is not None
    assert 0.5 < ratio.value < 2
    assert ratio.value != 1
    assert ratio.n is not None
    assert ratio.n > 500
    assert found.datasets
