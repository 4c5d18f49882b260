"""The `sae-plugins` command; each subcommand is a module beside this one, imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sae_plugins.base.errors import SaePluginsError

_DESCRIPTION = "Train sparse autoencoders with plugins, on SAELens, and evaluate them."
_EXAMPLES = """\
examples:
  sae-plugins train --recipe hybrid-order-demo train offline, on the embedded world
  sae-plugins train --help                     all flags, SAELens' own included
  sae-plugins evaluate runs/demo --preset quick   SAEBench's evaluations, tables and figures
  sae-plugins evaluate --help                  suites, presets, seeds, and where data come from
  sae-plugins study run quick                  does it help? verdicts with intervals, a report
  sae-plugins upload runs/demo me/saes --dry_run  what would go to the Hugging Face Hub
  sae-plugins plugins list                     the installed plugins and methods
  sae-plugins plugins show hybrid-order        options, settings and the paper's tables
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-plugins",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("train", add_help=False, help="train an SAE", allow_abbrev=False)
    commands.add_parser("evaluate", add_help=False, help="evaluate SAEs", allow_abbrev=False)
    commands.add_parser("study", add_help=False, help="compare methods", allow_abbrev=False)
    commands.add_parser("upload", add_help=False, help="share SAEs", allow_abbrev=False)
    plugins = commands.add_parser("plugins", help="list or show plugins", allow_abbrev=False)
    actions = plugins.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the installed plugins and methods, one a line")
    show = actions.add_parser("show", help="options, requirements, and a method's tables")
    show.add_argument("name", metavar="NAME")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    0: done. 1: training or an evaluation failed. 2: the user should change something. 130:
    interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = " ".join(["sae-plugins", *arguments[:1]])
    try:
        return _run(arguments)
    except SaePluginsError as error:
        for sentence in error.args:
            print(f"{command}: error: {sentence}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        sys.stderr.close()
        return 0


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:  # its flags are many, and not argparse's
        from sae_plugins.entrypoints import train

        return train.main(arguments[1:])
    if arguments[:1] == ["evaluate"]:  # some flags belong to the suites
        from sae_plugins.entrypoints import evaluate

        return evaluate.main(arguments[1:])
    if arguments[:1] == ["study"]:
        from sae_plugins.entrypoints import study

        return study.main(arguments[1:])
    if arguments[:1] == ["upload"]:
        from sae_plugins.entrypoints import upload

        return upload.main(arguments[1:])
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from importlib.metadata import version

        print(f"sae-plugins {version('sae-plugins')}")
        return 0
    if parsed.command == "plugins":
        from sae_plugins.entrypoints import plugins

        return plugins.show(parsed.name) if parsed.action == "show" else plugins.list_all()
    parser.print_help()
    return 0 if not arguments else 2


if __name__ == "__main__":
    sys.exit(main())
