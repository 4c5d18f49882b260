"""The command as a whole: cheap where it can be, and what `plugins` prints."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_plugins import recipes
from sae_plugins.entrypoints import main as module
from sae_plugins.entrypoints.help import help_text
from sae_plugins.entrypoints.main import COMMANDS, loaded, main
from sae_plugins.entrypoints.plugins import command
from sae_plugins.entrypoints.train import COMMAND as TRAIN
from sae_plugins.framework import registry
from sae_plugins.framework.plugin import Method, Plugin
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.flags import all_flags
from sae_plugins.settings.settle import settle

SLOW = ("torch", "sae_lens", "transformer_lens", "datasets", "wandb", "matplotlib", "numpy")


CHEAP = (
    *("--help", "train --help", "evaluate --help", "study run --help", "--version"),
    *("plugins list", "completion words train --plugin reo", "completion words train --reo"),
    *("cache --help", "cache list", "cache prune --all --dry_run"),
    *("completion words evaluate --suite c", "completion words study run q"),
)
FORKED = """
import json, os, sys
from sae_plugins.entrypoints.main import COMMANDS, loaded, main
for line in sys.argv[1:]:
    if not os.fork():
        try: main(line.split())
        except SystemExit: pass
        print("imported", json.dumps(sorted(sys.modules)), file=sys.stderr, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, line
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """The top-level modules that each cheap command imports, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, *CHEAP], capture_output=True, text=True, check=True
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("imported ")]
    names = (json.loads(line.partition(" ")[2]) for line in said)
    return {
        line: {module.partition(".")[0] for module in modules}
        for line, modules in zip(CHEAP, names, strict=True)
    }


@pytest.mark.parametrize("line", CHEAP)
def test_it_is_cheap(line: str, imported: dict[str, set[str]]):
    assert "sae_plugins" in imported[line]
    assert not imported[line].intersection({*SLOW, "pydantic"})


@pytest.fixture
def _pythons_handlers() -> Iterator[None]:
    """What answers signals in a new process; SAELens' runners leave theirs."""
    pythons = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in pythons.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_pythons_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_a_sentence_and_handlers_are_put_back(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(module, "_run", lambda words: signal.raise_signal(number))
    assert main(["study", "run", "toy"]) == 130
    said = "sae-plugins study: interrupted; the same command goes on from there\n"
    assert capsys.readouterr().err == said
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "sae-plugins train: interrupted\n"
    assert signal.getsignal(number) is before


LATER = """
import json, sys
from sae_plugins.entrypoints.main import main
from sae_plugins.runs import figures

draw, before = figures.loss_and_l0, []
figures.loss_and_l0 = lambda rows: (before.extend(sys.modules), draw(rows))[1]
assert main(sys.argv[1:]) == 0
print(json.dumps([before, list(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.ci
def test_a_run_loads_only_what_it_needs(tmp_path: Path):
    """What SAELens loads by itself, wandb among it, is loaded all the same."""
    flags = ("--model_name", "sae-plugins-world", "--hook_name", "blocks.1.hook_resid_post")
    small = (
        "--training_tokens",
        "1024",
        "--train_batch_size_tokens",
        "256",
        "--context_size",
        "32",
    )
    small += ("--n_batches_in_buffer", "32", "--store_batch_size_prompts", "8", "--d_sae", "32")
    line = (
        "train",
        *flags,
        *small,
        "--heldout_tokens",
        "256",
        "--output_path",
        str(tmp_path / "a"),
    )
    done = subprocess.run(
        [sys.executable, "-c", LATER, *line], capture_output=True, text=True, check=True
    )
    training, all_ = (
        {name.partition(".")[0] for name in names}
        for names in json.loads(done.stderr.splitlines()[-1])
    )
    assert "sae_lens" in training
    assert "matplotlib" in all_ - training  # loaded to draw, when the training is over
    assert not all_ & {"plotly", "statsmodels", "sae_bench", "sklearn", "nltk"}


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("examples:", "--plugin hybrid-order", "--reorder.interval", "--recipe", "--lr "):
        assert words in shown
    assert max(len(line) for line in shown.splitlines()) <= 140


def test_every_flag_has_help_and_a_known_group():
    for flag in all_flags().values():
        assert flag.help.strip(), flag.name
        assert f"--{flag.name} " in help_text(TRAIN, 100), flag.name


def test_the_examples_of_the_help_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    text = help_text(TRAIN, 100).replace("\\\n", " ")
    lines = [
        line.split("#")[0].split() for line in text.splitlines() if "  sae-plugins train --" in line
    ]
    assert len(lines) >= 5
    for line in lines:
        if "run.yaml" not in " ".join(line):
            settle(train_flags(line[2:]))


def test_without_arguments_it_explains_itself(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "plugins list" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plugins", "recipes"])
def test_without_an_action_it_lists(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([command, "list"]) == 0
    listed = capsys.readouterr().out
    assert main([command]) == 0
    assert capsys.readouterr().out == listed
    assert main([command, "--name", "reorder"]) == 2
    assert f"sae-plugins {command}: error: there is no" in capsys.readouterr().err


def test_study_without_an_action_explains_itself(capsys: pytest.CaptureFixture[str]):
    assert main(["study"]) == 0
    assert capsys.readouterr().out == f"{help_text(loaded('study'))}\n"


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sae-plugins 0.")


def test_help_says_of_commands_what_they_say_of_themselves():
    assert {name: loaded(name).summary for name in COMMANDS} == COMMANDS


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    assert "there is no command 'trian': did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plugins", "recipes", "study"])
def test_a_list_has_a_line_for_each_that_can_be_shown(
    command: str, capsys: pytest.CaptureFixture[str]
):
    assert main([command, "list"]) == 0
    listed = capsys.readouterr().out
    assert main(["completion", "words", command, "show", ""]) == 0
    names = capsys.readouterr().out.split()
    assert names
    for name in names:
        assert any(line.startswith(f"{name} ") for line in listed.splitlines()), name


def test_a_recipe_that_is_shown_is_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in recipes.names():
        assert main(["recipes", "show", name]) == 0
        (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
        assert recipes.load(str(tmp_path / "mine.yaml")) == recipes.load(name)


def test_help_cuts_no_line(capsys: pytest.CaptureFixture[str]):
    for flag in all_flags().values():
        assert " ".join(flag.help.rstrip(".").split()[1:]) in " ".join(help_text(TRAIN).split())


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
            settle(train_flags(words[2:]))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_prose_of_help_fits_into_the_terminal(name: str) -> None:
    lines = help_text(loaded(name), 64).splitlines()[1:]
    prose = [line for line in lines if line[:1].strip() and not line.endswith(":")]
    assert prose
    assert max(map(len, prose)) <= 64
