"""A secret that a run is given is in none of its files, and is never printed."""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from datasets import Dataset

from sae_plugins import world
from sae_plugins.base import secrets
from sae_plugins.entrypoints.main import main
from sae_plugins.framework import registry
from sae_plugins.framework.registry import Installed
from sae_plugins.runs import language_model
from sae_plugins.runs.language_models.choice import loader_of
from sae_plugins.runs.language_models.kwargs import HOOKED
from sae_plugins.runs.setup import SAELensSettings
from sae_plugins.runs.texts.splits import TextSplits

SECRET = "s3cr3t-W0rd"
PLUGIN = """
from sae_plugins import Plugin, hookimpl
import logging

class Vault(Plugin):
    name = "vault"

    class Options(Plugin.Options):
        api_key: str = ""
        stops: bool = False

    options: Options

    @hookimpl
    def step_ended(self, run):
        logging.getLogger("vault").warning("password=%s", self.options.api_key)
        if self.options.stops and run.step == 4:
            raise KeyboardInterrupt
"""
TRAIN = shlex.split(
    "train --model_name synthetic:small --training_tokens 800 --train_batch_size_tokens 100 "
    "--heldout_tokens 500 --run_final_eval false --plugin vault --checkpoint_every 2"
)


@pytest.fixture(autouse=True)
def vault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sketched: None) -> None:
    """A plugin that takes a key, is installed."""
    (tmp_path / "vault.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = registry.installed

    def installed(group: str = registry.GROUP) -> Any:
        more = {"vault": [Installed("vault", "vault:Vault", "sae-vault", "1")]}
        return {**own(group), **(more if group == registry.GROUP else {})}

    monkeypatch.setattr(registry, "installed", installed)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def told(folder: Path) -> list[str]:
    """Files with the secret in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()]


def test_a_plugin_s_key_is_nowhere_and_is_given_again_to_go_on(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = ("--vault.api_key", SECRET)
    assert main([*TRAIN, "--output_path", "run", *key, "--vault.stops"]) == 130
    assert told(Path("run")) == []
    assert main(["train", "--resume", "run"]) == 2
    said = "--vault.api_key: *** stands where a secret was, which is never written: give the flag"
    assert said in capfd.readouterr().err
    assert main(["train", "--resume", "run", "--vault.api_key", "x", "--lr", "1"]) == 2
    assert "vault.api_key" not in capfd.readouterr().err

    assert main([*TRAIN, "--output_path", "whole", *key]) == 0
    assert told(Path("whole")) == []
    assert main(["train", "--recipe", "whole/run.yaml", "--output_path", "again"]) == 2
    assert said in capfd.readouterr().err
    line = ["train", "--recipe", "whole/run.yaml", "--output_path", "again", *key]
    assert main(line) == 0
    assert told(Path("again")) == []
    assert main(["recipes", "show", "whole/run.yaml"]) == 0
    assert SECRET not in "".join(capfd.readouterr())
    assert SECRET not in caplog.text
    assert "password=***" in caplog.text


@pytest.mark.usefixtures("small_pictures")
def test_what_sae_lens_writes_and_logs_has_no_secrets(
    tiny_world: Any, offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kwargs and addresses are part of SAELens' own files, its checkpoints' included."""
    rows = Dataset.to_iterable_dataset(tiny_world.text("train"))
    splits = TextSplits(rows, None)
    # which refuses the kwargs that are known to be secret
    monkeypatch.setattr(language_model, "model_loader", lambda _: loader_of(world.NAME, HOOKED))
    monkeypatch.setattr(language_model, "load_text", lambda *_: splits)
    monkeypatch.setattr("sae_plugins.runs.checks.check_places", lambda _: None)  # no addresses
    monkeypatch.setattr(
        "sys.argv", ["sae-plugins", "--x.api_key", SECRET, f"--y={{'pwd': '{SECRET}'}}"]
    )
    runner = {
        "hook_name": "blocks.1.hook_resid_post",
        "dataset_path": f"https://jane:{SECRET}@host/data?key={SECRET}",
        "model_from_pretrained_kwargs": {"token": SECRET, "proxies": {"Authorization": SECRET}},
        "context_size": 16, "training_tokens": 256, "train_batch_size_tokens": 32,
        "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "n_checkpoints": 2,
    }  # fmt: skip
    logger = {"log_to_wandb": True, "wandb_log_frequency": 1}
    settings = SAELensSettings("mine", sae={"d_sae": 32}, runner=runner, logger=logger)
    from sae_plugins import plugins
    from sae_plugins.runs.weights_and_biases import one_log

    setup = language_model.LanguageModelSetup(settings)
    with plugins(seed=0), one_log({}, None, False):
        setup.prepare(Path("run"))()
    assert len(list(Path("run").rglob("runner_cfg.json"))) == 3
    assert len(list(Path("run").rglob("cfg.json"))) == 3
    assert list(Path("wandb").rglob("*.wandb"))
    assert told(Path.cwd()) == []


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb.teardown()  # so that it reads the environment again
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def test_what_is_logged_or_warned_of_is_printed_without_secrets(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.excepthook", None)
    with secrets.hidden():
        logging.getLogger("anybody").warning("https://jane:%s@host refuses %d", SECRET, 3)
        shown = warnings.formatwarning(f"api_key='{SECRET}'", UserWarning, "here", 1)
    assert "https://***@host refuses 3" in caplog.text
    assert "api_key='***'" in shown
    import sys

    try:
        raise ValueError(f"token={SECRET}")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "ValueError: token=***" in said
    assert "Traceback" in said
