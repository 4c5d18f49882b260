"""What a run was made from in Python: plugins of one's own, data in memory, streams."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
from sae_lens import LoggingConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_plugins import plugins
from sae_plugins.base import code
from sae_plugins.base.errors import StateError
from sae_plugins.base.identity import of_rows
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.origin import Origin
from sae_plugins.testing import TOKENS, tiny_batches, tiny_sae

STEPS = 6
PLUGIN = """
from sae_plugins import Plugin, hookimpl
from {package}.maths import FACTOR

class Mine(Plugin):
    name = "mine"

    @hookimpl
    def before_forward(self, run):
        return {{"l1": FACTOR}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a plugin, and a module that this imports."""
    folder = tmp_path / f"of_{tmp_path.name.replace('-', '_')}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "plugin.py").write_text(PLUGIN.format(package=folder.name))
    (folder / "maths.py").write_text("FACTOR = 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    forget(folder)


def forget(package: Path) -> None:
    """What a new process does not know."""
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]
    code._code.cache_clear()
    code._of_class.cache_clear()


class Stopped(Exception):
    pass


def train(package: Path, folder: Path, stop: int | None = None, **wishes: Any) -> Any:
    """A run with the plugin, which goes on from a checkpoint if there is one."""
    forget(package)
    plugin = import_module(f"{package.name}.plugin").Mine
    kept = Checkpoints(folder, every="2", resume=True, **wishes)

    def batches() -> Iterator[Any]:
        for place, batch in enumerate(tiny_batches(steps=STEPS)):
            if place == stop:
                raise Stopped
            yield batch

    config = SAETrainerConfig(
        total_training_samples=STEPS * TOKENS, train_batch_size_samples=TOKENS, lr=0.01,
        lr_end=0.001, logger=LoggingConfig(log_to_wandb=False), dead_feature_window=3,
        feature_sampling_window=5, n_batches_for_norm_estimate=1,
    )  # fmt: skip
    with plugins(plugin, seed=0, checkpoints=kept):
        trainer = SAETrainer(config, tiny_sae("standard"), batches())
        trainer.fit()
    return trainer


def test_an_edited_module_that_a_plugin_imports_is_refused_or_accepted(
    package: Path, tmp_path: Path
) -> None:
    folder, maths = tmp_path / "kept", package / "maths.py"
    with pytest.raises(Stopped):
        train(package, folder, stop=4)
    maths.write_text("FACTOR = 3.0\n")
    with pytest.raises(StateError, match=rf"\n  {package.name}/maths.py changed\n"):
        train(package, folder)
    maths.write_text("# how much\nFACTOR = 2.0\n")
    assert not train(package, folder).checkpoints.accepted
    maths.write_text("FACTOR = 3.0\n")
    trainer = train(package, folder, accept_changes=True)
    (accepted,) = trainer.sae.cfg.metadata.sae_plugins["accepted_changes"]
    assert accepted == {"step": 4, "changes": [f"{package.name}/maths.py changed"]}


def rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)})


def saved(**facts: Any) -> dict[str, Any]:
    return {"made_from": facts}


def test_what_the_caller_says_comes_before_what_is_in_memory() -> None:
    files = {"at": "/text", "files": {"a": "1"}}
    origin = Origin(saved(dataset=files), "step-4", False)
    origin.facts.update(dataset=files)
    assert origin.add({"dataset": of_rows(rows("a"))}) == []
    assert origin.facts["dataset"] == files


def test_facts_are_compared_once_each_as_they_become_known() -> None:
    origin = Origin(saved(dataset=of_rows(rows("a", "b")), code={"files": {"x": "1"}}), "4", True)
    assert origin.add({"code": {"files": {"x": "2"}}}) == ["x changed"]
    assert origin.add({"dataset": of_rows(rows("a", "B"))}) == ["the dataset changed"]
    assert origin.add({"code": {"files": {"x": "2"}}, "dataset": None}) == []


def test_a_stream_that_nobody_knows_is_said_not_to_be_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Origin(saved(dataset=None), "step-4", False).add({"dataset": None}) == []
    assert caplog.messages == ["the dataset could not be compared with what step-4 was made from"]
