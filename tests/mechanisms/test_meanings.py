"""What a mechanism of ours logs and summarises has a phrase that says what it is."""

from collections.abc import Iterator

import pytest
from expected import MECHANISMS

from sae_plugins import Plugin, hookimpl, plugins
from sae_plugins.framework import registry
from sae_plugins.testing import tiny_batches, tiny_sae, tiny_trainer

BATCHES = tiny_batches(steps=20)


class Listener(Plugin):
    """Keeps the names of what the plugins before it log and summarise."""

    name = "listener"
    heard: set[str]

    @hookimpl
    def attached(self):
        self.heard = set()

    @hookimpl
    def step_ended(self, run):
        self.heard |= run.metrics.keys()

    @hookimpl
    def features_changed(self, run):
        self.heard |= run.metrics.keys()

    @hookimpl
    def training_ended(self, run):
        self.heard |= run.summary.keys()


def said_by(name: str) -> Iterator[str]:
    """What the mechanism logs and summarises of a short run, without "NAME/"."""
    with plugins(name, Listener, options={name: dict(MECHANISMS[name].alone)}, seed=0):
        architecture = MECHANISMS[name].architecture
        trainer = tiny_trainer(tiny_sae(architecture), BATCHES)
        trainer.fit()
    for said in trainer.host.plugins[-1].heard:
        group, _, rest = said.partition("/")
        if group == name:
            yield rest


@pytest.mark.parametrize("name", MECHANISMS)
def test_whatever_it_says_has_a_meaning(name):
    assert set(said_by(name)) <= registry.load(name).meanings.keys()


def test_meanings_are_of_what_is_said():
    rare = {"triggered", "target", "share_at_tau_min", "share_at_tau_max", "nearness"}
    for name in MECHANISMS:
        assert registry.load(name).meanings.keys() - rare <= set(said_by(name)), name
