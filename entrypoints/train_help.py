"""What `sae-plugins train --help` prints; no slow imports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sae_plugins.entrypoints import terminal
from sae_plugins.entrypoints.fields import shown
from sae_plugins.settings.flags import Flag, all_flags

_INTRODUCTION = """\
usage: sae-plugins train [--plugin NAME]... [--recipe NAME|FILE.yaml] [flags]

Train a sparse autoencoder with plugins, on any SAELens architecture. With no --model_name it
trains offline on the embedded world, a small language model that comes with the package.

examples:
  sae-plugins train --recipe hybrid-order-demo
  sae-plugins train --recipe hybrid-order-demo --reorder.interval 50 --without input-norm-l1
  sae-plugins train --recipe hybrid-order-demo --seed 1 --output_path runs/demo-1
  sae-plugins train --plugin reorder --reorder.start 200 --model_name synthetic:toy
  sae-plugins train --recipe runs/demo-1/run.yaml --output_path runs/again   # the same, bitwise
  sae-plugins train --resume runs/demo-1                   # it was interrupted: go on, bitwise
  sae-plugins train --plugin hybrid-order --model_name gpt2 --hook_name blocks.6.hook_resid_post \\
      --dataset_path NeelNanda/pile-10k --d_sae 6144 --training_tokens 10_000_000

Ctrl-C and SIGTERM end the step in progress and write a checkpoint; a second one stops at once.
A method's settings override the defaults, a recipe's those, and flags override all of them.
"""

_PLUGIN_OPTIONS = """\
the plugins' options:
  --MECHANISM.OPTION VALUE, as in --reorder.interval 250. `sae-plugins plugins list` shows the
  plugins, and `sae-plugins plugins show reorder` the options of one.
"""

GROUPS = {
    "run": "what to run:",
    "training": "training settings that SAELens lacks (a method may set them):",
    "resuming": "checkpoints to go on from (SAELens' own, --n_checkpoints, are SAEs to look at):",
    "runner": "SAELens' flags, with SAELens' defaults; the embedded world has some of its own:",
    "sae": "SAELens' flags of the SAE:",
    "synthetic": "SAELens' flags for --model_name synthetic:PRESET only:",
    "logger": "SAELens' flags of logging to Weights & Biases (off unless --log_to_wandb):",
}


def help_text(width: int | None = None) -> str:
    """What `sae-plugins train --help` prints."""
    width = min(width or terminal.width(), 120)
    flags = all_flags().values()
    sections = [_INTRODUCTION]
    for group, title in GROUPS.items():
        lines = [_help_line(flag, width) for flag in flags if flag.group == group]
        sections.append("\n".join([title, *lines, ""]))
        if group == "training":
            sections.append(_PLUGIN_OPTIONS)
    return "\n".join(sections)


def _help_line(flag: Flag, width: int) -> str:
    kind = flag.type_name if len(flag.type_name) < 24 else "WORD"
    kind = {"list[str]": "NAME", "list[int|none]": "N..", "list[int]": "N.."}.get(kind, kind)
    left = f"  --{flag.name} {kind}"
    own = f" [{_family(flag.architectures)}]" if flag.architectures else ""
    choices = f": {', '.join(flag.choices)}" if kind == "WORD" else ""
    default = "" if flag.default in (None, (), "") else f" (default {shown(flag.default)})"
    if flag.group in ("run", "training", "resuming"):
        text = f"{flag.help}{choices}{default}"
        return terminal.in_columns(left, text, 42, width - 42)
    text = flag.help.split(". ")[0].rstrip(".").removeprefix("The ")
    text = f"{text[:1].lower() if text[1:2].islower() else text[:1]}{text[1:]}"
    room = width - 2 - max(41, len(left)) - len(own) - len(default)
    return f"{left:<41} {textwrap.shorten(text, max(room, 20), placeholder='...')}{default}{own}"


def _family(names: Sequence[str]) -> str:
    return "topk kinds" if len(names) == 4 and "topk" in names else ", ".join(names)
