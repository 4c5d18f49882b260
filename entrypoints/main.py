"""The `sae-plugins` command; each command is a module beside this one, imported when it runs."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from sae_plugins.base import clock  # noqa: F401 - which begins to count here
from sae_plugins.base.children import SAFE_PATH, environment
from sae_plugins.base.errors import Paused, Problems, SaePluginsError, did_you_mean, reason
from sae_plugins.base.patches import replaced
from sae_plugins.base.secrets import hidden, without_secrets
from sae_plugins.base.started import started
from sae_plugins.entrypoints.command import Command
from sae_plugins.entrypoints.help import help_text
from sae_plugins.entrypoints.terminal import Stream
from sae_plugins.settings.command_line import Line, parse
from sae_plugins.settings.flags import Flag
from sae_plugins.settings.suggestions import unknown_flag

COMMANDS = {
    "train": "train an SAE",
    "features": "look at the features of an SAE",
    "evaluate": "evaluate SAEs",
    "study": "compare methods",
    "upload": "share SAEs",
    "cache": "show or remove what is kept of language models",
    "plugins": "list or show plugins, or begin one",
    "recipes": "list or show recipes",
    "completion": "complete commands, flags and names in bash or zsh",
}
"""The commands, each with what it does, so that help imports none of them."""
_GO_ON = (["evaluate"], ["study"], ["upload"])
"""What does only what is missing when it is called again; `train` says itself how to go on."""
_ENDING = {signal.SIGTERM: KeyboardInterrupt, signal.SIGUSR1: Paused}
"""What signals raise that would kill this process."""
_ON_RANKS = ("train", "study run")
"""What several processes, which torchrun starts, do together."""
_OF_PATHS = (
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
"""The errors of a path that cannot be used, which is for the user to change."""
_NO_HOME = "Could not determine home directory."
"""What `Path.expanduser` says of a user that is unknown."""
_EXAMPLES = """\
  sae-plugins train --recipe hybrid-order-demo      train offline, on the embedded world
  sae-plugins train --help                          all flags, SAELens' own included
  sae-plugins features runs/demo                    a page that shows what each feature fires on
  sae-plugins evaluate runs/demo --preset quick     SAEBench's evaluations, tables and figures
  sae-plugins evaluate --help                       suites, presets, seeds, and where data come from
  sae-plugins study run quick                       does it help? verdicts with intervals, a report
  sae-plugins upload runs/demo me/saes --dry_run    what would go to the Hugging Face Hub
  sae-plugins cache list                            what is kept on disk, and what it is made from
  sae-plugins plugins list                          the installed plugins and methods
  sae-plugins plugins show hybrid-order             options, settings and the paper's tables
  sae-plugins recipes list                          the packaged recipes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    0: done. 1: training or an evaluation failed, or what was printed is lost. 2: the user should
    change something. 75: a scheduler's signal, or `--max_time`, has stopped it, and it goes on by
    the same command. 130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = " ".join(["sae-plugins", *(word for word in words[:1] if word in COMMANDS)])
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    with replaced(sys, stdout=out, stderr=err):
        code = _answered(words, name)
        out.flush()
        if out.lost and not isinstance(out.lost, BrokenPipeError):  # `... | head` has seen enough
            print(f"{name}: error: standard output: {reason(out.lost)}", file=sys.stderr)
            code = code or 1
        err.flush()
    return code


def _answered(words: list[str], name: str) -> int:
    """Run the command line, and say in sentences what goes wrong; the exit code."""
    try:
        with environment(**SAFE_PATH), hidden(), _terminations():
            return _run(words)
    except SaePluginsError as error:
        for sentence in error.args:
            print(f"{name}: error: {without_secrets(str(sentence))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        goes_on = "; the same command goes on from there" if words[:1] in _GO_ON else ""
        if isinstance(error, Paused) and words[:1] in (["train"], *_GO_ON):
            print(f"{name}: paused{goes_on}", file=sys.stderr)
            return error.exit_code
        print(f"{name}: interrupted{goes_on}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if str(error) != _NO_HOME:
            raise
        path = next((word for word in words if "~" in word), "a path that begins with ~")
        print(f"{name}: error: {path}: no such user has a home folder here", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _OF_PATHS or not error.filename:
            raise
        sentence = f"{_origin(words, str(error.filename))}: {reason(error)}"
        print(f"{name}: error: {without_secrets(sentence)}", file=sys.stderr)
        return 2


@contextmanager
def _terminations() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, unless somebody answers it already.

    So does SIGUSR1, which schedulers send to what is to go on later.
    """
    is_main = threading.current_thread() is threading.main_thread()
    ours = [n for n in _ENDING if is_main and signal.getsignal(n) is signal.SIG_DFL]

    def ended(number: int, frame: FrameType | None) -> None:
        raise _ENDING[signal.Signals(number)]

    for each in ours:
        signal.signal(each, ended)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _origin(words: list[str], path: str) -> str:
    """A path that cannot be used, after the flag that it comes from."""
    command, rest = found(words)
    line = parse(rest, command.flags(), Problems(), operands=bool(command.operand))
    texts = dict.fromkeys(line.operands, "")
    for name, value in line.given.items():
        texts |= {str(text): f"--{name} " for text in (value if type(value) is list else [value])}
    text = max((text for text in texts if text in path), key=len, default="")
    return texts.get(text, "") + (path if len(path) < 100 else f"{path[:60]}...")


def _run(words: list[str]) -> int:
    if words[:2] == ["completion", "words"]:  # which the shell asks for
        from sae_plugins.entrypoints import completion

        print(*completion.words(words[2:], found), sep="\n")
        return 0
    command, rest = found(words)
    if any(word in ("-h", "--help") for word in rest):
        print(help_text(command))
        return 0
    problems, flags = Problems(), command.flags()
    rank, size = started()
    if size > 1 and command.name not in _ON_RANKS:
        if rank == 0:
            problems.add(
                f"sae-plugins {command.name} runs in one process, and {size} were started: leave "
                "torchrun out"
            )
        problems.stop()
        return 2
    line = parse(rest, flags, problems, operands=bool(command.operand))
    for name in dict.fromkeys(line.repeated if rank == 0 else ()):
        note = f"note: --{name} is given more than once; the last one counts"
        print(f"sae-plugins {command.name}: {note}", file=sys.stderr)
    if not command.owners:
        for name in (*line.unknown, *line.options):
            problems.add(unknown_flag(name, flags, command=command.name))
    if not all(map(str.strip, line.operands)):
        problems.add(f"what stands for {command.operand} is empty: is a shell variable not set?")
        line.unclear += [text for text in line.operands if not text.strip()]
        line.operands = [text for text in line.operands if text.strip()]
    one = command.operand and "..." not in command.operand and not line.unclear
    if one and len(line.operands) != 1:
        problems.add(f"give one {command.operand}: sae-plugins {command.name} {command.operand}")
    if command.run is None:
        problems.stop()
        print(help_text(command))
        return 0
    return command.run(line, problems)


def found(words: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that these words begin with, and the words after it.

    Raises:
        SaePluginsError: there is none.
    """
    command, rest = (loaded(words[0]) if words[:1] and words[0] in COMMANDS else root()), [*words]
    if command.name:
        rest.pop(0)
    while command.actions and rest and not rest[0].startswith("-"):
        below = command.below(rest[0])
        if below is None:
            known = [each.name.split()[-1] for each in command.actions]
            near = did_you_mean(rest[0], known, f"{command.name} ".lstrip())
            whole = f"{command.name} {rest[0]}".strip()
            raise SaePluginsError(f"there is no command {whole!r}: {near}")
        command, rest = below, rest[1:]
    return command, rest


def loaded(name: str) -> Command:
    """The command of this name, with all below it."""
    module = importlib.import_module(f"sae_plugins.entrypoints.{name}")
    command: Command = module.COMMAND
    return command


def root() -> Command:
    """`sae-plugins` itself."""
    version = Flag("version", "bool", "print the version, and nothing else", False)
    return Command(
        "",
        "Train sparse autoencoders with plugins, on SAELens, and evaluate them",
        _version_or_help,
        examples=_EXAMPLES,
        flags=lambda: {"version": version},
        actions=tuple(Command(*command) for command in COMMANDS.items()),
    )


def _version_or_help(line: Line, problems: Problems) -> int:
    problems.stop()
    if line.given.get("version"):
        from importlib.metadata import version

        print(f"sae-plugins {version('sae-plugins')}")
    else:
        print(help_text(root()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
