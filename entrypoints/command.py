"""What a command is: what may follow it, what help says of it, and what it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag

ELSEWHERE = {
    "help": "did you mean `sae-plugins --help`?",
    "version": "did you mean `sae-plugins --version`?",
    "recipes run": "did you mean `sae-plugins train --recipe RECIPE`?",
    "recipes train": "did you mean `sae-plugins train --recipe RECIPE`?",
    "plugins install": "plugins come with Python packages, which `pip install` installs",
}
"""What to say about words that are no commands here, but may be taken for some."""


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
        """The action of this name; None if there is none.

        Raises:
            SaePluginsError: it is what others call something that has another name here.
        """
        whole = f"{self.name} {word}".lstrip()
        if meant := ELSEWHERE.get(whole) or (self.name == "study" and _run_of(word)):
            raise SaePluginsError(f"there is no command {whole!r}: {meant}")
        return next((each for each in self.actions if each.name.split()[-1] == word), None)


def _run_of(study: str) -> str:
    from sae_plugins import studies

    is_one = study.endswith(".yaml") or study in studies.names()
    return f"did you mean `sae-plugins study run {study}`?" if is_one else ""
