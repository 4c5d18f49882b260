"""Checkpoints: the whole state of a run, so that it can stop at any moment and go on as it was.

SAELens' own checkpoints (`n_checkpoints`) are SAEs to look at; these are for going on. One file
holds everything that the rest of the training depends on: weights, optimizer, schedules, counters,
plugins, accumulated gradients, the activation buffer, the place in the text, every random state.
It is taken between two steps, when nothing is under way.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_plugins.base.errors import Paused, PluginError, StateError
from sae_plugins.base.files import lock, versions
from sae_plugins.base.identity import Fact
from sae_plugins.base.ranks import ranks
from sae_plugins.base.saelens import (
    begin_reading,
    continued_multi_training,
    data_loader,
    interrupted_runs_unsaved,
    interruption,
    is_synthetic,
    prefetched,
)
from sae_plugins.base.secrets import redacted
from sae_plugins.base.seeds import random_states, set_random_states
from sae_plugins.resume.files import (
    CURE,
    FORMAT,
    checkpoint,
    files,
    interval,
    newest,
    partial_files,
    remove,
    step_of,
)
from sae_plugins.resume.origin import ACCEPTED, Origin, samples
from sae_plugins.resume.replicas import check_replicas
from sae_plugins.resume.resumable import Resumable, has_state
from sae_plugins.resume.signals import Signals, handlers_kept
from sae_plugins.resume.state import changes, check_state
from sae_plugins.resume.written import read_shards, savable, write_together

if TYPE_CHECKING:
    from sae_plugins.resume.shards import Shards
    from sae_plugins.resume.stream import Stream

logger = logging.getLogger(__name__)

_VERSIONS = ("sae-plugins", "sae-lens", "transformer-lens", "torch", "numpy")
_SAMPLES = ("data", "model")
"""Facts of earlier versions, in whose place `made_from` is."""
_ONE_TRAINING = (
    "one `sae_plugins.plugins(checkpoints=...)` context serves one training, and a second one has "
    "begun in it: open another, with another folder"
)

COMPILED_AND_AHEAD = (
    "--prefetch_llm_batches and --compile_sae together cannot be resumed exactly: torch.compile "
    "sets back the random state from which the other thread shuffles; leave one of them out, or "
    "give up exactness with --resume_buffer refill (in Python: rows=False)"
)


class Checkpoints:
    """When the run inside `plugins(checkpoints=...)` is saved, where, and whether it goes on.

    SIGINT and SIGTERM end the step in progress, write a checkpoint and then raise what SAELens
    raises; a second one stops at once. SIGUSR1 and the end of `max_time` do the same. A provider of
    data that is neither SAELens' activation store nor draws from the global random state must have
    `state_dict` and `load_state_dict`, or start by itself where the checkpoint was taken.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: str = "10min",
        keep: int = 2,
        rows: bool = True,
        resume: bool = False,
        accept_changes: bool = False,
        check_ranks: int = 100,
        max_time: str | None = None,
    ) -> None:
        """Describe the checkpoints of one run.

        Args:
            folder: for `step-*.safetensors`; made if it does not exist.
            every: "500" steps or "10min"; "0" for only when the run is interrupted.
            keep: how many of the newest stay.
            rows: keep the activation buffer; without it a checkpoint is small, and a resumed run
                fills its buffer with new text: not the same run.
            resume: go on from the newest whole checkpoint, or start where there is none.
            accept_changes: go on with changed data, model or code, which is noted in the SAE's
                metadata; without it, they are refused.
            check_ranks: steps after which several ranks compare their SAEs; 0 for never.
            max_time: of this process, after which the run pauses: "3h50m"; None for no end.

        Raises:
            SaePluginsError: `max_time` is no length of time.
            PluginError: `every` is no interval, `keep` keeps none, or checkpoints exist that are
                not to be resumed.
            StateError: none of the checkpoints that exist is whole.
        """
        self.folder = Path(folder)
        self.steps, self.seconds = interval(every)
        if keep < 1:
            raise PluginError(f"keep={keep}: the newest checkpoint must stay, so keep 1 or more")
        self.keep, self.rows, self.check_ranks = keep, rows, check_ranks
        self.paused = False
        """Whether the run has stopped to go on later."""
        self.shards, self.seed = 1, 0  # of the run, as `sae_plugins.plugins` says
        self.saved: dict[str, Any] | None = None
        self.path: Path | None = None
        """The newest checkpoint, written or resumed from."""
        if files(self.folder) and not resume:
            raise PluginError(
                f"{self.folder} holds the checkpoints of an unfinished run: resume it, or choose "
                "another folder"
            )
        if resume and ranks().first(bool(files(self.folder))):
            self.path, self.saved = newest(self.folder, ranks())
        self.notes: dict[str, Any] = self.saved["notes"] if self.saved else {}
        """JSON values that are kept with each checkpoint."""
        self.origin = Origin(self.saved, self.path, accept_changes)
        """What the run is made from."""
        self._trainers: list[Resumable] = []
        self._facts: list[dict[str, Any]] = []
        self._began = self._ended = False
        self._stream: Stream | Shards | None = None
        self._stream_facts: dict[str, Any] | None = None
        self._random = self.saved and self.saved["random"]
        self._signals = Signals(max_time)
        self._written = time.monotonic()

    @property
    def step(self) -> int | None:
        """Completed training steps in the newest checkpoint."""
        return None if self.path is None else step_of(self.path)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch over the trainers and activation stores that are built and used inside."""
        with ExitStack() as stack:
            self._take_folder(stack)
            home = threading.get_ident()
            stack.enter_context(data_loader(partial(self._stream_of, home=home)))
            stack.enter_context(prefetched(self._arrived))
            stack.enter_context(continued_multi_training())
            stack.enter_context(interrupted_runs_unsaved())
            stack.enter_context(handlers_kept())
            yield

    def _take_folder(self, stack: ExitStack) -> None:
        """Make the folder and lock it, so that no other run writes its checkpoints there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not ranks().writes:
                return
            busy = PluginError(f"{self.folder}: another run writes its checkpoints there")
            stack.enter_context(lock(self.folder, busy))
        except OSError as error:
            reason = error.strerror or error
            raise PluginError(f"{self.folder} cannot hold checkpoints: {reason}") from error

    # -- what the trainer calls ----------------------------------------------------------------

    def check(self, trainer: Resumable) -> None:
        """Refuse a trainer that is not the one that was saved, before anything of it is used.

        Raises:
            PluginError: lists the differences.
        """
        if self._ended:
            raise PluginError(_ONE_TRAINING)
        number = len(self._facts)
        self._facts.append(redacted(json.loads(json.dumps(trainer.facts(), default=str))))
        if self.saved is not None:
            self._check_settings(self.saved, number, trainer)
        if number == 0:
            self._add({**trainer.made_from(), **samples(trainer.data_provider)})

    def _check_settings(self, saved: Mapping[str, Any], number: int, trainer: Resumable) -> None:
        if number >= len(saved["facts"]):
            raise PluginError(
                f"{self.path} holds the state of {number} SAE(s), and more are being trained now: "
                "build as many"
            )
        self._compare(saved["facts"][number], self._facts[number])
        present = self._versions(trainer)
        changed = changes(saved["versions"], {n: present.get(n) for n in saved["versions"]})
        if changed and number == 0:
            logger.warning("the resumed run may differ in the last digit: %s", "; ".join(changed))

    def joined(self, trainer: Resumable) -> None:
        """A trainer is ready: put it where it was."""
        if self.saved is not None:
            with self._fitting():
                trainer.load_state_dict(self.saved["trainers"][len(self._trainers)])
            if not self._trainers and trainer.n_training_steps != self.step:
                raise StateError(
                    f"{self.path} holds the state after step {trainer.n_training_steps}: give it "
                    "back its name, or remove it to go on with the one before it"
                )
        self._trainers.append(trainer)

    def step_begins(self, trainer: Resumable) -> None:
        """Between two steps: resume the random state, write a checkpoint, obey a signal."""
        if trainer is not self._trainers[0]:
            if trainer.n_training_steps != self._trainers[0].n_training_steps:
                raise PluginError(_ONE_TRAINING)
            return  # trained in lockstep with the first
        if not self._began:
            self._begin(trainer)
        step = trainer.n_training_steps
        is_due = ranks().writes and step > 0 and self._is_due(step)
        stops, pauses, is_due = ranks().agree(self._signals.stops, self._signals.pauses, is_due)
        if stops or pauses:
            self._stop(step, pauses and not stops)
        if ranks().size > 1 and self.check_ranks and (step == 1 or step % self.check_ranks == 0):
            check_replicas(self._trainers, ranks())
        if is_due:
            self.write()

    def _stop(self, step: int, pauses: bool) -> None:
        self._signals.agreed()
        self.write()
        saved = f"; saved in {self.path}" if self.step == step else self._kept()
        logger.warning("stopped after step %d%s", step, saved)
        self.paused = pauses
        raise interruption()

    def read_by_sae_lens(self, provider: Any) -> None:
        """SAELens is about to look for its place in a store's text: count what it reads."""
        if hasattr(provider, "get_data_loader"):
            begin_reading(provider)

    def taken(self, batch: Tensor | dict[str, Tensor]) -> None:
        """A batch has left the queue of prefetched ones, or reached a trainer."""
        if self._stream is not None:
            self._stream.taken(batch)

    def _arrived(self, batch: Tensor | dict[str, Tensor]) -> Any:
        """The batch that training gets of what has left the queue of prefetched ones."""
        return batch if self._stream is None else self._stream.whole(batch)

    def ended(self) -> None:
        """Training has ended: the first signal lets the SAE be saved, the second stops at once."""
        self._ended = True
        self._signals.training_ended()

    def pause_in_the_end(self) -> None:
        """Training has ended, and the SAE is saved: do no more now, if the run is to pause.

        Raises:
            Paused: on all ranks.
        """
        ranks().patiently()  # rank 0 may have uploaded an SAE meanwhile
        (self.paused,) = ranks().agree(self._signals.pauses)
        if self.paused:
            raise Paused

    # -- writing -------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        if self.steps is not None:
            return self.steps > 0 and step % self.steps == 0 and step != self.step
        assert self.seconds is not None
        return time.monotonic() - self._written >= self.seconds > 0

    def write(self) -> None:
        """Write a checkpoint; if it cannot be, the one before it stays and training goes on."""
        step = self._trainers[0].n_training_steps
        path = checkpoint(self.folder, step)
        self._written = time.monotonic()
        if self.shards > 1 and self.step == step:
            return  # it is there, and its shards' files are not replaced one by one
        if not all(trainer.is_finite() for trainer in self._trainers):
            logger.error("no checkpoint at step %d: NaN or infinite weights%s", step, self._kept())
            return
        with nullcontext() if self._stream is None else self._stream.lock:
            reason = write_together(path, self._tree, ranks())
        if reason is not None:
            logger.error("no checkpoint at step %d: %s%s", step, reason, self._kept())
            return
        self.path = path
        if ranks().writes:
            self._remove_old(step)

    def _remove_old(self, step: int) -> None:
        # those of later steps were found to be damaged, and what is partial was killed
        stale = [old for old in files(self.folder) if step_of(old) > step]
        kept = [old for old in files(self.folder) if step_of(old) <= step]
        for old in [*stale, *kept[self.keep :], *partial_files(self.folder)]:
            with suppress(OSError):
                remove(old)

    def _begin(self, trainer: Resumable) -> None:
        """The first step begins: everything that takes part is known, and nothing has moved."""
        self._began = True
        if self.saved is not None:
            self._resumed(self.saved)
        with savable():
            check_state({"trainers": [trainer.state_of_plugins() for trainer in self._trainers]})
        compiled = isroutine(vars(trainer.sae).get("training_forward_pass"))  # the fast step is not
        if self.rows and compiled and hasattr(trainer.data_provider, "paused"):
            raise PluginError(COMPILED_AND_AHEAD)
        self._signals.defer()

    def _is_stateful(self, provider: Any) -> bool:
        """Whether the provider has a place to save; a stream is saved as such."""
        return provider is not self._stream and has_state(provider)

    def _check_provider(self, provider: Any) -> None:
        """Say so if where the batches come from cannot be saved."""
        watched = None if self._stream is None else self._stream.store
        if watched not in (None, provider) and hasattr(provider, "get_data_loader"):
            raise PluginError(
                "another activation store was read before the training's own, whose place is "
                "therefore not known: read it outside the `sae_plugins.plugins` context"
            )
        known = self._stream is not None or is_synthetic(provider)
        if self.path is None and not known and not self._is_stateful(provider):
            logger.warning(
                "checkpoints do not hold where in its data the %s is, which has no state_dict and "
                "load_state_dict: a resumed run must be given the batches that follow",
                type(provider).__name__,
            )

    def _kept(self) -> str:
        return f"; the last good one is {self.path}" if self.path else "; there is none before it"

    def _tree(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is saved, and the states of this rank's data shards by number."""
        stream = self._stream and self._stream.state_dict(rows=self.rows)
        parts = (stream or {}) if self.shards > 1 else {}
        provider: Any = self._trainers[0].data_provider
        self._check_provider(provider)
        return {
            "format": FORMAT,
            "facts": self._facts,
            "versions": self._versions(self._trainers[0]),
            "notes": self.notes,
            "made_from": self.origin.facts,
            "random": random_states(),
            "stream": {"shards": self.shards} if parts else stream,
            "stream_facts": self._stream_facts,
            "provider": provider.state_dict() if self._is_stateful(provider) else None,
            "trainers": [trainer.state_dict() for trainer in self._trainers],
        }, parts

    def _versions(self, trainer: Resumable) -> dict[str, Any]:
        return versions(_VERSIONS) | trainer.versions()

    # -- going on ------------------------------------------------------------------------------

    @property
    def accepted(self) -> list[Any]:
        """The changes with which the run went on: a step, and a sentence for each."""
        found: list[Any] = self.notes.get(ACCEPTED, [])
        return found

    def _add(self, found: Mapping[str, Fact | None]) -> None:
        """Add to what the run is made from; note the changes that were accepted."""
        if changed := self.origin.add(found):
            self.notes[ACCEPTED] = [*self.accepted, {"step": self.step, "changes": changed}]

    def _compare(self, saved: dict[str, Any], present: dict[str, Any]) -> None:
        kept = {name: fact for name, fact in saved.items() if name not in _SAMPLES}
        if found := changes(kept, present):
            raise StateError(
                f"{self.path} is of another run, so this one cannot go on from it; go on with its "
                "settings, or choose another folder:\n  " + "\n  ".join(found)
            )

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Name the file whose contents cannot be taken over, whatever the reason."""
        try:
            yield
        except PluginError as error:
            raise StateError(f"{self.path}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise StateError(f"{self.path} does not fit this run ({error!r}): {CURE}") from error

    def _resumed(self, saved: dict[str, Any]) -> None:
        if len(self._trainers) < len(saved["facts"]):
            raise PluginError(
                f"{self.path} holds the state of {len(saved['facts'])} SAE(s), and "
                f"{len(self._trainers)} are being trained now: build all of them"
            )
        self._restore_random()
        provider: Any = self._trainers[0].data_provider
        if self._is_stateful(provider) is (saved["provider"] is None):
            raise StateError(f"{self.path} is of another data provider: go on with that one")
        if saved["provider"] is not None:
            with self._fitting():
                provider.load_state_dict(saved["provider"])
        saved["provider"], saved["trainers"] = None, []  # which may be large

    def _restore_random(self) -> None:
        if self._random is not None:
            with self._fitting():
                set_random_states(self._random)
            self._random = None

    def _stream_of(self, store: Any, multi_hook: bool, home: int) -> Iterator[Any]:
        """The batches of the run's activation store, from the place where the run is."""
        from sae_plugins.resume.shards import stream_of
        from sae_plugins.resume.stream import batches

        if self._stream is not None:
            return batches(store, multi_hook)  # a store of somebody else's
        how = self.shards, self.seed, home, multi_hook, self.origin.accepts
        return self.follow(stream_of(store, *how))

    def follow(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Keep the place of the run's batches, if they are of text, and put them where it is."""
        from sae_plugins.resume.shards import Shards
        from sae_plugins.resume.stream import Stream

        if not isinstance(stream, (Stream, Shards)):
            return stream
        self._stream = stream
        self._stream_facts = redacted(stream.facts())
        self._add(stream.made_from())
        if self.saved is not None and self.saved["stream"] is not None:
            self._compare(self.saved["stream_facts"], self._stream_facts)
            saved = self.saved["stream"]
            if isinstance(stream, Shards) and self.path is not None:
                saved = read_shards(self.path, stream.own)
            with self._fitting():
                stream.load_state_dict(saved)
            self.saved["stream"] = None
            self._restore_random()  # a thread that reads ahead shuffles before the first step
        return stream
