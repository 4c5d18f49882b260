"""Which plugins run, and with which options."""

from pydantic import Field

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
