"""The command as a whole: cheap where it can be, and what `plugins` prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae_plugins import recipes
from sae_plugins.entrypoints.main import main
from sae_plugins.entrypoints.plugins import command
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method, Plugin
from sae_plugins.settings import flags
from sae_plugins.settings.settings import settle

SLOW = ("torch", "sae_lens", "transformer_lens", "datasets", "wandb", "matplotlib", "numpy")


def imported(*arguments: str) -> set[str]:
    """The top-level modules that a command imports in a process of its own."""
    code = (
        "import json, sys\n"
        "from sae_plugins.entrypoints.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return {module.partition(".")[0] for module in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize("line", ["--help", "train --help", "plugins list", "--version"])
def test_it_is_cheap(line: str):
    modules = imported(*line.split())
    assert not modules.intersection(SLOW)
    if line != "plugins list":
        assert "pydantic" not in modules


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("examples:", "--plugin hybrid-order", "--reorder.interval", "--recipe", "--lr "):
        assert words in shown
    assert max(len(line) for line in shown.splitlines()) <= 140


def test_the_examples_of_the_help_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    text = flags.help_text(100).replace("\\\n", " ")
    lines = [
        line.split("#")[0].split() for line in text.splitlines() if "  sae-plugins train --" in line
    ]
    assert len(lines) >= 5
    for line in lines:
        if "run.yaml" not in " ".join(line):
            settle(flags.parse(line[2:]))


def test_without_arguments_it_explains_itself(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "plugins list" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sae-plugins 0.")


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_plugins_list(capsys: pytest.CaptureFixture[str]):
    assert main(["plugins", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in registry.installed():
        assert any(line.startswith(name) and "sae-plugins 0." in line for line in lines)
    assert lines[0].split()[1] == "method"


@pytest.mark.parametrize("name", list(registry.installed()))
def test_plugins_show(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plugins", "show", name]) == 0
    shown = capsys.readouterr().out
    loaded = registry.load(name)
    assert loaded.__doc__.split("\n")[0] in shown
    if issubclass(loaded, Plugin):
        for option, field in loaded.Options.model_fields.items():
            assert f"--{name}.{option} " in shown
            assert not field.title or f"the paper's {field.title}" in shown
    else:
        assert all(mechanism in shown for mechanism in loaded.mechanisms)
        unwrapped = " ".join(shown.split())
        for row in loaded.rows:
            assert command(name, row.flags) in shown
            assert f"{row.label} (paper: {row.paper})" in unwrapped or row.paper == ""
            assert row.label in unwrapped


def test_bounds_and_refusals_are_shown(capsys: pytest.CaptureFixture[str]):
    main(["plugins", "show", "input-norm-l1"])
    shown = capsys.readouterr().out
    assert "--input-norm-l1.decay float   default 0.99, >= 0, < 1   (the paper's beta)" in shown
    assert "--input-norm-l1.per token|batch   default token" in shown
    assert "topk" in shown.partition("does not work")[2]


def test_every_row_of_every_table_is_a_valid_command():
    methods = [
        loaded for name in registry.installed() if issubclass(loaded := registry.load(name), Method)
    ]
    assert methods
    for method in methods:
        for row in method.rows:
            words = command(method.name, row.flags).split()
            settle(flags.parse(words[2:]))


@pytest.mark.parametrize("name", recipes.names())
def test_packaged_recipes_are_valid(name: str):
    settings = settle({"recipe": name})
    method = name.removesuffix("-demo")
    of_sae_lens = name.startswith("baseline-") or name == "gemma-2-2b"
    assert settings.names == ([] if of_sae_lens else [method])
    assert not settings.notes


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("-demo")])
def test_demos_say_all_that_another_model_s_defaults_would_change(name: str):
    flags = {"recipe": name, "model_name": "gpt2", "hook_name": "x", "dataset_path": "x"}
    here, there = settle({"recipe": name}), settle(flags)
    assert not there.notes
    assert there.options == here.options
    about_the_model = {*flags, "is_dataset_tokenized", "streaming", "device"}
    about_the_model |= {"context_size", "store_batch_size_prompts", "n_batches_in_buffer"}
    of_other_architectures = {"l0_coefficient", "k"}
    for flag in here.values.keys() - about_the_model - of_other_architectures:
        assert there.get(flag) == here.get(flag), flag


# -- precedence --------------------------------------------------------------------------------


def test_defaults_then_method_then_recipe_then_flags(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [hybrid-order]\naccumulate: 2\nlr: 5e-4\nreorder.interval: 7\n")
    method = settle({"plugin": ["hybrid-order"]})
    assert method.get("lr_scheduler_name") == "cosineannealing"
    assert method.plan.training.accumulate == 4
    assert method.get("training_tokens") == 1_000_000
    assert method.get("lr_warm_up_steps") == round(3000 / 4882 * 976)
    assert method.get("adam_beta1") == 0.9
    from_recipe = settle({"recipe": str(recipe)})
    assert (from_recipe.plan.training.accumulate, from_recipe.get("lr")) == (2, 5e-4)
    assert from_recipe.plan.plugins[0][1].interval == 7
    flagged = settle(
        {"recipe": str(recipe), "accumulate": 3, "reorder.interval": "9", "lr_warm_up_steps": 5}
    )
    assert flagged.plan.training.accumulate == 3
    assert flagged.plan.plugins[0][1].interval == 9
    assert flagged.get("lr_warm_up_steps") == 5


def test_a_flag_that_leaves_a_plugin_out_takes_the_recipe_s_options_with_it(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [hybrid-order]\nreorder.interval: 7\n")
    settings = settle({"recipe": str(recipe), "without": ["reorder"]})
    assert "reorder" not in [plugin.name for plugin, _ in settings.plan.plugins]


def test_another_architecture_drops_what_it_lacks_and_says_so(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [reorder]\nl1_coefficient: 3\n")
    settings = settle({"recipe": str(recipe), "architecture": "topk"})
    assert "l1_coefficient" not in settings.values
    assert any("l1_coefficient" in note for note in settings.notes)


def test_recipes_extend_recipes(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("plugin: [reorder]\nlr: 1.0\nk: 4\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\nlr: 2.0\n")
    assert recipes.load(str(tmp_path / "more.yaml")) == {"plugin": ["reorder"], "lr": 2.0, "k": 4}
    (tmp_path / "demo.yaml").write_text("extends: hybrid-order-demo\nlr: 2.0\n")
    assert recipes.load(str(tmp_path / "demo.yaml"))["plugin"] == ["hybrid-order"]


def test_other_versions_are_a_note(tmp_path: Path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text("versions: {torch: '1.0', python: '2.7', gone: '3'}\nplugin: reorder\n")
    (note,) = settle({"recipe": str(recipe)}).notes
    assert "torch 1.0 (now" in note
    assert "gone 3 (now None)" in note


def test_options_are_read_as_their_types_have_them():
    from pydantic import Field

    from sae_plugins.settings.choice import option_value

    class Odd(Plugin):
        name = "odd"

        class Options(Plugin.Options):
            maybe: int | None = Field(1)
            text: str = Field("")
            many: list[int] = Field([])

    assert option_value(Odd, "maybe", "none") is None
    assert option_value(Odd, "maybe", "3") == 3
    assert option_value(Odd, "text", "none") == "none"
    assert option_value(Odd, "many", "[1, 2]") == [1, 2]
    assert option_value(Odd, "nothing", "x") == "x"


def test_the_guard_is_there_once_and_can_be_left_out():
    def chosen(flags):
        return [plugin.name for plugin, _ in settle(flags).plan.plugins]

    assert chosen({}) == ["nan-guard"]
    assert chosen({"plugin": ["nan-guard", "reorder"]}) == ["nan-guard", "reorder"]
    assert chosen({"without": ["nan-guard"]}) == []
    assert chosen({"recorder.every": "5"}) == ["nan-guard", "recorder"]
