"""Which plugins run, and with which options."""

import sys
from pathlib import Path

import pytest
from pydantic import Field

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.framework.plugin import Plugin
from sae_plugins.settings.choice import option_value
from sae_plugins.settings.settle import settle


def test_options_are_read_as_their_types_have_them():
    class Odd(Plugin):
        name = "odd"

        class Options(Plugin.Options):
            maybe: int | None = Field(1)
            text: str = Field("")
            many: list[int] = Field([])

    assert option_value(Odd.Options, "maybe", "none") is None
    assert option_value(Odd.Options, "maybe", "3") == 3
    assert option_value(Odd.Options, "text", "none") == "none"
    assert option_value(Odd.Options, "many", "[1, 2]") == [1, 2]
    assert option_value(Odd.Options, "nothing", "x") == "x"


def test_the_guard_is_there_once_and_can_be_left_out():
    def chosen(flags):
        return [plugin.name for plugin, _ in settle(flags).plan.plugins]

    assert chosen({}) == ["nan-guard"]
    assert chosen({"plugin": ["nan-guard", "reorder"]}) == ["nan-guard", "reorder"]
    assert chosen({"without": ["nan-guard"]}) == []
    assert chosen({"recorder.every": "5"}) == ["nan-guard", "recorder"]


def test_options_of_a_plugin_that_cannot_be_imported_are_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sae_plugins]\nbroken = no_such_module:Broken\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(SaePluginsError) as caught:
        settle({"plugin": ["broken"], "broken.at": "5", "seed": 1})
    (said,) = caught.value.args
    assert said.startswith("plugin 'broken' of broken 1.0 cannot be imported")
