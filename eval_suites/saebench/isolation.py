"""SAEBench, run with our model in a scratch folder, and without a trace."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.patches import replaced
from sae_plugins.base.seeds import random_states, set_random_states
from sae_plugins.eval_suites.inputs.bench import Bench


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back the random states, grad mode, environment and working folder at the end."""
    states, grad, environment, folder = (
        random_states(), torch.is_grad_enabled(), dict(os.environ), Path.cwd(),
    )  # fmt: skip
    try:
        yield
    finally:
        os.chdir(folder)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_grad_enabled(grad)
        set_random_states(states)


@contextmanager
def running(bench: Bench, *modules: Any) -> Iterator[Path]:
    """Run SAEBench: with our model, in a scratch folder, and what it prints in a file there.

    Its bars become stages of ours, so that long work shows that it goes on.
    """
    folder = bench.folder.resolve()
    log = folder / "saebench.log"
    with undisturbed(), ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced(module, HookedTransformer=_Given(bench.model.hooked)))
        stack.enter_context(on_a_fresh_install())
        stack.enter_context(taking(bench.model.hooked))
        text: Any = _Log(stack.enter_context(log.open("a", encoding="utf-8")), bench.stage)
        stack.enter_context(contextlib.redirect_stdout(text))
        stack.enter_context(contextlib.redirect_stderr(text))
        os.chdir(folder)
        yield folder


class _Log:
    """What SAEBench prints goes into a file, and where its bars are is said now and then."""

    BAR = re.compile(r"(?:(\S[^\r\n]*?):? +)?\d+%\|[^|]*\| *(\S+/\S+) \[")
    SECONDS = 30.0

    def __init__(self, file: TextIO, say: Callable[[str], None]) -> None:
        self._file = file
        self._say = say
        self._said = time.monotonic()

    def write(self, text: str) -> int:
        now = time.monotonic()
        if now - self._said >= self.SECONDS and (bar := self.BAR.search(text)):
            self._said = now
            self._say(f"{bar[1] or 'batch'} {bar[2]}")
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Given:
    """Stands in for the class HookedTransformer: loads nothing, but gives the model at hand."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained_no_processing(self, *_: Any, **__: Any) -> Any:
        return self.model


@contextmanager
def on_a_fresh_install() -> Iterator[None]:
    """Without the type check that fails with every beartype of today (hazard 6)."""
    # an evaluation that uses it has loaded it; it brings scikit-learn, which others do without
    probe_training = sys.modules.get("sae_bench.evals.sparse_probing.probe_training")
    if probe_training is None:
        yield
        return
    own = probe_training.train_sklearn_probe
    with replaced(probe_training, train_sklearn_probe=getattr(own, "__wrapped__", own)):
        yield


@contextmanager
def taking(model: Any) -> Iterator[None]:
    """Let functions that insist on a HookedTransformer take another model with such hooks."""
    from sae_bench.sae_bench_utils import activation_collection
    from transformer_lens import HookedTransformer

    own: dict[str, Any] = {}
    if not isinstance(model, HookedTransformer):
        for name, function in vars(activation_collection).items():
            if HookedTransformer in getattr(function, "__annotations__", {}).values():
                own[name] = inspect.unwrap(function)
    with replaced(activation_collection, **own):
        yield


def only(results: dict[str, Any]) -> dict[str, Any]:
    """The result of the one SAE."""
    if len(results) != 1:
        raise SuiteError(f"SAEBench gave {len(results)} results instead of one")
    return next(iter(results.values()))


def only_json(folder: Path) -> str:
    """The one JSON file that SAEBench wrote."""
    files = sorted(folder.rglob("*_eval_results.json"))
    if len(files) != 1:
        raise SuiteError(f"SAEBench wrote {len(files)} results instead of one")
    return files[0].read_text("utf-8")
