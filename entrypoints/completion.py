"""Completion of command lines in bash and zsh: scripts that ask this program what may come next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sae_plugins.base.errors import Problems
from sae_plugins.entrypoints.command import Command
from sae_plugins.settings.command_line import Line

_SCRIPTS = {
    "bash": """\
_sae_plugins() {
    local IFS=$'\\n'
    COMPREPLY=($(sae-plugins completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _sae_plugins sae-plugins
""",
    "zsh": """\
#compdef sae-plugins
_sae_plugins() {
    local -a found
    found=("${(@f)$(sae-plugins completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found ]]; then compadd -- $found; else _files; fi
}
compdef _sae_plugins sae-plugins
""",
}


def _run(line: Line, problems: Problems) -> int:
    shell = "".join(line.operands[:1])
    if not problems and shell not in _SCRIPTS:
        problems.add(f"there is no completion for {shell!r}, only for {' and '.join(_SCRIPTS)}")
    problems.stop()
    print(_SCRIPTS[shell], end="")
    return 0


COMMAND = Command(
    "completion",
    "complete commands, flags and names in bash or zsh",
    _run,
    "SHELL",
    about="Print a script that lets the shell complete commands, flags, and the names of plugins, "
    "suites,\nrecipes and studies. SHELL is bash or zsh.",
    examples="""\
  eval "$(sae-plugins completion bash)"        in ~/.bashrc
  eval "$(sae-plugins completion zsh)"         in ~/.zshrc, after compinit
""",
)


def words(
    typed: Sequence[str], found: Callable[[Sequence[str]], tuple[Command, list[str]]]
) -> list[str]:
    """What the last of these words, which may be empty, can become; nothing for files.

    Args:
        typed: what follows `sae-plugins`.
        found: the command that words begin with, and the rest of them.
    """
    *before, last = [word for word in typed if word != "="] or [""]  # as bash parts --flag=value
    command, rest = found(before)
    flags = command.flags()
    place = max((n for n, word in enumerate(rest) if word.startswith("--")), default=None)
    if last.startswith("-"):
        known = [f"--{name}" for name in ("help", *flags)]
        known += [f"--{option}" for option in _options(command, last[2:])]
    elif command.actions and not rest:
        known = [each.name.split()[-1] for each in command.actions]
    elif place is None:
        known = _names(command.operand)
    else:
        flag = flags.get(rest[place][2:])
        takes_more = flag is not None and (flag.is_list or place == len(rest) - 1)
        known = [*flag.choices, *_names(flag.name)] if flag is not None and takes_more else []
    return sorted(word for word in known if word.startswith(last))


def _options(command: Command, begun: str) -> Iterable[str]:
    """The options of plugins or suites, once enough of a name is typed to tell whose."""
    from sae_plugins.eval_suites import registry as suites
    from sae_plugins.framework import registry as plugins

    if not command.owners or not begun:
        return []
    options = suites.options() if command.owners == "suite" else plugins.options()
    return [f"{name}.{option}" for name, has in options.items() for option in has]


def _names(kind: str) -> list[str]:
    """The names that there are of what a flag or an operand takes."""
    from sae_plugins import recipes, studies
    from sae_plugins.eval_suites import registry as suites
    from sae_plugins.framework import registry as plugins

    if kind in ("plugin", "without", "PLUGIN"):
        return list(plugins.installed())
    if kind == "suite":
        return suites.names()
    if kind in ("recipe", "RECIPE"):
        return recipes.names()
    if kind == "STUDY":
        return studies.names()
    return list(_SCRIPTS) if kind == "SHELL" else []
