"""What a command is: what may follow it, what help says of it, and what it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sae_plugins.base.errors import Problems
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag


@dataclass(frozen=True)
class Command:
    """A command of `sae-plugins`.

    Attributes:
        name: the words after `sae-plugins`.
        summary: one line, for lists of commands.
        run: does it, with a line and what is known to be wrong in it; gives the exit code. None for
            a command that only has actions.
        operand: what stands without a flag, as help shows it; with "..." there may be several.
        about: what it does, for help.
        examples: for help, a line each.
        notes: more, for help.
        flags: its flags by name.
        groups: titles, or whole sections, of help by the flags' groups, in the order of help.
        lists: more sections of help: names with what they are, by title.
        owners: what has options, "plugin" or "suite": `run` then looks at unknown flags, too.
        actions: the commands below it.
    """

    name: str
    summary: str
    run: Callable[[Line, Problems], int] | None = None
    operand: str = ""
    about: str = ""
    examples: str = ""
    notes: str = ""
    flags: Callable[[], Mapping[str, Flag]] = dict
    groups: Mapping[str, str] = field(default_factory=lambda: {"": "flags:"})
    lists: Callable[[], Mapping[str, Mapping[str, str]]] = dict
    owners: str = ""
    actions: tuple[Command, ...] = ()

    def below(self, word: str) -> Command | None:
        """The action of this name."""
        return next((each for each in self.actions if each.name.split()[-1] == word), None)
