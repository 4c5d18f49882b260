"""`train --plugin FILE.py:CLASS`: what the run leaves, how it is made again, and who may say so."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from faults import interrupted

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.plugin_files import hashes
from sae_plugins.settings.settle import settle
from sae_plugins.share.card import card
from sae_plugins.share.content import prepare
from sae_plugins.share.facts import facts_of
from sae_plugins.study.files import load

RUN = [
    *("--training_tokens", "640", "--train_batch_size_tokens", "64", "--context_size", "16"),
    *("--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--d_sae", "32"),
    *("--n_batches_for_norm_estimate", "2", "--heldout_tokens", "64", "--recorder.every", "1"),
]
IDEA = '''
"""An idea."""

import strength
from pydantic import Field
from sae_plugins import Plugin, hookimpl


class Idea(Plugin):
    """Shrink the decoder."""

    name = "idea"

    class Options(Plugin.Options):
        weight: float = Field(0.5, ge=0, description="of the penalty")

    @hookimpl
    def extra_losses(self, run):
        return {"size": strength.of(self.options.weight) * run.sae.W_dec.square().mean()}
'''
STRENGTH = "def of(weight):\n    return 10 * weight\n"
PLUGIN = ("--plugin", "ideas/idea.py:Idea", "--plugin", "reorder", "--reorder.start", "3")
COPIES = {"plugin_files/idea.py": IDEA, "plugin_files/strength.py": STRENGTH}


@pytest.fixture(autouse=True)
def ideas(tiny_world: Any, sketched: None, tmp_path: Path) -> Path:
    """A folder with an idea in it, and files that are none of it."""
    folder = tmp_path / "ideas"
    folder.mkdir()
    (folder / "idea.py").write_text(IDEA)
    (folder / "strength.py").write_text(STRENGTH)
    for name in ("pickle.py", "unasked.py"):
        (folder / name).write_text("raise SystemExit('was imported')")
    return folder


def said(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main([*line]) == 2
    return capsys.readouterr().err


def train(*line: str, code: int = 0) -> None:
    assert main(["train", *line]) == code


def weights(run: str) -> bytes:
    return Path(run, "sae_weights.safetensors").read_bytes()


def test_a_run_has_the_code_and_is_made_again_by_whoever_names_it(
    ideas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*RUN, *PLUGIN, "--idea.weight", "2", "--output_path", "run")
    assert {name: Path("run", name).read_text() for name in COPIES} == COPIES
    assert len([*Path("run").rglob("*.py")]) == 2
    recipe = yaml.safe_load(Path("run", "run.yaml").read_text())
    assert recipe["plugin"] == ["plugin_files/idea.py:Idea", "reorder"]
    assert recipe["idea.weight"] == 2
    assert recipe["description"] == "The run of idea + reorder."
    known = json.loads(Path("run", "cfg.json").read_text())["metadata"]["sae_plugins"]
    assert known["plugins"][0]["file"] == "plugin_files/idea.py:Idea"
    assert known["files"].keys() == {"idea.py", "strength.py"}
    assert str(tmp_path) not in json.dumps([recipe, known])

    shutil.rmtree(ideas)
    again = ("train", "--recipe", "run/run.yaml", "--output_path", "again")
    text = said(capsys, *again)
    cure = "--plugin run/plugin_files/idea.py:Idea reorder"
    assert "names plugin_files/idea.py:Idea, and no recipe makes the code of" in text
    assert text.strip().endswith(cure), text
    assert not Path("again").exists()
    assert main([*again, *cure.split()]) == 0
    assert weights("again") == weights("run")
    assert "replaces the recipe's" not in capsys.readouterr().out
    for name in ("run.yaml", *COPIES):
        assert Path("again", name).read_text() == Path("run", name).read_text()

    upload = prepare("run", [], "me/saes")
    assert {name for name in upload.files if name.endswith(".py")} == {*COPIES}
    page = card(facts_of("run", Path("run"), []), None, "me/saes")
    assert "| `idea` | `plugin_files/idea.py:Idea` |" in page
    files = " ".join(f"run/{name}" for name in COPIES)
    assert f"hf download me/saes run/run.yaml {files} --local-dir .\n" in page
    assert f"sae-plugins train --recipe run/run.yaml {cure} --output_path again\n" in page
    assert "Loading the SAE runs none of it" in page

    Path("run", "plugin_files", "strength.py").write_text("\nkey = {'api_key': 'abc'}\n")
    with pytest.raises(
        SaePluginsError, match=r"strength\.py, line 2, seems to hold a secret: take"
    ):
        prepare("run", [], "me/saes")

    # another run in its place has no use for the code of this one
    train(*RUN, "--output_path", "run", "--overwrite")
    assert not Path("run", "plugin_files").exists()


@pytest.mark.ci
def test_a_run_goes_on_with_the_code_that_it_began_with_and_only_if_that_is_named(
    ideas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (*RUN, *PLUGIN, "--checkpoint_every", "2")
    train(*line, "--output_path", "whole")
    with interrupted(6):
        train(*line, "--output_path", "run", code=130)
    resume = ("train", "--resume", "run")
    copy = "run/unfinished/plugin_files/idea.py:Idea"
    cure = f"sae-plugins train --resume run --plugin {copy} reorder"
    assert f"go on with it: {cure}\n" in capsys.readouterr().out
    assert f"({cure})" in said(capsys, "train", *line, "--output_path", "run")
    assert f"--plugin {copy} reorder" in said(capsys, *resume)
    named = ("--plugin", "ideas/idea.py", "reorder")
    other = ("--plugin", "ideas/idea.py:Other", "reorder")
    assert "it began with" in said(capsys, *resume, *other)
    (ideas / "strength.py").write_text(STRENGTH.replace("10", "11"))
    text = said(capsys, *resume, *named)
    assert "\n  strength.py changed\n" in text
    (ideas / "strength.py").write_text(f"# the same\n{STRENGTH}")
    for other_run in ("by-copy", "renamed"):
        shutil.copytree("run", other_run)
    train("--resume", "run", *named)
    train("--resume", "by-copy", "--plugin", copy.replace("run", "by-copy", 1), "reorder")
    assert weights("run") == weights("by-copy") == weights("whole")
    assert Path("by-copy", "plugin_files", "strength.py").read_text() == STRENGTH

    (ideas / "strength.py").rename(ideas / "force.py")
    (ideas / "idea.py").write_text(IDEA.replace("strength", "force"))
    train("--resume", "renamed", *named, "--accept_changes")
    for run, names in {
        "run": {"strength.py", "idea.py"},
        "renamed": {"force.py", "idea.py"},
    }.items():
        metadata = json.loads(Path(run, "cfg.json").read_text())["metadata"]["sae_plugins"]
        copies = {p.name: p.read_bytes() for p in Path(run, "plugin_files").iterdir()}
        assert copies.keys() == names
        assert metadata["files"] == hashes(copies)


def test_a_file_is_shown_as_installed_plugins_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "ideas/idea.py:Idea"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("idea: a mechanism of ideas/idea.py\n\n  Shrink the decoder.\n")
    assert "--idea.weight float" in shown
    assert "'Idae': did you mean 'Idea'?" in said(capsys, "plugins", "show", "ideas/idea.py:Idae")


def test_all_that_is_wrong_is_said_at_once_beside_a_file_that_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("ideas/idae.py:Idea", "ideas/idea:Idea", "reordr")
    text = said(capsys, "train", "--plugin", *names, "--lr", "fast")
    assert "no plugin 'ideas/idea:Idea' is installed: a class of your own is" in text
    assert "--plugin ideas/idae.py:Idea: the plugin file" in text
    assert "did you mean 'idea.py'?" in text
    assert "'reorder'" in text
    assert "--lr" in text
    assert "'--idea.weight'" in said(capsys, "train", *PLUGIN, "--idea.wieght", "2")


def test_a_recipe_of_a_study_cannot_name_a_file_and_neither_can_a_study_that_it_extends(
    ideas: Path,
) -> None:
    (ideas / "recipe.yaml").write_text("plugin: [idea.py:Idea]\n")
    with pytest.raises(SaePluginsError, match=r"recipe .* names idea\.py:Idea, and no recipe"):
        settle({"recipe": str(ideas / "recipe.yaml")})
    mine, under = ideas / "mine.yaml", ideas / "under.yaml"
    study = {
        "reference": "l1",
        "models": {"toy": {"train": {"model_name": "synthetic:toy"}, "suites": {}}},
        "arms": {"l1": {}, "idea": {"train": {"plugin": "idea.py:Idea"}}},
    }
    under.write_text(yaml.safe_dump(study))
    assert load(str(under)).arms["idea"].train["plugin"] == [str(ideas / "idea.py:Idea")]
    mine.write_text("extends: under.yaml\n")
    with pytest.raises(SaePluginsError, match=r"extends one that names idea\.py:Idea, and the"):
        load(str(mine))


@pytest.mark.slow
def test_arms_of_a_study_try_files_in_its_processes(
    ideas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {
        "train": toys.TRAIN,
        "sparsity": {"l1_coefficient": [0.3]},
        "suites": toys.SUITES,
    }
    arms = {"l1": {"kind": "baseline"}, "idea": {"train": {"plugin": ["idea.py:Idea"]}}}
    study = {"reference": "l1", "models": {"toy": model}, "arms": arms, "seeds": [0, 1]}
    (ideas / "mine.yaml").write_text(yaml.safe_dump(study))
    command = ["ideas/mine.yaml", "--output_path", "out"]
    line = ["study", "run", *command, "--jobs", "2", "--underpowered"]
    assert main(line) == 0, capsys.readouterr().err
    runs = sorted(Path("out").glob("saes/toy/idea_*"))
    assert len(runs) == 2
    for run in runs:
        assert {name: (run / name).read_text() for name in COPIES} == COPIES
        recipe = (run / "run.yaml").read_text()
        assert str(tmp_path) not in recipe
    assert json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[0])["losses/idea/size"]
    for name in ("as_run.yaml", "findings.json"):
        text = Path("out", name).read_text()
        assert str(tmp_path) not in text
        assert "/idea.py:Idea" in text
    capsys.readouterr()
    assert main(["study", "status", "out/as_run.yaml", *command[1:]]) == 0
    assert re.search(r"idea +│ l1_coefficient=0\.3 +│ +2 │ +2 │", capsys.readouterr().out)
    # another place of the same files is no other study; other code is
    shutil.move("ideas", "elsewhere")
    command[0] = "elsewhere/mine.yaml"
    capsys.readouterr()
    assert main(["study", "status", *command]) == 0
    is_there = r"idea +│ l1_coefficient=0\.3 +│ +2 │ +2 │"
    assert re.search(is_there, capsys.readouterr().out)
    Path("elsewhere", "strength.py").write_text(STRENGTH.replace("10", "11"))
    assert main(["study", "status", *command]) == 0
    assert "strength.py changed" in (changed := capsys.readouterr().out)
    assert not re.search(is_there, changed)
