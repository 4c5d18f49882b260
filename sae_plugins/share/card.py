"""The model card, README.md, of SAEs in a repository on the Hugging Face Hub.

`card` writes what is known about one SAE into the card of a repository: a section between two
comments, its results between two more, and the SAE's part of the metadata. Everything else is
people's and stays.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.base.hub import MAIN
from sae_plugins.base.secrets import redacted, without_secrets
from sae_plugins.base.shown_paths import without_folders
from sae_plugins.base.text import arrow, as_markdown, format_value
from sae_plugins.base.yaml_files import parse
from sae_plugins.eval_suites import registry as suites
from sae_plugins.eval_suites.evaluation import tables
from sae_plugins.eval_suites.evaluation.metrics import HELDOUT, UNRELIABLE, described
from sae_plugins.eval_suites.evaluation.results import KEYED_VERSIONS
from sae_plugins.eval_suites.suite import Metric
from sae_plugins.share.facts import SAEFacts, SuiteFacts
from sae_plugins.world.synthetic_models import SYNTHETIC

_TEMPLATE = "card.md.jinja"
_TAGS = ("saelens", "sparse-autoencoder", "sae-plugins")
_GEMMA_TERMS = re.compile(r"google/gemma-[1237]")
"""The first three generations, whose terms reach what derives from them."""
_SECTION, _RESULTS = ("begin", "end"), ("results-begin", "results-end")
"""The words of the comments before and after an SAE's section, and its results."""


def card(
    facts: SAEFacts,
    previous: str | None,
    repo: str,
    branch: str = MAIN,
    results_only: bool = False,
) -> str:
    """The text of README.md, with an SAE's section and metadata put in or replaced.

    What people wrote stays byte for byte, and so do their metadata, to whose lists it adds. Where
    they deleted one of a section's two comments, its text is theirs from then on, and a fresh
    section goes to the end. The same facts again change nothing.

    Args:
        facts: of the SAE.
        previous: the card that is there, with its own line ends; None if there is none.
        repo: OWNER/NAME of the repository.
        branch: of the repository.
        results_only: replace no more of the section than its results, where they stand.

    Raises:
        PluginError: the metadata of `previous` cannot be read.
    """
    template = _environment().get_template(_TEMPLATE)
    name = quote(facts.sae_id)
    begin, end = (_comment(word, name) for word in _RESULTS)
    view = {
        "facts": facts,
        "repo": repo,
        "branch": None if branch == MAIN else branch,
        "loading": loading_lines(repo, facts.sae_id, branch),
        "results_begin": Markup(begin),
        "results_end": Markup(end),
        "world": facts.model_name == world.NAME,
        "synthetic": str(facts.model_name).startswith(SYNTHETIC),
        "gemma": _gemma(facts),
        "unreliable": UNRELIABLE,
    }
    if previous is None or not previous.strip():
        previous = template.render(view, part="head").strip() + "\n"
    newline = "\r\n" if "\r\n" in previous else "\n"
    section = template.render(view, part="section").strip().replace("\n", newline)
    found = REGEX_YAML_BLOCK.search(previous)
    if found is None:
        block = _spliced("", _merged({}, facts), newline)
        opening, body = f"---{newline}{block}---{newline * 2}", previous
    else:
        block = _spliced(found[2] + newline, _merged(_metadata(found[2], repo), facts), newline)
        opening = found[1] + block.removesuffix(newline) + found[3]
        body = previous[found.end() :]
    if results_only and _between(_RESULTS, name).search(body):
        results = section[section.index(begin) : section.index(end) + len(end)]
        return opening + _between(_RESULTS, name).sub(lambda _: results, body, count=1)
    return opening + _with_section(body, name, section, newline)


# -- the metadata -------------------------------------------------------------------------------


def _metadata(block: str, repo: str) -> dict[str, Any]:
    where = f"the metadata at the top of README.md in {repo}"
    try:
        found = parse(block) or {}
    except yaml.YAMLError as error:
        raise PluginError(f"{where} is not YAML; mend it there: {error}") from error
    if not isinstance(found, dict) or not all(
        isinstance(row, dict) and "name" in row for row in _listed(found.get("model-index"))
    ):
        raise PluginError(f"{where} is damaged: mend it there, or remove it")
    return found


def _gemma(facts: SAEFacts) -> bool:
    """Whether Gemma's terms go with the SAE."""
    return bool(_GEMMA_TERMS.match(facts.base_model or ""))


def _merged(old: Mapping[str, Any], facts: SAEFacts) -> dict[str, Any]:
    """Metadata with those of an SAE; the licence is only for a card that has none of these yet."""
    new: dict[str, Any] = {"library_name": "saelens"}
    if not old and _gemma(facts):
        new["license"] = "gemma"
    new |= old
    added: dict[str, list[str]] = {
        "base_model": [facts.base_model] if facts.base_model else [],
        "datasets": [facts.dataset] if facts.dataset and facts.dataset_on_hub else [],
        "tags": [*_TAGS, *facts.methods],
    }
    for name, values in added.items():
        if missing := [value for value in values if value not in _listed(new.get(name))]:
            new[name] = [*_listed(new.get(name)), *missing]
    index = _listed(new.pop("model-index", None))
    others = [row for row in index if row["name"] != facts.sae_id]
    place = next((i for i, row in enumerate(index) if row not in others), len(index))
    if scores := [score for found in facts.evaluations for score in _scores(found)]:
        others[place:place] = eval_results_to_model_index(facts.sae_id, scores)
    return {**new, "model-index": others} if others else new


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _scores(found: SuiteFacts) -> list[EvalResult]:
    """The means over seeds, as the Hub shows them."""
    name, revision = found.dataset or (None, None)
    versions = {k: v for k, v in found.results[0].versions.items() if k in KEYED_VERSIONS}
    scores = []
    for metric, row in found.metrics.items():
        values = tables.known(found.results, metric)
        if not values:
            continue
        seeds = [result.seed for result in found.results if tables.known([result], metric)]
        spread = {"sd": _rounded(stdev(values))} if len(values) > 1 else {}
        scores.append(
            EvalResult(
                task_type=found.suite,
                task_name=f"SAE evaluation, {found.suite}",
                dataset_type=name or found.suite,
                dataset_name=_public(f"{found.suite}: {found.data}" if found.data else found.suite),
                dataset_config=_public(found.settings),
                dataset_revision=revision,
                metric_type=metric,
                metric_name=row.paper,
                metric_value=_rounded(fmean(values)),
                metric_args={"seeds": seeds, **spread, **versions},
            )
        )
    return scores


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _spliced(block: str, new: Mapping[str, Any], newline: str) -> str:
    """A YAML block with new values; the lines of what does not change stay, comments included."""
    old = parse(block) or {}
    lines = block.splitlines(keepends=True)
    node = yaml.compose(block)
    keys = [key for key, _ in node.value] if node is not None else []
    spans = pairwise([*(key.start_mark.line for key in keys), len(lines)])
    for name, (start, end) in reversed([*zip((key.value for key in keys), spans, strict=True)]):
        while end > start and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
            end -= 1  # a comment is about the key that follows
        if name not in new:
            del lines[start:end]
        elif new[name] != old[name]:
            lines[start:end] = [_dumped({name: new[name]}, newline)]
    lines += [_dumped({name: new[name]}, newline) for name in new if name not in old]
    spliced = "".join(lines)
    try:
        if parse(spliced) == new:
            return spliced
    except yaml.YAMLError:
        pass
    return _dumped(new, newline)  # it had keys within braces, or anchors


def _dumped(values: Mapping[str, Any], newline: str) -> str:
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text.replace("\n", newline)


# -- the text -----------------------------------------------------------------------------------


def _with_section(body: str, name: str, section: str, newline: str) -> str:
    """A card's text with a section in place of the one of this name, or at the end."""
    begin, end = (_comment(word, name) for word in _SECTION)
    section = (newline * 2).join([begin, section, end])
    found = _between(_SECTION, name).search(body)
    before, after = (body[: found.start()], body[found.end() :]) if found else (body, None)
    # comments that are left over would pair up wrongly the next time
    ours = [_comment(word, name) for word in (*_SECTION, *_RESULTS)]
    left_over = "|".join(map(re.escape, ours))
    before, after = (re.sub(left_over, "", text) for text in (before, after or ""))
    if found is not None:
        return before + section + after
    gap = next(n for n in range(3) if (before + newline * n).endswith(newline * 2))
    return f"{before}{newline * gap}{section}{newline}"


def _comment(word: str, name: str) -> str:
    return f"<!-- sae-plugins: {word} {name} -->"


def _between(words: tuple[str, str], name: str) -> re.Pattern[str]:
    """What stands between two comments about an SAE, them included, with no other such between."""
    begin, end = (re.escape(_comment(word, name)) for word in words)
    return re.compile(rf"{begin}(?:(?!<!-- sae-plugins: (?:{'|'.join(words)}) )[\s\S])*{end}")


@cache
def _environment() -> Environment:
    """Jinja for Markdown: whatever text is put in is escaped, and loses the folders of paths."""
    environment = Environment(
        loader=PackageLoader("sae_plugins.share", ""), trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "about": lambda evaluation: suites.summaries().get(evaluation.suite, ""),
        "arrow": arrow, "cell": tables.cell, "code": _code, "described": _described,
        "options": _options, "quote": lambda text: Markup(quote(text)),
        "sh": lambda text: Markup(shlex.quote(text)), "raw": Markup, "value": format_value,
    }  # fmt: skip
    return environment


def _public(text: str) -> str:
    """Text without tokens and without the folders of this machine."""
    return without_secrets(without_folders(text))


def _shown(value: Any) -> Any:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return as_markdown(_public(value)) if is_text else value


def _code(value: Any) -> Markup:
    text = _public(str(value))
    return Markup(as_markdown(text) if re.search(r"[`|<>&\\\s]", text) or not text else f"`{text}`")


def _options(values: Mapping[str, Any]) -> Markup:
    """Names and values, as flags would give them."""
    shown = (
        _code(f"{name}={_public(value) if isinstance(value, str) else json.dumps(value)}")
        for name, value in redacted(values).items()
    )
    return Markup(", ").join(shown)


def _described(name: str) -> Metric:
    """A metric of `summary.json`."""
    group, _, metric = name.partition("/")
    found = described("ground-truth" if group == "truth" else HELDOUT, metric)
    return found or Metric(metric, re.sub("[_/]", " ", metric), "", "neither")


def loading_lines(repo: str, sae_id: str, branch: str) -> list[str]:
    """The Python that loads an SAE; SAELens itself knows the main branch only."""
    if branch == MAIN:
        return ["from sae_lens import SAE", "", f'sae = SAE.from_pretrained("{repo}", "{sae_id}")']
    return [
        "from huggingface_hub import snapshot_download",
        "from sae_lens import SAE",
        "",
        f'folder = snapshot_download("{repo}", revision="{branch}")',
        f'sae = SAE.load_from_disk(f"{{folder}}/{sae_id}")',
    ]
