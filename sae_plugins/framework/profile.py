"""Where the time of a run goes, and its memory: parts of it that are measured while they run.

Parts lie within one another, and time counts for the innermost one alone. The clock is read
whenever a part begins or ends, and what has passed since the last reading belongs to the part that
was innermost. So all parts, with `other` for the time outside of them, add up to the whole.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sae_plugins.base.patches import replaced
from sae_plugins.base.saelens import batches_watched
from sae_plugins.framework.plugin import Plugin, Stateful

if TYPE_CHECKING:
    import torch

Part = tuple[str, str]
"""What is measured, and which part of it: a plugin and its event, or "SAE step" and "backward"."""
STEP, BATCHES = "SAE step", "batches"
FORWARD, OTHER = (STEP, "forward"), ("other", "")
SAE_HELD = "SAE and Adam's moments"


@dataclass
class Spent:
    """What a part took.

    Attributes:
        nanoseconds: without the parts inside it.
        calls: how often it ran.
        peak: bytes of CUDA memory on top of those at its start, at most, the parts inside included.
    """

    nanoseconds: int = 0
    calls: int = 0
    peak: int = 0


@dataclass
class _Open:
    """A part that is running; a whole one has no parts inside."""

    part: Part
    is_whole: bool = False
    base: int = 0
    high: int = 0


class Profile:
    """Measures one run, from now on; give it to `sae_plugins.plugins(profile=...)`.

    On CUDA it waits for the devices whenever a part begins or ends, which slows the run. It changes
    nothing else. What other threads do at the same time is not counted.

    Attributes:
        spent: what each part took, without the parts that are running.
        held: bytes of the tensors that each plugin, and the SAE, has when the training ends.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Begin to measure, by a clock in nanoseconds."""
        self.spent: dict[Part, Spent] = {}
        self.held: dict[str, int] = {}
        self._clock, self._thread = clock, threading.get_ident()
        self._devices: tuple[torch.device, ...] = ()
        self._open = [_Open(OTHER)]
        self._trainers: list[weakref.ref[Any]] = []
        self._began = self._read = clock()

    @contextmanager
    def part(self, part: Part, *, whole: bool = False) -> Iterator[None]:
        """Count the time inside for a part; all of it for one that is `whole`."""
        if self._open[-1].is_whole or threading.get_ident() != self._thread:
            yield
            return
        self._switch()
        opened = _Open(part, whole, *self._memory())
        self._open.append(opened)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()
            spent = self._of(part)
            spent.calls += 1
            spent.peak = max(spent.peak, opened.high - opened.base)

    def timed(
        self, part: Part, function: Callable[..., Any], *, whole: bool = False
    ) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.part(part, whole=whole):
                return function(*args, **kwargs)

        return measured

    def _of(self, part: Part) -> Spent:
        return self.spent.setdefault(part, Spent())

    def _switch(self) -> None:
        """The innermost part changes: what has passed is that of the one until now."""
        if self._devices:
            from torch import cuda

            for device in self._devices:
                cuda.synchronize(device)
            high = sum(map(cuda.max_memory_allocated, self._devices))
            for opened in self._open:
                opened.high = max(opened.high, high)
            for device in self._devices:
                cuda.reset_peak_memory_stats(device)
        now = self._clock()
        self._of(self._open[-1].part).nanoseconds += now - self._read
        self._read = now

    def _memory(self) -> tuple[int, int]:
        if not self._devices:
            return 0, 0
        from torch import cuda

        here = sum(map(cuda.memory_allocated, self._devices))
        return here, here

    # -- what is measured of a training --------------------------------------------------------

    @contextmanager
    def open(self) -> Iterator[None]:
        """Measure, while this is open, what makes batches and evaluates, and the backward pass."""
        import torch

        from sae_plugins.resume.mixing import MixingBuffer

        backward = self.timed((STEP, "backward"), torch.Tensor.backward)
        mixed = self.timed((BATCHES, "mixing buffer"), MixingBuffer.__next__)
        with ExitStack() as stack:
            contexts: tuple[AbstractContextManager[None], ...] = (
                batches_watched(self.timed),
                replaced(torch.Tensor, backward=backward),
                replaced(MixingBuffer, __next__=mixed),
            )
            for context in contexts:
                stack.enter_context(context)
            yield

    def watch(self, trainer: Any) -> None:
        """Measure a `PluginTrainer` that was just built, and measures its own forward pass."""
        model: Any = getattr(trainer.data_provider, "model", None)  # of an activation store
        weights = model.parameters() if hasattr(model, "parameters") else ()
        devices = {trainer.sae.device, *(weight.device for weight in weights), *self._devices}
        self._devices = tuple(device for device in devices if device.type == "cuda")
        own: tuple[tuple[Any, str, Part, bool], ...] = (
            (trainer, "step", (STEP, "scaling, clipping, counting"), False),
            (trainer.optimizer, "step", (STEP, "optimizer"), False),
            (trainer, "save_checkpoint", ("checkpoints", "SAELens'"), True),
            (trainer, "evaluator", ("evaluations", "during training"), True),
            (trainer.checkpoints, "write", ("checkpoints", "to go on from"), True),
        )
        for owner, name, part, whole in own:
            if getattr(owner, name, None) is not None:
                setattr(owner, name, self.timed(part, getattr(owner, name), whole=whole))
        end = trainer.set_final_sae_metadata
        self._trainers.append(weakref.ref(trainer))

        def ended() -> None:
            end()
            self.count_held()

        trainer.set_final_sae_metadata = ended

    def count_held(self) -> None:
        """Note what the SAEs and the plugins keep now."""
        for number, reference in enumerate(self._trainers, start=1):
            suffix = "" if number == 1 else f"-{number}"
            if (trainer := reference()) is not None:
                self.held |= {name + suffix: count for name, count in held(trainer).items()}

    # -- what came of it -----------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it has been measuring, at its last look at the clock."""
        return (self._read - self._began) / 1e9

    def measured(self) -> dict[Part, Spent]:
        """What each part has taken until now."""
        self._switch()
        return {part: replace(spent) for part, spent in self.spent.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything until now, for `summary.json`: parts in the order in which they began.

        `peak_bytes` is None where nothing is on CUDA.
        """
        measured = self.measured()
        rows = [
            {
                "part": part,
                "detail": detail,
                "seconds": spent.nanoseconds / 1e9,
                "calls": spent.calls,
                "peak_bytes": spent.peak if self._devices else None,
            }
            for (part, detail), spent in measured.items()
        ]
        return {"seconds": self.seconds, "parts": rows, "held_bytes": dict(self.held)}


def held(trainer: Any) -> dict[str, int]:
    """Bytes of the tensors that the SAE in a `PluginTrainer`, and each plugin of it, has."""
    found = {plugin.name: _bytes(vars(plugin)) for plugin in trainer.host.plugins}
    parameters = list(trainer.sae.parameters())
    gradients = [parameter.grad for parameter in parameters]
    sae = _bytes([parameters, gradients, list(trainer.optimizer.state.values())])
    return {SAE_HELD: sae, **{name: count for name, count in found.items() if count}}


def _bytes(value: Any) -> int:
    """Of all tensors inside a value, each storage once; other plugins have their own."""
    import torch

    storages: dict[int, int] = {}
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor) and item.layout == torch.strided:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, Mapping):
            left += item.values()
        elif isinstance(item, (list, tuple, set)):
            left += item
        elif isinstance(item, Stateful) and not isinstance(item, Plugin):
            left.append(vars(item))
    return sum(storages.values())
