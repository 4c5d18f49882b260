"""What a plugin and a method are: the classes that authors subclass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from sae_plugins.base.errors import PluginError

if TYPE_CHECKING:
    import torch

    from sae_plugins.framework.architectures import Architecture

CLAIMS = ("activation_gate", "decoder_norm", "encoder", "lr_schedule", "reconstruction_loss")


class Stateful:
    """Something whose attributes are saved with a run's checkpoints, and restored from them.

    Plain values, containers, tensors, numpy arrays, torch generators and objects that are
    themselves stateful need nothing more. Name the rest in `transient`, or override both methods.
    """

    transient: ClassVar[tuple[str, ...]] = ()
    """Attributes that are no state: `attached` or the constructor makes them."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: every attribute but the transient ones, by name."""
        return {name: value for name, value in vars(self).items() if name not in self.transient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept; tensors are filled in place."""
        from sae_plugins.resume.state import restored  # which imports torch

        missing = vars(self).keys() - {"options", *self.transient} - state.keys()
        if missing:
            raise PluginError(
                f"{type(self).__name__} has {', '.join(sorted(missing))}, which the checkpoint "
                "lacks: go on with the version of it that wrote the checkpoint"
            )
        for name, value in state.items():
            setattr(self, name, restored(getattr(self, name, None), value))


class Plugin(Stateful):
    """One mechanism: a class with options whose `hookimpl` methods are events.

    Subclasses set `name` and, where needed, the other class attributes. An instance serves one
    trainer. Its attributes are saved with checkpoints; when a run goes on, they are put back after
    `attached`.

    Attributes:
        name: by which it is chosen, its entry point's.
        requires: plugins that are added, before this one, when this one is chosen.
        after: plugins that come earlier in the order, where they are chosen.
        before: plugins that come later in the order, where they are chosen.
        conflicts: plugins that cannot be combined with this one.
        claims: exclusive resources, out of `CLAIMS`; a second claimant is an error that names both.
        observes_only: it changes nothing in the training, so the SAE's provenance does not mention
            it.
        meanings: a phrase for each metric that it logs and each line that it summarises, by what
            follows "NAME/". It stands in the plugin's figure and in the table at a run's end.
        transient: attributes that are no state: `attached` or the constructor makes them.
        state_version: raise it when the meaning of the saved attributes changes: older checkpoints
            are refused.
        options: the instance's validated `Options`.
        rng: a torch.Generator of the CPU, set by the framework before `attached`. Draw from it,
            never from the global state, so that a further plugin does not change what others draw;
            then move what was drawn: `torch.rand(n, generator=self.rng).to(run.sae.device)`.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[tuple[str, ...]] = ()
    claims: ClassVar[tuple[str, ...]] = ()
    observes_only: ClassVar[bool] = False
    meanings: ClassVar[Mapping[str, str]] = {}
    state_version: ClassVar[int] = 1

    class Options(BaseModel):
        """The plugin's options: pydantic fields with a type, bounds and a description.

        A field's `title`, where there is one, is its symbol in the paper.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    options: Any
    rng: torch.Generator

    def __init__(self, options: Any = None) -> None:
        """Keep validated `Options`; the defaults when None."""
        self.options = self.Options() if options is None else options

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: every attribute but the options and the transient ones."""
        state = super().state_dict()
        state.pop("options", None)
        return state

    @classmethod
    def unsupported(cls, architecture: Architecture, options: Any) -> str | None:
        """Why the plugin cannot work on an architecture with these options; None if it can."""
        return None


class Method:
    """A published method: a named bundle of mechanisms with its paper's settings.

    Subclasses only set these attributes. Everything in them is a default that any flag overrides.
    """

    name: ClassVar[str]
    mechanisms: ClassVar[tuple[str, ...]]
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options by mechanism, where they differ from the mechanism's own defaults."""
    training: ClassVar[Mapping[str, Any]] = {}
    """`TrainingSettings` that belong to the method (accumulation, clip, loss form, decay)."""
    sae_lens: ClassVar[Mapping[str, Any]] = {}
    """SAELens flags that belong to it; `lr_warm_up_fraction` stands for `lr_warm_up_steps`."""
    rows: ClassVar[tuple[PaperRow, ...]] = ()
    """The rows of the paper's tables."""


def check_name(selected: type[Any]) -> None:
    """Refuse a plugin or a method whose name no flag can have."""
    called = getattr(selected, "name", None)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(called)) or called is None:
        raise PluginError(
            f"the name {called!r} of {selected.__name__} must be lower-case words-with-hyphens"
        )


class PaperRow(BaseModel):
    """One row of a paper's table: what it says, and the flags that reproduce it."""

    model_config = ConfigDict(frozen=True)
    table: str
    label: str
    flags: str
    paper: str = ""
    """The paper's number, with its unit; empty for a control that the paper lacks."""
