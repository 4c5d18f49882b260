"""From an SAE, or two, to a folder of feature pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sae_plugins.base.errors import HubError, SuiteError
from sae_plugins.base.files import versions
from sae_plugins.base.hub import local
from sae_plugins.base.shown_paths import without_places
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.inputs.models import expected
from sae_plugins.eval_suites.inputs.subjects import Reader, Subject
from sae_plugins.eval_suites.saebench.facts import default_batch_size, default_dtype
from sae_plugins.features.collect import Collected, collect
from sae_plugins.features.folder import check_place, default_place, new_folder
from sae_plugins.features.history import history
from sae_plugins.features.logits import readout
from sae_plugins.features.neighbours import directions
from sae_plugins.features.neuronpedia import BATCH, batches
from sae_plugins.features.order import order_of
from sae_plugins.features.pages import Pages, Shown
from sae_plugins.features.result import FeaturePages
from sae_plugins.features.shards import DATA, FEATURES, INDEX, script, shard_name
from sae_plugins.features.text import check_text, prompts_of, where_of
from sae_plugins.features.twins import ALIKE, twins_of
from sae_plugins.features.vocabulary import Vocabulary
from sae_plugins.runs.silent import WHY, silent
from sae_plugins.world.synthetic_models import SYNTHETIC

PAGE = {"page.html": "index.html", "page.css": "page.css", "page.js": "page.js"}
"""The files of the page, and what they are called in its folder."""

_READER = Reader(
    "a feature page",
    "a feature page would show its decoder rows as directions of the wrong one",
    "a feature page shows codes alone, and would leave out what is predicted from the tokens "
    "before",
    "a feature page shows without their signs",
)


@dataclass(frozen=True)
class Request:
    """What to show.

    Attributes:
        sources: one SAE or two, as `load_subject` takes them.
        output_path: the folder to make; None for one in `features/` by the SAEs' names.
        tokens: how many to read.
        text: flags that name a text; see `text.FLAGS`.
        overwrite: whether feature pages in that folder are replaced.
        device: of torch.
        model_class: how the language model is loaded; None for what suits it.
    """

    sources: Sequence[str]
    output_path: Path | None = None
    tokens: int = 100_000
    text: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    device: str = "cpu"
    model_class: str | None = None


class Progress(Protocol):
    """What hears of the work while it is done."""

    def stage(self, text: str) -> None:
        """This is being done now."""

    def read(self, tokens: int) -> None:
        """So many more tokens have been read."""


class _Silence:
    def stage(self, text: str) -> None: ...

    def read(self, tokens: int) -> None: ...


def build(request: Request, progress: Progress | None = None) -> FeaturePages:
    """Make feature pages.

    Raises:
        SaePluginsError: an SAE, its model or the text cannot be loaded, the SAEs do not belong
            together, or the folder is taken or cannot be written to; nothing is left then.
    """
    return FeaturePages(_make(request, progress or _Silence(), _write))


def export(request: Request, progress: Progress | None = None) -> Path:
    """Write what Neuronpedia takes of one SAE, and give its folder.

    Raises:
        SaePluginsError: as `build`.
    """
    return _make(request, progress or _Silence(), _write_batches)


Writer = Callable[[Path, Sequence[Pages], dict[str, Any], Subject], None]
"""Writes into a new folder the pages, what is said of the text, and of the first SAE."""


def _make(request: Request, progress: Progress, write: Writer) -> Path:
    output = request.output_path or default_place(request.sources)
    check_place(output, request.overwrite)
    progress.stage("loading the SAEs")
    subjects = [load_subject(source, reader=_READER) for source in request.sources]
    check_together(subjects)
    name = subjects[0].model_name
    config = expected(name, default_dtype(name), request.model_class)
    for subject in subjects:
        config.check(subject, "", None)
    check_text(subjects[0], request.text)
    with new_folder(output, request.overwrite) as folder:
        progress.stage(f"loading {name}")
        model = config.load(request.device)
        prompts = prompts_of(subjects[0], model, request.text)
        saes = [subject.copy(request.device, model.dtype) for subject in subjects]
        progress.stage(f"reading {prompts.name}")
        at_once = default_batch_size(name)
        found = collect(prompts, saes, request.tokens, at_once, progress.read)
        progress.stage("comparing features")
        vocabulary = Vocabulary(model.hooked.tokenizer)
        shown = _shown(subjects, saes, found, model.hooked, len(vocabulary))
        pages = [Pages(i, each, found, vocabulary) for i, each in enumerate(shown)]
        progress.stage("writing")
        write(folder, pages, _about(request, found, prompts.name), subjects[0])
    return output


def check_together(subjects: Sequence[Subject]) -> None:
    """Refuse SAEs that cannot be shown, or cannot be compared.

    Raises:
        SuiteError: it says what does not fit.
    """
    first = subjects[0]
    for subject in subjects:
        if subject.model_name.startswith(SYNTHETIC):
            raise SuiteError(
                f"{subject.source} was trained on {subject.model_name}, which has no text: features"
                " are shown of SAEs of language models"
            )
    for other in subjects[1:]:
        for what, attribute in (
            ("language model", "model_name"),
            ("hook", "hook_name"),
            ("head", "hook_head_index"),
            ("d_in", "d_in"),
        ):
            values = [getattr(each, attribute) for each in (first, other)]
            if values[0] != values[1]:
                raise SuiteError(
                    f"{other.source} has the {what} {values[1]}, and {first.source} has "
                    f"{values[0]}: features can be compared only where SAEs encode the same "
                    "activations"
                )
        if other.hash == first.hash:
            raise SuiteError(f"{other.source} is the same SAE as {first.source}; leave it out")


def _shown(
    subjects: Sequence[Subject], saes: Sequence[Any], found: Collected, hooked: Any, words: int
) -> list[Shown]:
    rows = [directions(sae.W_dec) for sae in saes]
    first = subjects[0]  # all are of one hook
    to_logits = readout(hooked, first.hook_name, first.d_in, words, first.hook_head_index)
    made = []
    for number, (subject, sae) in enumerate(zip(subjects, saes, strict=True)):
        folder = None
        with contextlib.suppress(HubError):  # a release of SAELens' is none of our runs
            folder = local(subject.source)
        provenance = getattr(where_of(subject), "sae_plugins", None)
        past = history(folder, provenance, subject.d_sae)
        density = found.saes[number].count.double().cpu().numpy() / found.counted
        made.append(
            Shown(
                subject.name,
                _facts(subject),
                [f"{text[0].upper()}{text[1:]}." for text in subject.warnings],
                sae.W_dec,
                rows[number],
                to_logits,
                () if folder is None else silent(folder),
                past,
                order_of(density, rows[number]) if past.is_ordered else None,
                twins_of(found.acts, rows, number) if len(subjects) > 1 else None,
            )
        )
    return made


def _architecture(subject: Subject) -> str:
    trained = getattr(where_of(subject), "training_architecture", None)
    is_other = trained not in (None, subject.architecture)  # SAELens saves some as others
    return f"{subject.architecture}, trained as {trained}" if is_other else subject.architecture


def _facts(subject: Subject) -> list[tuple[str, str]]:
    facts = {
        "language model": without_places(subject.model_name),
        "hook": subject.hook_name,
        "head": subject.hook_head_index,
        "architecture": _architecture(subject),
        "d_in": f"{subject.d_in:,}",
        "d_sae": f"{subject.d_sae:,}",
        "trained on": subject.training_tokens and f"{subject.training_tokens:,} tokens",
        "held-out L0": subject.l0 and f"{subject.l0:.1f}",
    }
    return [(label, str(value)) for label, value in facts.items() if value is not None]


def _about(request: Request, found: Collected, text: str) -> dict[str, Any]:
    """What is said of the text, for all SAEs."""
    read, notes = found.tokens.numel(), []
    if read < request.tokens:
        notes.append(
            f"The text ended after {read:,} tokens in whole prompts, before the {request.tokens:,} "
            "asked for."
        )
    if found.every > 1:
        notes.append(
            f"Features that fire together, and twins, are counted on every {found.every}th "
            "prompt, which bounds the memory."
        )
    return {
        "text": text,
        "read": read,
        "counted": found.counted,
        "context": found.tokens.shape[1],
        "notes": notes,
        "version": versions(["sae-plugins"]).get("sae-plugins", ""),
        "shard": FEATURES,
        "alike": ALIKE,
        "why_silent": WHY,
    }


def _write(folder: Path, pages: Sequence[Pages], about: dict[str, Any], subject: Subject) -> None:
    """Write all files of the pages; the index last."""
    (folder / DATA).mkdir()
    for sae, each in enumerate(pages):
        for number, shard in enumerate(each.shards()):
            text = script("shard", sae, number, shard)
            (folder / shard_name(sae, number)).write_text(text, "ascii")
    for source, target in PAGE.items():
        shutil.copyfile(Path(__file__).with_name(source), folder / target)
    index = {**about, "saes": [each.index() for each in pages]}
    (folder / INDEX).write_text(script("index", index), "ascii")


def _write_batches(
    folder: Path, pages: Sequence[Pages], about: dict[str, Any], subject: Subject
) -> None:
    model = subject.model_name
    for number, batch in enumerate(batches(pages[0], about, subject.hook_layer, model)):
        (folder / BATCH.format(number)).write_text(batch, "ascii")
