"""What to say about a flag, or about an option of a plugin or a suite, that there is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sae_plugins.base.errors import CLEAR, did_you_mean, nearest
from sae_plugins.settings.flags import REFUSED

ELSEWHERE = {
    "batch_size": ("train_batch_size_tokens",),
    "epochs": ("training_tokens",),
    "l0": ("target_l0", "k"),
    "l1": ("l1_coefficient",),
    "layer": ("hook_name",),
    "learning_rate": ("lr",),
    "sae": ("architecture",),
    "steps": ("training_tokens",),
    "width": ("d_sae",),
}
"""What other tools call flags, and which of ours say that."""


@dataclass(frozen=True)
class Owners:
    """Plugins, or suites: what has options that are written --NAME.OPTION.

    Attributes:
        kind: "plugin" or "suite", which is also the flag that chooses one.
        chosen: options by name, of those that are chosen.
        installed: options by name, of all.
        left_out: names of those that --without leaves out.
        replaced: names of those that the flag which chooses one would replace: a recipe's.
    """

    kind: str = "plugin"
    chosen: Mapping[str, Iterable[str]] = field(default_factory=dict)
    installed: Mapping[str, Iterable[str]] = field(default_factory=dict)
    left_out: Collection[str] = ()
    replaced: Sequence[str] = ()

    def did_you_mean(self, flags: Sequence[str]) -> str:
        """A question that names flags and options, these with what else they need."""
        owners = [flag.partition(".")[0] for flag in flags if "." in flag]
        strangers = [owner for owner in owners if owner not in self.chosen]
        needed = (
            " of the same name" if len(flags) > 1 else "".join(f" {owner}" for owner in strangers)
        )
        also = f" with --{self.kind}{needed}" if strangers else ""
        return f"did you mean {' or '.join(repr(f'--{flag}') for flag in flags)}{also}?"


def unknown_flag(
    name: str, flags: Iterable[str], owners: Owners | None = None, command: str = "train"
) -> str:
    """What to say about a flag that there is not, and that may be an option without its owner.

    Args:
        name: of the flag.
        flags: those that there are.
        owners: what has options.
        command: whose flags they are.
    """
    if name == "version":
        return "--version goes to the program itself: `sae-plugins --version`"
    if name in REFUSED:
        return f"--{name} is not available: {REFUSED[name]}"
    owners, flags = owners or Owners(), [*flags, "help"]
    wrong = f"there is no flag --{name}"
    name = name.lstrip(".")  # an option without its owner
    owner = name.replace("_", "-").lower()
    if owners.chosen.get(owner):
        options_of = ", ".join(f"--{owner}.{option}" for option in owners.chosen[owner])
        return f"{wrong}: the options of {owner} are {options_of}"
    if owner in owners.installed:
        return f"{wrong}: did you mean '--{owners.kind} {owner}'?"
    options = {
        option: _having(option, owners.chosen) for has in owners.chosen.values() for option in has
    }
    meant = (
        _having(name, owners.chosen)
        or [flag for flag in ELSEWHERE.get(name.replace("-", "_").lower(), ()) if flag in flags]
        or nearest(name, flags, CLEAR)
        or _having(name, owners.installed)
        or [
            flag for near in nearest(name, [*flags, *options]) for flag in options.get(near, [near])
        ]
    )
    cure = owners.did_you_mean(meant) if meant else ""
    return f"{wrong}: {cure or f'`sae-plugins {command} --help` lists all flags'}"


def unknown_option(key: str, owners: Owners) -> str:
    """What to say about an option, such as "reorder.interval", whose owner is not chosen."""
    name, _, option = key.partition(".")
    elsewhere = _having(option, owners.chosen) or _having(option, owners.installed)
    if name in owners.installed and elsewhere and not owners.installed[name]:
        meant = owners.did_you_mean(elsewhere)
        return f"--{key}: {name!r} has no options of its own: {meant}"
    if name in owners.left_out:
        return f"--{key}: --without leaves the plugin {name!r} out; leave the option out, too"
    if name in owners.installed:
        again = f" (--{owners.kind} replaces the recipe's)" if owners.replaced else ""
        return (
            f"--{key}: the {owners.kind} {name!r} is not chosen: add --{owners.kind} "
            f"{' '.join([*owners.replaced, name])}{again}; or leave the option out"
        )
    wrong = f"--{key}: no {owners.kind} {name!r} is installed"
    for known in (owners.chosen, owners.installed):
        for owner in nearest(name, known)[:1]:
            has = list(known[owner])
            near = [option] if option in has else nearest(option, has, CLEAR)
            if near:
                return f"{wrong}: {owners.did_you_mean([f'{owner}.{one}' for one in near])}"
            return f"{wrong}: did you mean {owner!r}?" + f" It has {', '.join(has)}" * bool(has)
    return f"{wrong}: {_how_to_add(name, owners)}"


def _how_to_add(name: str, owners: Owners) -> str:
    """What to say about an owner that is like none."""
    if owners.kind != "plugin":
        return did_you_mean(name, owners.installed)
    chosen = [own for own in owners.chosen if own != "nan-guard"]  # which nobody has to choose
    return (
        "--plugin FILE.py:CLASS adds one from a file, --plugin NAME one of those that "
        "`sae-plugins plugins list` lists" + (f"; chosen: {', '.join(chosen)}" if chosen else "")
    )


def _having(option: str, known: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{name}.{option}" for name, options in known.items() if option in options]
