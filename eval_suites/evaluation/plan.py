"""The rows of an evaluation before it runs: SAEs × suites × seeds, and where each result goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_plugins.base.code import code
from sae_plugins.base.errors import Problems, SuiteError
from sae_plugins.base.files import versions
from sae_plugins.base.machine_faults import is_of_machine
from sae_plugins.base.secrets import reason_of
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites import DATA
from sae_plugins.eval_suites.evaluation.manifest import Row
from sae_plugins.eval_suites.evaluation.results import KEYED_VERSIONS, NOT_APPLICABLE
from sae_plugins.eval_suites.suite import Suite

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.data import Data
    from sae_plugins.eval_suites.inputs.subjects import Subject


@dataclass(eq=False)
class Task:
    """A row with what it needs to be computed."""

    row: Row
    subject: Subject
    suite: Suite
    settings: Any
    placed: Path | None = None
    """Its stem, once that is known."""

    @property
    def group(self) -> tuple[str, str, int]:
        """Tasks of one group share what their suite prepares."""
        return (self.subject.hook_name, self.suite.name, self.row.seed)

    @property
    def code(self) -> dict[str, str | None]:
        """Hashes of the files that compute its result, by name."""
        return code((), [type(self.suite)])

    @property
    def stem(self) -> Path:
        """Where its files go, without their endings."""
        assert self.placed is not None
        return self.placed

    @property
    def file(self) -> str:
        """Where its result goes."""
        return f"{self.stem.as_posix()}.json"

    @property
    def is_on_language_model(self) -> bool:
        """Whether a language model is needed, and the SAE is of one."""
        from sae_plugins.world.synthetic_models import SYNTHETIC

        return self.suite.needs_model and not self.subject.model_name.startswith(SYNTHETIC)

    def place(self, model_hash: str | None, data: Data | None) -> None:
        """Decide where its files go, by everything that its result depends on."""
        from sae_plugins.base.fingerprints import fingerprint

        row, suite = self.row, self.suite
        found = versions((*KEYED_VERSIONS, *suite.distributions))
        if not suite.needs_model:
            model_hash = data = None
        # a folder may move: the result itself has the fingerprints of what was read
        kind = None if data is None else data.name if data.name in DATA else "folder"
        key = fingerprint(
            suite.name, suite.version, self.settings.model_dump(mode="json"), row.seed,
            model_hash, kind, self.subject.hash, found,
            self.subject.dataset, self.subject.training_tokens,
        )  # fmt: skip
        folder = Path(f"{row.sae}-{self.subject.hash[:8]}")
        self.placed = folder / f"{suite.name}-seed{row.seed}-{key[:8]}"

    def refuse(self, data: Data | None) -> None:
        """Give the row its status and reason if the suite does not apply, or lacks something."""
        if self.row.status != "planned":  # its reason is known
            return
        try:
            if self.suite.needs_model and not self.is_on_language_model:
                model = self.subject.model_name
                self.row.reason = f"needs a language model; this SAE was trained on {model}"
            else:
                self.row.reason = self.suite.refusal(self.subject) or self.suite.lack(
                    self.settings, data
                )
        except Exception as error:
            self.row.status, self.row.reason = "failed", reason_of(error)
        else:
            if self.row.reason is not None:
                self.row.status = NOT_APPLICABLE


@dataclass
class EvaluationPlan:
    """What is to be evaluated."""

    subjects: list[Subject] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    """Of every SAE that could be loaded, by its source."""
    notes: list[str] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    """In the order in which they are computed."""
    failed: list[Row] = field(default_factory=list)
    """Rows of SAEs that could not be loaded."""

    @property
    def rows(self) -> list[Row]:
        """All rows: the failed ones, then those of the tasks."""
        return self.failed + [task.row for task in self.tasks]


def plan(
    sources: Sequence[str], suites: Mapping[str, tuple[Suite, Any]], seeds: Sequence[int],
    model_name: str | None = None,
) -> EvaluationPlan:  # fmt: skip
    """Load the SAEs, and make a row of each with every suite and seed.

    Args:
        sources: SAEs, as `load_subject` takes them.
        suites: each suite with its settings, by name.
        seeds: each makes a row per suite and SAE.
        model_name: of the language model; None for the one that each SAE was trained on.

    Raises:
        SaePluginsError: names all sources that are neither folders nor names of SAEs elsewhere.
    """
    from sae_plugins.base.fingerprints import fingerprint
    from sae_plugins.eval_suites.evaluation.loading import load_subject
    from sae_plugins.eval_suites.evaluation.sources import check_source

    problems = Problems()
    for source in sources:
        with problems:
            check_source(source)
    problems.stop()
    made = EvaluationPlan()
    seen: dict[str, str] = {}
    hashes = {
        name: fingerprint(settings.model_dump(mode="json"))[:8]
        for name, (_, settings) in suites.items()
    }
    places = [(name, seed) for name in suites for seed in seeds]
    for source in dict.fromkeys(sources):
        try:
            subject = load_subject(source)
            if model_name is not None:
                subject = _on(model_name, subject)
        except Exception as error:
            if is_of_machine(error):
                raise
            told = without_places(source)
            failed = {"sae": told, "source": told, "status": "failed"}
            made.failed += [
                Row(suite=n, seed=seed, reason=reason_of(error), settings=hashes[n], **failed)
                for n, seed in places
            ]
            continue
        made.hashes[source] = subject.hash
        if subject.hash in seen:
            made.notes.append(f"{source} is the same SAE as {seen[subject.hash]}: it counts once")
            continue
        seen[subject.hash] = source
        made.subjects.append(subject)
        for name, seed in places:
            suite, settings = suites[name]
            row = Row(
                suite=name, sae=subject.name, source=without_places(subject.source),
                sae_hash=subject.hash, seed=seed, settings=hashes[name],
            )  # fmt: skip
            made.tasks.append(Task(row, subject, suite, settings))
    made.tasks.sort(key=lambda task: (task.subject.model_name, task.group))
    return made


def _on(model_name: str, subject: Subject) -> Subject:
    """An SAE on another language model than its own, as another SAE: with other results.

    Raises:
        SuiteError: it was trained on a synthetic model.
    """
    from sae_plugins.base.fingerprints import fingerprint
    from sae_plugins.world.synthetic_models import SYNTHETIC

    own = subject.model_name
    if own == model_name:
        return subject
    if own.startswith(SYNTHETIC):
        raise SuiteError(
            f"{subject.source} was trained on {own}, and there is nothing of it in {model_name}: "
            "leave out --model_name"
        )
    return replace(
        subject,
        model_name=model_name,
        source=f"{subject.source} on {model_name}",
        hash=fingerprint(subject.hash, model_name),
        warnings=(*subject.warnings, f"it was trained on {own}, and is evaluated on {model_name}"),
    )
