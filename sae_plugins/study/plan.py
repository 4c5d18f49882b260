"""From a study to its SAEs, as far as its pilots say them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.base.identity import listed, of_path
from sae_plugins.study import PILOT_SEED
from sae_plugins.study.cells import Cell
from sae_plugins.study.makers import Finder, Maker, shared_flags
from sae_plugins.study.pilots import interpolated
from sae_plugins.study.search import Search, Searched, run
from sae_plugins.study.spec import Arm, Flags, Model, Study
from sae_plugins.study.tuning import Tried, Tune, Tuned, finite

_DIRECT = ("k", "target_l0")
"""Flags that are themselves an L0, in training."""
_DENSER = 1.2
"""How much more features than wanted are active in an SAE before it is given thresholds."""


@dataclass(frozen=True)
class StudyPlan:
    """The cells of a study, as far as they are known.

    Attributes:
        cells: SAEs that are compared.
        pilots: SAEs by which coefficients for the wanted L0s, and learning rates, are found.
        warnings: L0s that cannot be reached, and SAEs of which too little is known.
        tuned: arms whose learning rates were tried by pilots that are all there.
        searched: arms whose settings were searched by pilots that are all there.
    """

    cells: list[Cell]
    pilots: list[Cell]
    warnings: list[str]
    tuned: list[Tuned] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)

    @property
    def changes(self) -> dict[str, int]:
        """Why SAEs are trained again, and how many."""
        trained = [cell for cell in (*self.pilots, *self.cells) if not cell.existing]
        cells = [cell for cell in trained if cell.compared.changes]
        return Counter("; ".join(cell.compared.changes) for cell in cells)


def plan(
    study: Study,
    shown: Callable[[Cell], float | None],
    found: Callable[[Cell], Cell] = lambda cell: cell,
    commits: Callable[[str, Flags], Flags] = lambda model, flags: {},
) -> StudyPlan:
    """All cells of a study; those whose pilots are missing are left out until they are there.

    Args:
        study: the study.
        shown: what a pilot has shown: the L0 that it has reached, 0 if it failed; or, of one that
            tries a setting, its explained variance, NaN if it failed. None if it is not trained.
        found: gives a cell its place, where its SAE lies.
        commits: of what a model of the study and its flags name on the Hub, by flag.

    Raises:
        SaePluginsError: a flag of the study is wrong; says of which arm and model.
    """
    known, problems = StudyPlan([], [], []), Problems()
    wrong: dict[str, list[str]] = {}  # where, by what: arms often share a fault
    arms = study.all_arms()
    finder, piloted = Finder(found, cache(of_path)), set[Path]()
    for name, model in study.models.items():
        shared: Flags | None = None
        with problems:
            shared = shared_flags(name, model)
            shared |= commits(name, shared)
        if shared is None:
            continue
        makers = [
            Maker(name, arm_name, arm, *arm.on_model(name, model), shared, finder)
            for arm_name, arm in arms.items()
        ]
        is_exact = False
        with problems:
            is_exact = _is_exact(known, name, model, makers)
        for make in makers:
            adding = _Adding(known, model, study.seeds, shown, is_exact, piloted)
            with Problems() as own:
                adding.add(make, make.arm.tuned_on(name, model))
            for sentence in own.sentences:
                wrong.setdefault(sentence.removeprefix(f"{make.where}: "), []).append(make.where)
        known.warnings.extend(_without_verdict(study, name, arms))
    problems.add(*(f"{', '.join(places)}: {what}" for what, places in wrong.items()))
    problems.stop()
    return replace(known, warnings=[*known.warnings, *_unknown([*known.pilots, *known.cells])])


def _without_verdict(study: Study, model: str, arms: Mapping[str, Arm]) -> Iterator[str]:
    """Arms of which too few SAEs exist."""
    for name, common in study.common_seeds(model).items():
        if common < 2 and (arms[name].exists or arms[study.reference].exists):
            yield (
                f"{model}, {name}: {'one' if common else 'no'} seed in common with "
                f"{study.reference}: no verdict; its scores are in the report"
            )


def _is_exact(known: StudyPlan, name: str, model: Model, makers: Sequence[Maker]) -> bool:
    """Whether the SAEs of a model are given exactly the wanted L0s.

    Raises:
        SaePluginsError: the study wants it, and it cannot be.
    """
    if model.exact_l0 and not model.target_l0:
        raise SaePluginsError(f"models.{name}.exact_l0 needs target_l0: the L0s that are wanted")
    if not model.target_l0 or model.exact_l0 is False:
        return False
    rows = {}
    for make in makers:
        with suppress(SaePluginsError):  # which is said of the arm itself
            rows[make.arm_name] = make.architecture
    cannot = {
        arm: row.name for arm, row in rows.items() if not (row.calibrated or row.k_per == "token")
    }
    if not cannot:
        return True
    whose = ", ".join(f"{arm} ({row})" for arm, row in cannot.items())
    why = f"no threshold can take the place of the rule of the SAEs of {whose}"
    if model.exact_l0:
        raise SaePluginsError(f"models.{name}.exact_l0: {why}; leave it or these arms out")
    known.warnings.append(f"{name}: L0s are not set exactly, since {why}")
    return False


@dataclass(frozen=True)
class _Adding:
    """Adds the cells of arms on one model to a plan, as far as its pilots say them."""

    known: StudyPlan
    model: Model
    seeds: Sequence[int]
    shown: Callable[[Cell], float | None]
    is_exact: bool
    piloted: set[Path]
    """Folders of the pilots that are in the plan."""

    def add(self, make: Maker, tune: Tune | None) -> None:
        """Add an arm's cells."""
        if make.arm.exists:
            self.known.cells.extend(make.existing(self.seeds))
            return
        chosen: Maker | None = make
        search = make.arm.search
        if (tune or search) and not self.is_exact:
            raise SaePluginsError(
                f"{make.where}: {'learning rates' if tune else 'settings'} are compared at equal "
                f"L0, so {'tune' if tune else 'search'} needs target_l0, and SAEs of all arms that "
                "can have exactly that (exact_l0)"
            )
        if tune is not None:
            chosen = self._tuned(make, tune)
        if search is not None and chosen is not None:
            chosen = self._searched(chosen, search)
        if chosen is None:
            return
        for value, l0 in self._values(chosen, self.model.target_l0) or ():
            self.known.cells.extend(chosen.cells(value, self.seeds, l0=l0))

    def _tuned(self, make: Maker, tune: Tune) -> Maker | None:
        """The arm at its best learning rate; None while that is not known, or if there is none."""
        tried: list[Tried] = []
        is_known = True
        for lr in tune.lr:
            scores = self._scores(make.at({"lr": lr}), tune.seeds)
            is_known = is_known and scores is not None and None not in scores
            tried.append(Tried(lr=lr, scores=finite(scores or ())))
        if not is_known:
            return None
        tuned = Tuned(model=make.model, arm=make.arm_name, l0=self._middle, tried=tried)
        self.known.tuned.append(tuned)
        self.known.warnings.extend([tuned.warning] if tuned.warning else [])
        return None if tuned.best is None else make.at({"lr": tuned.best})

    def _searched(self, make: Maker, search: Search) -> Maker | None:
        """The arm with the best settings that were found; None while these are not known."""
        trials, is_over = run(
            search, lambda flags: self._scores(make.at({**flags}), search.seeds), make.arm_name
        )
        if not is_over:
            return None
        searched = Searched(model=make.model, arm=make.arm_name, l0=self._middle, trials=trials)
        self.known.searched.append(searched)
        self.known.warnings.append(searched.warning)
        return None if searched.best is None else make.at(searched.best.flags)

    @property
    def _middle(self) -> float:
        """The L0 of pilots that try settings."""
        targets = sorted(self.model.target_l0)
        return targets[len(targets) // 2]

    def _scores(self, make: Maker, seeds: int) -> list[float | None] | None:
        """What pilots show of settings; None while it is not known with which value to train."""
        pilots = [PILOT_SEED + place for place in range(seeds)]
        values = self._values(make, [self._middle])
        cells = [
            cell
            for value, l0 in values or ()
            for cell in make.cells(value, pilots, l0=l0, purpose="tuning")
        ]
        scores = [self.shown(cell) for cell in self._piloted(cells)]
        return None if values is None else scores

    def _values(
        self, make: Maker, targets: Sequence[float]
    ) -> list[tuple[float, float | None]] | None:
        """The values to train with, and the L0 that each is to have, where that is set exactly.

        None while pilots that say them are missing.
        """
        flag, values = make.sparsity
        row, is_direct = make.architecture, flag in _DIRECT
        is_set = self.is_exact and row.calibrated
        if not flag:
            return [(0.0, target) for target in targets] if is_set else [(0.0, None)]
        if not targets:
            return [(value, None) for value in values]
        if is_set and is_direct:
            return [(max(1, round(t)) if row.k_per == "token" else t, t) for t in targets]
        if is_direct and row.k_per == "token":
            near = {float(whole) for t in targets for whole in (math.floor(t), math.ceil(t))}
            return [(whole, None) for whole in sorted(near) if whole]  # scores are read between
        # thresholds had better take activations away, and of an L1 SAE they can do nothing else
        denser = _DENSER if is_set else 1.0
        found = self._read_off(make, [*targets] if is_direct else values, targets, denser)
        if found is None:
            return None
        pairs = zip(found, targets, strict=True)
        kept = [(value, target if is_set else None) for value, target in pairs if value is not None]
        return list(dict.fromkeys(kept))

    def _read_off(
        self, make: Maker, tried: Sequence[float], targets: Sequence[float], denser: float
    ) -> list[float | None] | None:
        """The values that give L0s, by pilots with those that are tried; None while one is missing.

        Of those out of the pilots' reach there is none, which the plan's warnings say.
        """
        reached = [
            self.shown(cell)
            for value in tried
            for cell in self._piloted(make.cells(value, [PILOT_SEED], purpose="pilot"))
        ]
        known = [l0 for l0 in reached if l0 is not None]
        if len(known) < len(reached):
            return None
        is_direct = make.sparsity[0] in _DIRECT
        found, doubts = interpolated(tried, known, targets, denser=denser, proportional=is_direct)
        at = "".join(f" at --{flag.replace('=', ' ')}" for flag in make.tried_in_words)
        sentences = [f"{make.model}, {make.arm_name}{at}: {doubt}" for doubt in doubts]
        self.known.warnings.extend(s for s in sentences if s not in self.known.warnings)
        return found

    def _piloted(self, cells: list[Cell]) -> list[Cell]:
        """Pilots, which are added to the plan unless they are there for another purpose."""
        for cell in cells:
            if (place := cell.folder) not in self.piloted:
                self.piloted.add(place)
                self.known.pilots.append(cell)
        return cells


def _unknown(cells: Sequence[Cell]) -> Iterator[str]:
    kept = Counter(listed(cell.compared.unknown) for cell in cells if cell.compared.unknown)
    for what, count in kept.items():
        yield (
            f"{count} SAE{'s' if count > 1 else ''} trained earlier are kept, though {what} could "
            "not be compared: it was not noted then"
        )
