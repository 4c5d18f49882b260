"""SAEBench's unlearning, run for one SAE, and what it asks the language model before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.kept import Cached
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.data import CORPORA, MMLU, WIKITEXT, WMDP
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running
from sae_plugins.eval_suites.saebench.shared_model import SharedModel

MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")
"""The language models whose prompts SAEBench knows."""
TO_FORGET = "wmdp-bio"
CORPUS = "bio-forget-corpus.jsonl"
TEXT = (WIKITEXT, "wikitext-2-raw-v1")
"""What a latent that is to be clamped must be silent on."""
_PLACE = Path("sae_bench", "evals", "unlearning", "data", CORPUS)
"""Where SAEBench looks for the corpus, from the working folder on."""
_ARTIFACTS = "artifacts"


def known_as(model_name: str) -> str:
    """SAEBench's name of a language model, which may lie in a folder, or have an owner."""
    return model_name.rstrip("/").rpartition("/")[2]


def place_of(dataset_name: str) -> tuple[str, str]:
    """The dataset and the configuration of questions that SAEBench calls so."""
    return (WMDP, TO_FORGET) if dataset_name == TO_FORGET else (MMLU, dataset_name)


@dataclass(frozen=True)
class Asked:
    """What no SAE changes."""

    shared: SharedModel
    questions: Mapping[str, Any]
    """By what SAEBench calls them."""
    right: Mapping[str, Tensor]
    """The numbers of those that the language model answers rightly in all orders."""
    tokens: tuple[Tensor, Tensor]
    """Of the corpus and of the text, each [texts, positions], as SAEBench shuffles them."""


def ask(bench: Bench, dataset_names: Sequence[str], config: Mapping[str, Any]) -> Asked:
    """Ask the language model all questions in all orders, and cut the corpus and the text.

    Args:
        bench: the model and the data.
        dataset_names: of the questions, as SAEBench calls them.
        config: SAEBench's.

    Raises:
        SuiteError: SAEBench cannot ask it, it answers none of some questions, or the data are not
            what they should be.
    """
    _check_model(bench)
    questions = {name: _questions(bench, name) for name in dataset_names}
    right = {}
    for name, rows in questions.items():
        bench.stage(f"asking {bench.model.name} about {name}")
        batch = 2 * config["llm_batch_size"]
        key = fingerprint(
            "unlearning", bench.model.hash, bench.model.dtype, name, list(rows), batch
        )
        compute = partial(_answered, bench, questions, name, batch)
        right[name] = bench.cache.get("right_answers", key, compute)[0]["numbers"]
        if not len(right[name]):
            raise SuiteError(
                f"{bench.model.name} answers none of the {len(rows)} questions of {name} rightly "
                "in all orders of their choices, so nothing of it could be forgotten or kept: take "
                "another language model, or other questions with --unlearning.dataset_names"
            )
    bench.stage("reading the corpus and the text")
    shared = SharedModel(bench.model, bench.hook_name, bench.cache)
    return Asked(shared, questions, right, _tokens(bench, config))


def run_unlearning(
    sae: Any, name: str, bench: Bench, asked: Asked, config: Mapping[str, Any]
) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """SAEBench's result, as a dict, its JSON, and a row of its table for each intervention.

    Args:
        sae: a copy, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model.
        asked: what `ask` found.
        config: SAEBench's, but for the model's name and dtype and the questions.
    """
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import feature_activation, metrics

    tables: list[Any] = []

    def table(folder: str) -> Any:
        tables.append(own_table(folder))
        return tables[-1].copy()  # a column is added to it

    own_table = main.get_metrics_df
    eval_config = UnlearningEvalConfig(
        model_name=known_as(bench.model.name), llm_dtype=bench.model.dtype,
        dataset_names=list(asked.questions), **config,
    )  # fmt: skip
    with (
        _asking(bench, asked.questions, main),
        asked.shared.reading(),
        replaced(main, get_metrics_df=table),
        replaced(
            feature_activation, get_shuffled_forget_retain_tokens=lambda *_, **__: asked.tokens
        ),
        replaced(
            metrics,
            save_target_question_ids=partial(_write_numbers, asked.right),
            get_baseline_metrics=lambda *_, **__: {},  # which nobody reads
        ),
    ):
        folder = Path.cwd()
        results = main.run_eval(
            eval_config, [(name, sae)], bench.model.device, str(folder / "results"),
            artifacts_path=_ARTIFACTS,
        )  # fmt: skip
        return only(results), only_json(folder), tables[0].to_dict("records")


def _check_model(bench: Bench) -> None:
    from transformer_lens import HookedTransformer

    if not isinstance(bench.model.hooked, HookedTransformer):
        raise SuiteError(
            f"{bench.model.name} is loaded as {bench.model.loaded_as}, and SAEBench's unlearning "
            "asks a HookedTransformer only: leave out --model_class_name"
        )


def _questions(bench: Bench, name: str) -> Any:
    """The questions that SAEBench calls so."""
    dataset, config = place_of(name)
    rows = bench.data.table(dataset, config)
    for number, (choices, answer) in enumerate(zip(rows["choices"], rows["answer"], strict=True)):
        if len(choices) != 4 or answer not in range(4):
            raise SuiteError(
                f"question {number} of {dataset} ({config}) has {len(choices)} choices and the "
                f"answer {answer}: there must be 4, and its answer the number of one, from 0 on"
            )
    return rows


@contextmanager
def _asking(bench: Bench, questions: Mapping[str, Any], *modules: Any) -> Iterator[None]:
    """SAEBench with our model, which it must know by its name, and our questions."""
    from sae_bench.evals.unlearning.utils import metrics

    def load_dataset(_: str, config: str, **__: Any) -> Any:
        return questions[config]

    with (
        running(bench, *modules),
        replaced(metrics, load_dataset=load_dataset),
        replaced(bench.model.hooked.cfg, model_name=known_as(bench.model.name)),
    ):
        yield


def _answered(bench: Bench, questions: Mapping[str, Any], name: str, batch: int) -> Cached:
    """The numbers of the questions that are answered rightly in all orders of their choices."""
    from sae_bench.evals.unlearning.utils import metrics

    with _asking(bench, questions):
        found = metrics.calculate_MCQ_metrics(
            bench.model.hooked, batch, _ARTIFACTS, name, permutations=metrics.all_permutations
        )
        return {"numbers": torch.from_numpy(metrics._find_all_permutation_correct_ans(found))}, {}


def _write_numbers(
    right: Mapping[str, Tensor], _: Any, __: int, artifacts_folder: str, name: str
) -> None:
    """Put the numbers where SAEBench reads them."""
    stem = name if name == TO_FORGET else f"mmlu-{name.replace('_', '-')}"
    file = Path(artifacts_folder, "data", "question_ids", "all", f"{stem}_correct.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{number}\n" for number in right[name].tolist()), "utf-8")


def _tokens(bench: Bench, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What the corpus and the text are in tokens, seeded as SAEBench seeds its first SAE."""
    from sae_bench.evals.unlearning.utils import feature_activation

    corpus = bench.data.path(CORPORA, CORPUS).resolve()
    text = bench.data.table(*TEXT)
    with (
        running(bench) as folder,
        replaced(feature_activation, load_dataset=lambda *_, **__: text),
    ):
        (folder / _PLACE).parent.mkdir(parents=True, exist_ok=True)
        (folder / _PLACE).symlink_to(corpus)
        random.seed(config["random_seed"])
        torch.manual_seed(config["random_seed"])
        cut: Callable[..., tuple[Tensor, Tensor]] = (
            feature_activation.get_shuffled_forget_retain_tokens
        )
        try:
            forget, retain = cut(
                bench.model.hooked, batch_size=config["dataset_size"], seq_len=config["seq_len"]
            )
        except (ValueError, LookupError, TypeError) as error:
            raise SuiteError(
                f"{corpus} or the text {TEXT[0]} is not what SAEBench reads: JSON lines with a "
                f"'text' of over 50 characters ({type(error).__name__}: {error})"
            ) from error
    for tokens, what in ((forget, corpus), (retain, TEXT[0])):
        if not len(tokens):
            raise SuiteError(
                f"{what} has fewer than {config['seq_len']} tokens: lower --unlearning.seq_len"
            )
    return forget, retain
