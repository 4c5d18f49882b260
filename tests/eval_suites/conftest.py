"""Small SAEs of the embedded world, and what the suites and SAEBench say of them."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from expected import SUITES
from judge import Judge

from sae_plugins.world import text

mix = functools.lru_cache(maxsize=32)(text.mix)


@pytest.fixture(autouse=True)
def _texts_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arguments give the same documents, and nobody changes them."""
    monkeypatch.setattr(text, "mix", mix)


class Lab:
    """The embedded world, two small SAEs at `hook_name`, and what is said of them in tiny settings.

    What suites and SAEBench find out is computed once and kept, since it is compared again and
    again. Suites share a cache on disk by its name, and what they prepare along with it.

    Attributes:
        standard: an SAE of decoder rows of norm 1, never active at 0.
        topk: one that is always active.
        words: the vocabulary of absorption.
        began: when it did, as file systems tell the time.
    """

    hook_name = "blocks.1.hook_resid_post"
    d_in, d_sae = 192, 256

    def __init__(self, folder: Path) -> None:
        from itertools import islice

        import torch
        from sae_bench.evals.absorption.vocab import get_alpha_tokens

        from sae_plugins import world
        from sae_plugins.eval_suites.inputs.models import load_language_model
        from sae_plugins.eval_suites.inputs.world_data import WorldData

        self.folder, self.began = folder, time.time()
        self.model, self.data = load_language_model(world.NAME, "cpu", "float32"), WorldData()
        hooked = self.model.hooked
        documents = [row["text"] for row in islice(self.data.text("any", 0, 0), 40)]
        tokens = hooked.to_tokens(documents)[:, :64]
        with torch.no_grad():
            _, cache = hooked.run_with_cache(tokens, names_filter=[self.hook_name])
        self.acts: Any = cache[self.hook_name][tokens != hooked.tokenizer.pad_token_id]
        self.standard, self.topk = self.sae("standard"), self.sae("topk")
        by_letter: dict[str, list[str]] = {}
        for word in sorted(get_alpha_tokens(hooked.tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        self.words = [w for words in by_letter.values() for w in words[:: -(-len(words) // 4)]]
        self._known: dict[str, Any] = {}

    def sae(
        self, architecture: str, name: str = "", change: Any = None, scale: float = 1.0,
        normalize_activations: str = "none", **metadata: Any,
    ) -> Any:  # fmt: skip
        """A subject whose latents are directions of some activations, once more with `scale`.

        Args:
            architecture: `"standard"` or `"topk"`.
            name: of it and its folder; the architecture's by default.
            change: called with the SAE before it is saved.
            scale: norm of the decoder rows; codes are divided by it.
            normalize_activations: SAELens' setting.
            metadata: in the place of the default.
        """
        import torch
        from sae_lens.registry import SAE_CLASS_REGISTRY
        from sae_lens.saes.sae import SAEMetadata

        from sae_plugins.eval_suites.evaluation.loading import load_subject

        sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
        where = {"model_name": self.model.name, "hook_name": self.hook_name, "prepend_bos": True}
        config: Any = config_class(
            d_in=self.d_in, d_sae=self.d_sae, metadata=SAEMetadata(**{**where, **metadata}),
            normalize_activations=normalize_activations,
            **({"k": 16} if architecture == "topk" else {}),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(len(architecture))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            sae: Any = sae_class(config)
            centred = self.acts - self.acts.mean(0)
            chosen = torch.randperm(len(centred), generator=generator)[: self.d_sae]
            rows = centred[chosen] / centred[chosen].norm(dim=1, keepdim=True)
            sae.W_dec.copy_(rows * scale)
            sae.W_enc.copy_(rows.T / scale)
            sae.b_dec.copy_(self.acts.mean(0))
            if architecture == "standard":
                sae.b_enc.fill_(-0.4 * centred.norm(dim=1).mean() / scale)
            if change is not None:
                change(sae)
        folder = self.folder / "saes" / (name or architecture)
        sae.save_model(folder)
        return load_subject(str(folder))

    def suite(self, name: str, **overrides: Any) -> tuple[Any, Any]:
        """A suite and its tiny settings."""
        from sae_plugins.eval_suites import registry

        suite = registry.load(name)
        judged = {"endpoint": self.judge.address} if name == "autointerp" else {}
        return suite, suite.settings("canonical", {**SUITES[name].tiny, **judged, **overrides})

    @functools.cached_property
    def judge(self) -> Judge:
        """The language model that autointerp asks, on this machine."""
        return Judge()

    @functools.cached_property
    def questions(self) -> Path:
        """A folder with questions in RAVEL's files, half of whose answers the model made up."""
        from sae_plugins import world
        from sae_plugins.eval_suites.inputs.data import RAVEL
        from sae_plugins.world import text

        listed = (text.DATA / "words.txt").read_text().split()
        words = [word for word in listed if word.isalpha() and word.islower()][::30]
        templates = {
            "First letter": [
                f"{word} has the first letter: {word[0].upper()}\n %s has the first letter:"
                for word in ("castle", "value")
            ],
            "Sequel": ["I love %s. The"],
        }
        model, tokenizer = world.load_hf_model(), world.load_tokenizer()
        answers = {}
        for word in words:
            tokens = tokenizer(templates["Sequel"][0] % word, return_tensors="pt")
            said = model.generate(**tokens, max_new_tokens=2, do_sample=False)[0, -2:]
            sequel = tokenizer.decode(said).split('"')[0].strip(' "')
            answers[word] = {"First letter": word[0].upper(), "Sequel": sequel}
        folder = self.folder / "data" / RAVEL
        folder.mkdir(parents=True)
        for name, content in {
            "attribute_to_prompts": templates,
            "prompt_to_split": {t: "train" for each in templates.values() for t in each},
            "entity_attributes": answers,
            "entity_to_split": dict.fromkeys(words, "train"),
        }.items():
            (folder / f"ravel_word_{name}.json").write_text(json.dumps(content))
        return self.folder / "data"

    @functools.cached_property
    def quiz(self) -> tuple[Any, Path]:
        """A language model that SAEBench takes for Gemma's, and a folder with what it is asked."""
        import quiz

        from sae_plugins.eval_suites.inputs.models import LanguageModel

        name = "gemma-2-2b-it"
        hooked = quiz.hooked_transformer(name)
        model = LanguageModel(name, hooked, "quiz", "float32", "cpu", name, "made by hand")
        return model, quiz.write(self.folder / "quiz")

    def model_of(self, name: str) -> Any:
        """The language model of a suite."""
        return self.quiz[0] if name == "unlearning" else self.model

    def data_of(self, name: str) -> Any:
        """Where a suite's data come from."""
        from sae_plugins.eval_suites.inputs.file_data import FolderData

        if name == "unlearning":
            return FolderData(self.quiz[1])
        return FolderData(self.questions) if name == "ravel" else self.data

    def bench_of(self, name: str, cache: str = "cache") -> Any:
        """What SAEs are evaluated with by a suite."""
        return self.bench(cache, model=self.model_of(name), data=self.data_of(name))

    def bench(self, cache: str = "cache", **replaced: Any) -> Any:
        """What SAEs are evaluated with, in a scratch folder of its own."""
        import tempfile

        from sae_plugins.eval_suites.inputs.bench import Bench
        from sae_plugins.eval_suites.inputs.cache import Cache

        given = {
            "model": self.model, "hook_name": self.hook_name, "data": self.data,
            "cache": Cache(self.folder / "caches" / cache),
            "folder": Path(tempfile.mkdtemp(dir=self.folder)), "stage": lambda _: None,
        }  # fmt: skip
        return Bench(**{**given, **replaced})

    def few_words(self) -> Any:
        """While open, the vocabulary has few words."""
        from contextlib import ExitStack

        from sae_bench.evals.absorption import common, feature_absorption

        from sae_plugins.base.patches import replaced

        stack = ExitStack()
        for module in (common, feature_absorption):
            stack.enter_context(replaced(module, get_alpha_tokens=lambda *_, **__: [*self.words]))
        return stack

    def evaluate(
        self, name: str, subject: Any, bench: Any = None, seed: int = 7, **overrides: Any
    ) -> Any:
        """Scores of a suite, computed again."""
        suite, settings = self.suite(name, **overrides)
        bench = bench or self.bench_of(name)
        with self.few_words():
            prepared = suite.prepare(bench, settings, seed)
            return suite.evaluate(subject, bench, settings, seed, prepared)

    def scores(
        self, name: str, subject: Any, cache: str = "cache", seed: int = 7, **overrides: Any
    ) -> Any:
        """Scores of a suite."""
        suite, settings = self.suite(name, **overrides)
        key = repr((name, cache, seed, settings, self.words))
        with self.few_words():
            prepared = self._once(
                key, lambda: suite.prepare(self.bench_of(name, cache), settings, seed)
            )
            return self._once(
                key + subject.name + subject.hash,
                lambda: suite.evaluate(
                    subject, self.bench_of(name, cache), settings, seed, prepared
                ),
            )

    def saebench(self, name: str, *subjects: Any, seed: int = 7, **overrides: Any) -> list[Any]:
        """What one call of SAEBench, without anything of ours, says of each SAE: value by name."""
        import importlib.util
        import tempfile

        suite, settings = self.suite(name, **overrides)
        file = Path(__file__).parents[2] / "benchmarks" / "saebench_alone.py"
        spec: Any = importlib.util.spec_from_file_location("saebench_alone", file)
        alone = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(alone)

        def run() -> Any:
            saes = [
                (f"{i}-{subject.name}", subject.copy("cpu", "float32"))
                for i, subject in enumerate(subjects)
            ]
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            with self.few_words():
                model, data = self.model_of(name), self.data_of(name)
                return alone.run(suite, saes, model, data, settings, seed, folder)

        names = [subject.name + subject.hash for subject in subjects]
        return list(self._once(repr(("alone", name, seed, settings, names)), run))

    def _once(self, key: str, compute: Any) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))
