"""SAEBench's autointerp, run for one SAE, with a language model of the user's choice as judge."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites.inputs.bench import Bench
from sae_plugins.eval_suites.inputs.chat import NO_KEY, Asked, NoAnswer
from sae_plugins.eval_suites.saebench.isolation import only, only_json, running
from sae_plugins.eval_suites.saebench.shared_model import SharedModel


def tokens_of(bench: Bench, dataset: str, length: int, total: int, seed: int) -> Tensor:
    """Open text in tokens [texts, length], as SAEBench cuts it.

    Raises:
        SuiteError: there are fewer than `total`.
    """
    from sae_bench.sae_bench_utils import dataset_utils

    text = bench.data.text(dataset, 0, seed)
    with running(bench), replaced(dataset_utils, load_dataset=lambda *_, **__: text):
        try:
            tokens: Tensor = dataset_utils.load_and_tokenize_dataset(
                dataset, length, total, bench.model.hooked.tokenizer
            )
        except AssertionError:
            raise SuiteError(
                f"{dataset} has fewer than {total} tokens, or more than the five characters of a "
                "token with which SAEBench reckons: lower --autointerp.total_tokens, or give more "
                "text"
            ) from None
    return tokens


def run_autointerp(
    sae: Any, name: str, bench: Bench, shared: SharedModel, tokens: Tensor,
    config: Mapping[str, Any], judge: Asked, label_random: bool,
) -> tuple[dict[str, Any], str, Found]:  # fmt: skip
    """SAEBench's result, as a dict, its JSON, and what it does not say.

    Args:
        sae: a copy, which SAEBench may change.
        name: what it is called in the JSON.
        bench: the model.
        shared: what has been computed of it before.
        tokens: as `tokens_of` gives them.
        config: SAEBench's, but for the model's name and dtype.
        judge: who explains and predicts.
        label_random: whether random examples count as what they are.
    """
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
    from sae_bench.sae_bench_utils import dataset_utils

    eval_config = AutoInterpEvalConfig(
        model_name=bench.model.label, llm_dtype=bench.model.dtype, **config
    )
    found = Found()
    with (
        running(bench, main) as folder,
        shared.answering(),
        _watching(main, eval_config, found, label_random),
        replaced(dataset_utils, load_and_tokenize_dataset=lambda *_, **__: tokens.clone()),
        replaced(
            main,
            AutoInterp=_reproducible(main.AutoInterp, found),
            OpenAI=lambda **_: judge,
            ThreadPoolExecutor=_Pool,
        ),
    ):
        results = _outside_of_loops(
            lambda: main.run_eval(
                eval_config, [(name, sae)], bench.model.device, NO_KEY, str(folder / "results")
            )
        )
        return only(results), only_json(folder), found


class Found:
    """What SAEBench's autointerp knows and does not tell."""

    def __init__(self) -> None:
        self.random_active: list[float] = []
        """Of each latent that was looked at, the share of its random examples where it fires."""
        self.without_examples = 0
        """Latents that fire too seldom to have examples."""
        self.without_answer: list[str] = []
        """Why, for each latent to which the judge said nothing."""
        self.unreadable = 0
        """Latents for which its predictions are no list of numbers."""


class _Pool(ThreadPoolExecutor):
    """Sends nothing more once something has failed, or the user has interrupted it (hazard 32)."""

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)


def _reproducible(own: Any, found: Found) -> Any:
    """SAEBench's class, whose prompts do not depend on which answer comes first (hazard 31)."""

    class AutoInterp(own):  # type: ignore[misc]
        async def run(self, *args: Any, **kwargs: Any) -> Any:
            results = await super().run(*args, **kwargs)
            return {latent: results[latent] for latent in sorted(results)}

        def gather_data(self) -> Any:
            generation, scoring = super().gather_data()
            found.without_examples = len(self.latents) - len(generation)
            return generation, scoring

        async def run_single_feature(self, *args: Any, **kwargs: Any) -> Any:
            try:
                result = await super().run_single_feature(*args, **kwargs)
            except NoAnswer as error:
                found.without_answer.append(str(error))
                return None
            found.unreadable += result is None
            return result

        def get_scoring_prompts(self, explanation: str, scoring_examples: Any) -> Any:
            state = random.getstate()
            random.seed(f"{self.cfg.random_seed} {[each.toks for each in scoring_examples]}")
            try:
                return super().get_scoring_prompts(explanation, scoring_examples)
            finally:
                random.setstate(state)

    return AutoInterp


@contextmanager
def _watching(main: Any, config: Any, found: Found, label_random: bool) -> Iterator[None]:
    """Look at what a latent does in its random examples, which count as inactive (hazard 33)."""
    own_index, own_examples = main.index_with_buffer, main.Examples
    drawn: list[Tensor] = []
    last: list[Any] = []

    def index_with_buffer(x: Tensor, indices: Tensor, buffer: int = 0) -> Tensor:
        windows: Tensor = own_index(x, indices, buffer=buffer)
        if not x.is_floating_point():
            drawn.append(indices)
            return windows
        if len(drawn) == 2:  # of the random examples and of the strongest, whose codes these are
            threshold = config.act_threshold_frac * windows.max().item()
            codes = own_index(x, drawn[0].to(x.device), buffer=buffer)
            found.random_active.append((codes.amax(1) > threshold).double().mean().item())
            last[:] = codes.tolist()
        drawn.clear()
        return windows

    class Examples(own_examples):  # type: ignore[valid-type, misc]
        def __init__(self, examples: list[Any], shuffle: bool = False) -> None:
            if shuffle and label_random:
                for example, codes in zip(examples[-len(last) :], last, strict=True):
                    example.acts = codes
                    example.toks_are_active = [code > example.act_threshold for code in codes]
                    example.is_active = any(example.toks_are_active)
            super().__init__(examples, shuffle)

    with replaced(main, index_with_buffer=index_with_buffer, Examples=Examples):
        yield


def _outside_of_loops(call: Callable[[], Any]) -> Any:
    """Its result; `asyncio.run` in it refuses where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()
