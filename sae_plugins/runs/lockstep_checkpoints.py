"""Checkpoints of SAEs in lockstep: the state of all, and of what they share, in one file.

Any of the SAEs can go on from it, whichever of the others are still wanted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_plugins.base.code import TRAINING
from sae_plugins.base.errors import PluginError
from sae_plugins.base.files import durable, write
from sae_plugins.base.identity import Fact, of_code
from sae_plugins.base.secrets import reason_of
from sae_plugins.resume.checkpoints import Checkpoints
from sae_plugins.resume.signals import Waiting
from sae_plugins.resume.together import NAMES
from sae_plugins.runs.lockstep_arm import HeldOut, LockstepRun, Training, ends_alone
from sae_plugins.runs.machine import machine
from sae_plugins.runs.setup import Setup


class Group:
    """Arms that train together: one trainer for their checkpoints.

    Attributes:
        arms: all of them.
        running: those that are not done.
        failures: what ended those that failed, by name.
        unseen: what scores tuning arms that are done, by name.
        machines: those that they have trained on, this one at the end.
        started: when they began, without the time in which they were interrupted.
        training: seconds that the arms took in this process.
        data_provider: the batches that all of them see.
        n_training_steps: batches that they have seen.
    """

    sae: Any = None
    data_provider: Any = None

    def __init__(self, setup: Setup, arms: Sequence[LockstepRun], done: Collection[str]) -> None:
        """Draw the weights of all arms but those that a checkpoint has as done."""
        self.setup, self.arms = setup, arms
        self.started = time.perf_counter()
        self.failures: dict[str, Exception] = {}
        self.unseen: dict[str, list[Tensor]] = {}
        self.machines = [machine(setup.settings)]
        self.running: list[Training] = []
        self.n_training_steps = 0
        self.training = 0.0
        self._durable: set[str] = set()
        text = HeldOut(setup)
        for arm in arms:
            if arm.name not in done:
                with ends_alone(arm, self.failures):
                    self.running.append(Training(arm, text, self.unseen))

    # -- what checkpoints ask of a trainer -----------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What must be the same for each arm, by its name."""
        return {"arms": {arm.name: _facts(arm) for arm in self.arms}}

    def made_from(self) -> dict[str, Fact | None]:
        """What all arms have in common: sources, and code but that of their plugins."""
        return {"code": of_code(TRAINING), **self.setup.made_from()}

    def versions(self) -> dict[str, str]:
        """The versions of all arms' plugins."""
        told = [plugin for arm in self.arms for plugin in arm.plan.provenance()["plugins"]]
        return {plugin["name"]: plugin["version"] for plugin in told}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training, and the scores, depend on.

        The files of arms that are done are on the disk by now, and stay there.
        """
        running = {training.arm.name: training.state_dict() for training in self.running}
        done = [a for a in self.arms if a.name not in running and a.name not in self.failures]
        for arm in done:
            if arm.name not in self._durable:
                durable(arm.unfinished)
                self._durable.add(arm.name)
        return {
            "steps": self.n_training_steps,
            "seconds": time.perf_counter() - self.started,
            "running": running,
            "failures": {name: reason_of(error) for name, error in self.failures.items()},
            "done": {arm.name: _sizes(arm.unfinished) for arm in done},
            "unseen": self.unseen,
            "machines": self.machines,
        }

    def state_of_plugins(self) -> dict[str, Any]:
        """None: what cannot be saved is told when it is to be, and ends no other arm."""
        return {}

    def replicated(self) -> dict[str, Any]:
        """None: ranks have arms of their own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put all arms where they were.

        Raises:
            ValueError: the files of one that is done are not what they were.
        """
        for training in self.running:
            training.load_state_dict(state["running"].pop(training.arm.name))
        for arm in self.arms:
            name = arm.name
            if name in state["failures"]:
                self.failures[name] = PluginError(state["failures"][name])
            elif name in state["done"]:
                if _sizes(arm.unfinished) != state["done"][name]:
                    raise ValueError(f"the files in {arm.unfinished} are not what they were")
                self.unseen |= {name: state["unseen"][name]} if name in state["unseen"] else {}
        before = [one for one in state.get("machines", ()) if one not in self.machines]
        self.machines = [*before, *self.machines]
        self.n_training_steps = state["steps"]
        self.started = time.perf_counter() - state["seconds"]

    def is_finite(self) -> bool:
        """Yes: an arm that is not goes on beside the others, as it would alone."""
        return True


def _facts(arm: LockstepRun) -> dict[str, Any]:
    plan = arm.observed
    acting = [plugin for plugin, _ in plan.plugins if not plugin.observes_only]
    sae = arm.setup.sae_config.to_dict()
    return {
        "settings": {**vars(arm.setup.settings), "activation_cache": None},
        "sae": {name: value for name, value in sae.items() if name != "metadata"},
        "plugins": [
            {"name": p.name, "state_version": p.state_version, **options.model_dump(mode="json")}
            for p, options in plan.plugins
        ],
        "training": plan.training.model_dump(mode="json"),
        "untrained": arm.untrained,
        "tuning_tokens": arm.tuning_tokens,
        "code": of_code((), acting),
    }


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


class LockstepCheckpoints(Checkpoints):
    """When arms that train together are saved, and where they go on.

    Signals end the step in progress, have a checkpoint written, and are then answered by whoever
    would have answered them.
    """

    def __init__(self, folder: Path, every: str) -> None:
        """Read the checkpoint in a folder, if there is one.

        Raises:
            StateError: it is damaged.
        """
        super().__init__(folder, every=every, keep=1, resume=True)
        self.signals = Waiting()

    @contextmanager
    def begin(self, arms: Sequence[LockstepRun]) -> Iterator[None]:
        """Have the folder for these arms while this is open."""
        with ExitStack() as stack:
            self._take_folder(stack)
            write(self.folder / NAMES, json.dumps([arm.name for arm in arms]))
            yield

    @property
    def goes_on(self) -> bool:
        """Whether there is something to go on from."""
        return self.saved is not None

    def done(self, arms: Sequence[LockstepRun]) -> list[str]:
        """The names of those that have nothing left to train on.

        Raises:
            StateError: that is not to be found out.
        """
        if self.saved is None:
            return []
        with self._fitting():
            running = self.saved["trainers"][0]["running"]
            known = self.saved["facts"][0]["arms"]
            # without those that are in their places, or that nobody wants any more
            self.saved["facts"] = [{"arms": {arm.name: known[arm.name] for arm in arms}}]
            return [arm.name for arm in arms if arm.name not in running]

    def take(self, group: Group) -> None:
        """Keep the state of these arms, and put them where they were.

        Raises:
            StateError: the checkpoint is of other arms, or of other data or code.
        """
        stream, settings = group.data_provider, group.setup.settings
        self.shards, self.seed = settings.data_shards, settings.seed
        self.check(group)
        self.follow(stream)
        self.joined(group)
        if self.saved is not None:
            self._resumed(self.saved)

    def between_steps(self, group: Group) -> None:
        """Write a checkpoint if one is due, or if a signal waits, which is answered then."""
        step = group.n_training_steps
        if step > 0 and self._is_due(step):
            self.write()
        self.signals.answer(lambda: None if self.step == step else self.write())
