"""One test per seam of SAEBench that the suites rely on, as our `saebench` lists them.

A failure here means that SAEBench moved something: mend what uses the seam, then the list.
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sae_bench
import torch
from expected import SUITES
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing
from sae_bench.evals.absorption import main as absorption
from sae_bench.evals.core import main as core
from sae_bench.evals.scr_and_tpp import dataset_creation
from sae_bench.evals.scr_and_tpp import main as scr
from sae_bench.evals.sparse_probing import main as sparse_probing
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.sae_bench_utils import activation_collection, dataset_utils
from sklearn import metrics

from sae_plugins.base.patches import replaced
from sae_plugins.eval_suites import PRESETS, saebench
from sae_plugins.eval_suites.sae_probes import SAEProbes
from sae_plugins.eval_suites.saebench import sae_probes_datasets, unlearning
from sae_plugins.eval_suites.saebench.absorption import _encoded_once, _Together
from sae_plugins.eval_suites.saebench.dictionary_learning import CUSTOM_LOADERS
from sae_plugins.eval_suites.saebench.facts import names_of, reported_numbers
from sae_plugins.eval_suites.saebench.isolation import on_a_fresh_install, undisturbed
from sae_plugins.eval_suites.saebench.probing import OF_THE_DATA
from sae_plugins.eval_suites.saebench.ravel import files_of
from sae_plugins.eval_suites.scr import SCR
from sae_plugins.eval_suites.sparse_probing import SparseProbing
from sae_plugins.eval_suites.tpp import DATASETS as TPP_DATASETS
from sae_plugins.eval_suites.tpp import TPP

PACKAGE = Path(sae_bench.__file__).parent
SLOWER = ("tpp", "sae-probes", "autointerp", "ravel")
SUITE = [pytest.param(name, marks=[pytest.mark.ci] if name in SLOWER else []) for name in SUITES]


def seam(beginning: str) -> Callable[[Any], Any]:
    """Name the entry of the list, by its beginning, that a test is about."""
    return lambda test: test


def module_of(suite: str) -> Any:
    """SAEBench's that evaluates; importing that of sae-probes takes ten seconds."""
    return importlib.import_module(f"sae_bench.evals.{SUITES[suite].module}")


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_every_seam_of_the_list_has_its_test() -> None:
    listed = re.findall(r"^- (.*(?:\n  .*)*)", saebench.__doc__ or "", re.M)
    tested = re.findall(r"^@seam\([\"'](.+)[\"']\)$", Path(__file__).read_text(), re.M)
    assert len(listed) == len(tested)
    for entry, beginning in zip(listed, tested, strict=True):
        assert entry.startswith(beginning), f"the list says {entry!r}, the tests {beginning!r}"


@seam("`core.main.multiple_evals`, `scr_and_tpp.main.run_eval`, `sparse_probing.main.run_eval`")
@pytest.mark.parametrize("suite", SUITE)
def test_one_json_and_what_is_returned_are_the_same(suite: str, lab: Any) -> None:
    entry_point = getattr(module_of(suite), SUITES[suite].function)
    assert "selected_saes" in parameters(entry_point)
    scores = lab.scores(suite, lab.topk)  # from what is returned; there was one JSON
    groups = json.loads(scores.raw)["eval_result_metrics"].values()
    written = {name: value for group in groups for name, value in group.items()}
    compared = written.keys() & scores.metrics.keys()
    assert len(compared) >= (1 if suite == "unlearning" else 2)
    for name in compared:
        assert scores.metrics[name].value == pytest.approx(written[name]), name


@seam("each of these modules gets its model by `HookedTransformer.from_pretrained_no_processing`")
@pytest.mark.parametrize("suite", [each for each in SUITE if each.values != ("ravel",)])
def test_where_the_model_comes_from(suite: str) -> None:
    loads = SUITES[suite].loads
    module = importlib.import_module(loads) if loads else module_of(suite)
    assert inspect.isclass(module.HookedTransformer)
    source = inspect.getsource(module)
    called = set(re.findall(r"HookedTransformer\.(\w+)\(", source))
    assert called == {"from_pretrained_no_processing"}


@seam("`core.main` gets its text by `ActivationsStore.from_sae`, retries failures through")
def test_the_seams_of_core(lab: Any) -> None:
    source = inspect.getsource(core)
    assert re.findall(r"ActivationsStore\.(\w+)\(", source) == ["from_sae"]
    assert source.count("@general_utils.retry_with_exponential_backoff(") == 2
    evaluating = inspect.getsource(core.multiple_evals)
    handlers = re.findall(r"except Exception as e:\n(.*?)continue", evaluating, re.S)
    assert len(handlers) == evaluating.count(" except ") == 2
    assert all("logger.error(" in handler and "raise" not in handler for handler in handlers)

    called: list[str] = []
    own = core.get_sparsity_and_variance_metrics

    def watched(sae: Any, *args: Any, **kwargs: Any) -> Any:
        """Within ours, so that it sees what SAEBench calls."""
        names = {"encode": sae.encode, "decode": sae.decode}
        recorded = {name: lambda x, n=name: (called.append(n), names[n](x))[1] for name in names}
        with replaced(sae, **recorded):
            return own(sae, *args, **kwargs)

    with replaced(core, get_sparsity_and_variance_metrics=watched):
        lab.evaluate("core", lab.topk, n_eval_sparsity_variance_batches=3)
    assert called == ["encode", "decode"] * 3


@seam("`dataset_utils.load_dataset` and `dataset_creation.load_dataset` are all that reads")
def test_who_reads_labelled_data() -> None:
    for module in (dataset_utils, dataset_creation):
        assert "load_dataset" in vars(module)
    for folder in ("sae_bench_utils", "evals/sparse_probing", "evals/scr_and_tpp"):
        for file in (PACKAGE / folder).glob("*.py"):
            if re.search(r"\bload_dataset\(", file.read_text()):
                assert file.stem in ("dataset_utils", "dataset_creation")


@seam("`sparse_probing.main.get_dataset_activations` and `scr_and_tpp.main.get_dataset_")
@pytest.mark.parametrize("module", [scr, sparse_probing])
def test_activations_of_a_dataset(module: Any) -> None:
    assert parameters(module.get_dataset_activations)[:7] == [
        "dataset_name", "config", "model", "llm_batch_size", "layer", "hook_point", "device",
    ]  # fmt: skip
    rest = parameters(module.get_dataset_activations)[7:]
    assert rest == (["chosen_classes", "column1_vals", "column2_vals"] if module is scr else [])
    fields = set(re.findall(r"config\.(\w+)", inspect.getsource(module.get_dataset_activations)))
    in_the_key = {*OF_THE_DATA} - (set() if module is scr else {"perform_scr"})
    assert {f for f in fields if not f.endswith("set_size")} == in_the_key
    source = inspect.getsource(module.run_eval_single_dataset)
    assert "= get_dataset_activations(" in source


@seam("what `activation_collection.create_meaned_model_activations` returns is the lang")
@pytest.mark.parametrize("use_sklearn", [False, True])
def test_probes_of_the_language_model(use_sklearn: bool) -> None:
    for module in (scr, sparse_probing):
        source = inspect.getsource(module)
        assert source.count("activation_collection.create_meaned_model_activations(") == 2
        assert source.count("create_meaned_model_activations(") == 2
        assert "probe_training.train_probe_on_activations(" in source
    acts = {name: torch.randn(20, 6) + i for i, name in enumerate("ab")}
    meaned = activation_collection.create_meaned_model_activations(
        {name: part[:, None] for name, part in acts.items()}
    )
    torch.testing.assert_close(meaned, acts)

    def train(seed: int) -> Any:
        torch.manual_seed(seed)
        random.seed(), np.random.seed()  # of no account
        before = random.getstate(), np.random.get_state()[1].copy()
        with on_a_fresh_install(), torch.enable_grad():
            found = probe_training.train_probe_on_activations(
                acts, acts, select_top_k=2 if use_sklearn else None, use_sklearn=use_sklearn
            )
        assert random.getstate() == before[0]
        assert (np.random.get_state()[1] == before[1]).all()
        return found[1]

    assert train(1) == train(1)


def test_what_trains_no_probes_does_not_load_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings scikit-learn."""
    name = "sae_bench.evals.sparse_probing.probe_training"
    monkeypatch.delitem(sys.modules, name)
    with on_a_fresh_install():
        assert name not in sys.modules


@seam("`probe_training.train_sklearn_probe` is beartype's wrapper around a function that works")
def test_the_probe_of_sklearn() -> None:
    acts, labels = torch.randn(20, 4), torch.arange(20) % 2
    both = {"a": acts, "b": acts + 1}
    fails = pytest.raises(Exception, match="train_sklearn_probe")
    with undisturbed(), torch.enable_grad(), fails as caught:
        probe_training.train_probe_on_activations(both, both, select_top_k=1)
    assert "beartype" in type(caught.value).__module__
    acts[:, 0] += 10 * labels
    _, accuracy = probe_training.train_sklearn_probe.__wrapped__(acts, labels, acts, labels)
    assert accuracy == 1


@seam("`scr_and_tpp.main.perform_feature_ablations` selects by `select_top_n_features`, and calls")
def test_ablations() -> None:
    calls: list[Any] = []

    class SAE:
        def encode(self, acts: Any) -> Any:
            calls.append(("encode", len(acts)))
            return torch.ones(*acts.shape[:2], 4)

        def decode(self, codes: Any) -> Any:
            calls.append(("decode", codes[0, 0].tolist()))
            return torch.ones(*codes.shape[:2], 2)

    acts, mask = torch.randn(3, 5, 2), torch.tensor([False, True, False, True])
    sae: Any = SAE()
    scr.ablated_precomputed_activations(acts, sae, mask, 2)
    decoded = [("decode", [1.0] * 4), ("decode", [1.0, 0.0, 1.0, 0.0])]
    assert calls == [("encode", 2), *decoded, ("encode", 1), *decoded]

    asked: list[Any] = []
    effects = {"x": torch.tensor([3.0, 0.0, 1.0, 2.0])}
    with replaced(
        scr,
        ablated_precomputed_activations=lambda *given: asked.append(given),
        get_probe_test_accuracy=lambda *_: {},
    ):
        scr.perform_feature_ablations({}, sae, 2, {"y": acts}, effects, [1, 2], ["x"], 8, True)
    for n, (given_acts, given_sae, given_mask, batch_size) in enumerate(asked, 1):
        assert (given_acts is acts, given_sae is sae, batch_size) == (True, True, 2)
        assert torch.equal(given_mask, scr.select_top_n_features(effects["x"], n, "x"))
    assert len(asked) == 2


@seam("`scr_and_tpp.main` asks `get_probe_test_accuracy` for accuracies before ablations")
def test_where_probes_are_tested() -> None:
    for function in (scr.run_eval_single_dataset, scr.perform_feature_ablations):
        assert inspect.getsource(function).count("get_probe_test_accuracy(") == 1
    assert inspect.getsource(scr).count(" get_probe_test_accuracy(") == 3  # its `def`, too


@seam("`scr_and_tpp.main.COLUMN2_VALS_LOOKUP` has the datasets of TPP, whose classes are those")
def test_the_datasets_of_tpp() -> None:
    assert {*scr.COLUMN2_VALS_LOOKUP} == {*TPP_DATASETS}
    source = inspect.getsource(scr.run_eval_single_dataset)
    assert "column2_vals = COLUMN2_VALS_LOOKUP[dataset_name]" in source
    assert "chosen_classes = dataset_info.chosen_classes_per_dataset[dataset_name]" in source
    for dataset in TPP_DATASETS:
        assert len(names_of(dataset)) == len(set(names_of(dataset).values())) == 5


@seam("`absorption.common.get_alpha_tokens` and `absorption.feature_absorption.get_alpha_tokens`")
def test_the_vocabulary() -> None:
    for module in (common, feature_absorption):
        assert "= get_alpha_tokens(model.tokenizer)" in inspect.getsource(module)
        for words in (["a", "b"], ["b", "a"]):
            tokenizer = SimpleNamespace(
                vocab=dict.fromkeys(words), convert_tokens_to_string="".join
            )
            assert module.get_alpha_tokens(tokenizer) == words


@seam("`absorption.common.train_and_save_probes` trains the first-letter probes; the functions")
def test_who_reads_first_letter_probes() -> None:
    expected = ["model", "layers", "base_template", "pos_idx", "probes_dir"]
    assert parameters(common.train_and_save_probes)[:5] == expected
    readers = ("load_or_train_probe", "load_probe_data_split_or_train", "load_probe")
    for file in (PACKAGE / "evals/absorption").glob("*.py"):
        text = file.read_text()
        called = {name for name in readers if re.search(rf"(?<!def )\b{name}\(", text)}
        expected_here = {
            "k_sparse_probing": set(readers[:2]),
            "feature_absorption": {readers[2]},
            "common": {readers[2]},  # by load_or_train_probe
        }
        assert called == expected_here.get(file.stem, set()), file.stem
        if file.stem not in ("common", "probing"):
            assert not re.search(r"torch\.load\(|np\.load\(", text), file.stem


@seam("`absorption.k_sparse_probing._get_sae_acts` encodes again for every probe of some features")
def test_how_often_absorption_encodes(lab: Any) -> None:
    asked: list[Any] = []
    own = k_sparse_probing._get_sae_acts

    def counting(sae: Any, acts: Any, batch_size: int = 4096, sparse_feat_ids: Any = None) -> Any:
        asked.append(sparse_feat_ids)
        return own(sae, acts, batch_size, sparse_feat_ids)

    words = [(word, number % 3) for number, word in enumerate("abcdef")]
    sae = lab.topk.copy("cpu", "float32")
    with replaced(k_sparse_probing, _get_sae_acts=counting), torch.enable_grad():
        k_sparse_probing.train_k_sparse_probes(sae, words, lab.acts[:6], [1, 2], num_epochs=1)
    assert [len(ids) for ids in asked] == [1, 1, 1, 2, 2, 2]
    once = _encoded_once(own)
    for ids in asked:
        assert torch.equal(once(sae, lab.acts[:6], 4, ids), own(sae, lab.acts[:6], 4, ids))
    assert torch.equal(once(sae, lab.acts[:6]), own(sae, lab.acts[:6]))

    assert k_sparse_probing.metrics is metrics
    source = inspect.getsource(k_sparse_probing.build_metrics_df)
    scores = re.findall(r"metrics\.(f1|recall|precision)_score\((.+)\)", source)
    for first, second, third in zip(*(scores[i::3] for i in range(3)), strict=True):
        assert (first[0], second[0], third[0]) == ("f1", "recall", "precision")
        assert first[1] == second[1] == third[1]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_scores_together_are_those_of_sklearn(pairs: Any) -> None:
    truth, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    together = _Together(metrics)
    for _ in range(2):
        for name in ("f1_score", "recall_score", "precision_score"):
            assert getattr(together, name)(truth, predicted) == getattr(metrics, name)(
                truth, predicted
            )
        truth, predicted = predicted, truth
    assert together.roc_auc_score is metrics.roc_auc_score


@seam("`absorption.main` writes through `run_k_sparse_probing_experiment` and")
def test_where_absorption_writes() -> None:
    assert "experiment_dir" in parameters(absorption.run_k_sparse_probing_experiment)
    assert {"experiment_dir", "sparse_probing_experiment_dir"} < {
        *parameters(absorption.run_feature_absortion_experiment)
    }
    source = inspect.getsource(absorption.run_eval)
    for name in ("run_k_sparse_probing_experiment", "run_feature_absortion_experiment"):
        ((arguments),) = re.findall(rf"= {name}\((.*?)\n        \)", source, re.S)
        assert "_dir" not in arguments
        assert all("=" in line for line in arguments.strip().splitlines())
    assert 'os.path.join("artifacts", "absorption")' in source  # in the working folder


@seam("`sae_probes.generate_model_activations.ensure_dataset_activations` is all that asks for")
@pytest.mark.ci
def test_who_asks_for_the_activations_of_sae_probes(tmp_path: Path) -> None:
    import sae_probes
    from sae_probes import generate_model_activations

    for file in Path(sae_probes.__file__).parent.glob("*.py"):
        if file.stem not in ("generate_model_activations", "__init__"):
            assert "generate_single_dataset_activations" not in file.read_text()
            assert "generate_dataset_activations" not in file.read_text()
    asked: list[dict[str, Any]] = []

    def generate(**given: Any) -> None:
        asked.append(given)

    with replaced(generate_model_activations, generate_single_dataset_activations=generate):
        generate_model_activations.ensure_dataset_activations(
            "m", ["118_us_state_CA"], ["blocks.1.hook_x"], tmp_path, model=object()
        )
    expected = {
        "model", "model_name", "dataset_path", "hook_names", "model_cache_path", "device",
        "max_seq_len", "batch_size", "OOD",
    }  # fmt: skip
    assert {*asked[0]} == expected
    assert asked[0]["max_seq_len"] == 1024
    assert Path(asked[0]["dataset_path"]).name == "118_us_state_CA.csv.zst"
    file = tmp_path / "model_activations_m" / "118_us_state_CA_blocks.1.hook_x.pt"
    file.parent.mkdir()
    file.touch()
    with replaced(generate_model_activations, generate_single_dataset_activations=generate):
        generate_model_activations.ensure_dataset_activations(
            "m", ["118_us_state_CA"], ["blocks.1.hook_x"], tmp_path
        )
    assert len(asked) == 1


@seam("`sparse_probing_sae_probes.main` calls `run_baseline_evals` by keywords, which writes")
@pytest.mark.ci
def test_baselines_of_sae_probes() -> None:
    import sae_probes
    from sae_probes import run_baselines

    source = inspect.getsource(module_of("sae-probes"))
    ((arguments),) = re.findall(r"run_baseline_evals\((.*?)\n            \)", source, re.S)
    names = [line.strip().partition("=")[0] for line in arguments.strip().splitlines()]
    assert names == parameters(sae_probes.run_baseline_evals)
    path = run_baselines.get_baseline_save_path("d", "blocks.1.hook_x", "logreg", "m", "results")
    assert path == Path("results/baseline_results_m/normal_setting/d_blocks.1.hook_x_logreg.json")
    assert "metrics_savepath = get_baseline_save_path(" in inspect.getsource(
        run_baselines.run_baseline_dataset_layer
    )


@seam("`sae_probes.DATASETS` has the names of `sae_probes_datasets.py`, whose texts")
@pytest.mark.ci
def test_the_datasets_of_sae_probes() -> None:
    import sae_probes
    from sae_probes.utils_data import get_dataset_sizes

    assert [*sae_probes_datasets.DATASETS] == sae_probes.DATASETS
    sizes = get_dataset_sizes()
    assert {name: texts for name, (texts, _) in sae_probes_datasets.DATASETS.items()} == sizes


@seam("`autointerp.main` gets its tokens by `dataset_utils.load_and_tokenize_dataset`")
@pytest.mark.ci
def test_whom_autointerp_asks(tmp_path: Path) -> None:
    main = module_of("autointerp")
    source = inspect.getsource(main)
    assert source.count(" OpenAI(") == 1
    assert source.count("ThreadPoolExecutor(") == 1
    assert "with ThreadPoolExecutor(max_workers=10) as executor" in source
    assert source.count("load_and_tokenize_dataset(") == 1
    asked: list[dict[str, Any]] = []

    class Client:
        def __init__(self, api_key: str) -> None:
            completions = SimpleNamespace(create=self.create)
            self.chat = SimpleNamespace(completions=completions)

        def create(self, **request: Any) -> Any:
            asked.append(request)
            message = SimpleNamespace(content=" yes ")
            return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    messages = [{"role": "user", "content": "Now."}]
    this: Any = SimpleNamespace(api_key="no key")
    with replaced(main, OpenAI=Client):
        said, _ = main.AutoInterp.get_api_response(this, messages, 7)
    assert said == ["yes"]
    assert asked == [
        {"model": "gpt-4o-mini", "messages": messages, "n": 1, "max_tokens": 7, "stream": False}
    ]


@seam("`autointerp.main.AutoInterp.gather_data` takes, of each latent, windows of tokens at random")
@pytest.mark.ci
def test_the_examples_of_autointerp(lab: Any) -> None:
    main, taken, made = module_of("autointerp"), [], []
    own_index, own_examples = main.index_with_buffer, main.Examples

    def index_with_buffer(x: Any, indices: Any, buffer: int = 0) -> Any:
        taken.append("codes" if x.is_floating_point() else "tokens")
        return own_index(x, indices, buffer=buffer)

    class Examples(own_examples):  # type: ignore[valid-type, misc]
        def __init__(self, examples: list[Any], shuffle: bool = False) -> None:
            made.append((shuffle, [any(each.acts) for each in examples]))
            super().__init__(examples, shuffle)

    # within ours, which look at the same: so that it is seen what SAEBench calls
    own_gather = main.AutoInterp.gather_data

    def gather_data(self: Any) -> Any:
        inner = {"index_with_buffer": index_with_buffer, "Examples": Examples}
        with replaced(main, **inner):
            return own_gather(self)

    with replaced(main.AutoInterp, gather_data=gather_data):
        lab.saebench("autointerp", lab.topk, n_latents=2)
    assert taken == ["tokens", "tokens", "codes", "tokens", "codes"] * 2
    assert made == [(False, [True] * 15), (True, [True] * 4 + [False] * 10)] * 2
    coroutines = [main.AutoInterp.run, main.AutoInterp.run_single_feature]
    assert all(map(inspect.iscoroutinefunction, coroutines))


@seam("`ravel.main` gets its model by `AutoModelForCausalLM.from_pretrained` and its tokenizer by")
@pytest.mark.ci
def test_where_ravel_gets_what_it_needs(tmp_path: Path) -> None:
    from sae_bench.evals.ravel import instance, intervention, mdbm

    main = module_of("ravel")
    source = inspect.getsource(main)
    assert source.count("from_pretrained(") == 4  # the model once, the tokenizer three times
    assert source.count("AutoTokenizer.from_pretrained(") == 3
    assert "config.model_name = LLM_NAME_MAP[config.model_name]" in source
    for module in (main, intervention, mdbm):
        assert "get_module" not in vars(module)  # but only that of activation_collection
    for name in ("city", "nobel_prize_winner"):
        (tmp_path / "base").mkdir(exist_ok=True)
        for file in files_of(name):
            (tmp_path / "base" / file).write_text("{}")
        with replaced(instance, snapshot_download=None):  # which is called where one is missing
            instance.RAVELInstance().load_files(name, str(tmp_path))
    asking = inspect.getsource(main.run_eval_single_dataset)
    assert "if not os.path.exists(filtered_dataset_path):" in asking
    assert parameters(main.run_eval_single_cause_attribute) == [
        "dataset", "cause_attribute", "iso_attributes", "config", "sae", "model"
    ]  # fmt: skip


@seam("`unlearning.main` knows a language model by its `cfg.model_name`, gets questions by")
def test_where_unlearning_gets_what_it_needs(tmp_path: Path) -> None:
    from sae_bench.evals.unlearning.utils import eval as of_one_sae
    from sae_bench.evals.unlearning.utils import feature_activation
    from sae_bench.evals.unlearning.utils import metrics as asking

    main = module_of("unlearning")
    listed = re.findall(r"if model\.cfg\.model_name in (\[.+\]):", inspect.getsource(asking))
    assert [*map(json.loads, listed)] == [[*reversed(unlearning.MODELS)], ["Mistral-7B-v0.1"]]
    assert re.findall(r"(\w+) = load_dataset\(", inspect.getsource(asking)) == ["dataset"] * 3
    assert f'"./{unlearning._PLACE.parent}/{{forget_corpora}}.jsonl"' in inspect.getsource(
        feature_activation.get_forget_retain_data
    )
    assert [*_called(main.run_eval, "seed")] == ["random.seed", "torch.manual_seed"]
    assert [*_called(feature_activation, "sample|randperm")] == ["random.sample"] + 2 * [
        "torch.randperm"
    ]
    asked = inspect.getsource(asking.calculate_MCQ_metrics)
    assert 'f"data/question_ids/{split}/{full_dataset_name}_{target_metric}.csv"' in asked
    unlearning._write_numbers(
        {"human_aging": torch.tensor([3, 5])}, None, 1, tmp_path, "human_aging"
    )
    file = tmp_path / "data/question_ids/all/mmlu-human-aging_correct.csv"
    assert np.genfromtxt(file, ndmin=1, dtype=int).tolist() == [3, 5]
    evaluating = inspect.getsource(main.run_eval)
    assert "= run_eval_single_sae(" not in evaluating  # but what it returns has the baselines
    assert "get_baseline_metrics" not in inspect.getsource(of_one_sae)
    assert "get_unlearning_scores(metrics_df)" in evaluating
    assert evaluating.count("metrics_df = get_metrics_df(") == 1


def _called(owner: Any, names: str) -> list[str]:
    return re.findall(rf"\b(\w+\.(?:\w+_)?(?:{names}))\(", inspect.getsource(owner))


@seam("the loaders `CUSTOM_LOADERS` of `sae_bench.custom_saes` read two files, each named by")
@pytest.mark.parametrize("target", sorted(set(CUSTOM_LOADERS.values())))
def test_loaders_of_others(target: str) -> None:
    name, _, function = target.partition(".")
    module = importlib.import_module(f"sae_bench.custom_saes.{name}")
    loader = getattr(module, function)
    assert {"repo_id", "filename", "layer", "model_name", "device", "dtype"} <= {
        *parameters(loader)
    }
    assert inspect.getsource(loader).count("hf_hub_download(") == 2
    assert "hf_hub_download" in vars(module)


@seam("`SparseProbingSaeMetrics`, `SaeProbesSaeMetrics`, `ScrMetrics` and `TppMetrics` have a")
def test_numbers_that_are_reported() -> None:
    reported = {
        "scr": {*reported_numbers("scr_and_tpp", "scr_metric_threshold_{k}")},
        "tpp": {*reported_numbers("scr_and_tpp", "tpp_threshold_{k}_total_metric")},
        "sparse-probing": {*reported_numbers("sparse_probing", "sae_top_{k}_test_accuracy")},
    }
    for preset in PRESETS:
        assert {*SCR().settings(preset, {}).n_values} <= reported["scr"]
        assert {*TPP().settings(preset, {}).n_values} <= reported["tpp"]
        assert {*SparseProbing().settings(preset, {}).k_values} <= reported["sparse-probing"]
    assert 3 not in reported["sparse-probing"]


@pytest.mark.ci
def test_numbers_that_are_reported_of_sae_probes() -> None:
    reported = {*reported_numbers("sparse_probing_sae_probes", "sae_top_{k}_test_accuracy")}
    for preset in PRESETS:
        assert {*SAEProbes().settings(preset, {}).ks} <= reported
