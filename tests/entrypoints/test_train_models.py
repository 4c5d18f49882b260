"""`train` on language models in folders: by each way to load them, and what is said instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from language_models import CONTEXT, VOCABULARY, save

from sae_plugins.entrypoints.main import main
from sae_plugins.framework.trainer import PluginTrainer
from sae_plugins.runs import language_model
from sae_plugins.testing import snapshot

SMALL = (
    *("--d_sae", "64", "--training_tokens", "640", "--train_batch_size_tokens", "64"),
    *("--context_size", "32", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8"),
    *("--heldout_tokens", "200", "--streaming", "false", "--device", "cpu"),
)
HOOKED, HUGGING = "blocks.1.hook_resid_post", "model.layers.1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders of two models, one without a tokenizer, and of two texts."""
    place = tmp_path_factory.mktemp("place")
    save(place / "model")
    save(place / "bare", with_tokenizer=False)
    rows = [{"text": f"Number {n} of many, and {n * n} is its square. " * 3} for n in range(150)]
    tokens = [{"tokens": [(7 * n + i) % VOCABULARY for i in range(CONTEXT)]} for n in range(40)]
    foreign = [*tokens[:-1], {"tokens": [VOCABULARY] * CONTEXT}]
    for name, made in (("text", rows), ("tokens", tokens), ("foreign", foreign)):
        (place / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in made)
        (place / name / "train.jsonl").write_text(lines)
    return place


@pytest.fixture
def there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is the place; runs go elsewhere."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "run"


def train(folder: Path, *flags: str, model: str = "model", text: str = "text") -> int:
    given = ("--model_name", model, "--dataset_path", text, "--output_path", str(folder))
    return main(["train", *given, *SMALL, *flags])


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    ("model_class", "hook"),
    [
        ("HookedTransformer", HOOKED),
        ("AutoModelForCausalLM", HUGGING),
        pytest.param("TransformerBridge", HOOKED, marks=pytest.mark.ci),
    ],
)
def test_text_with_held_out_text(model_class: str, hook: str, there: Path, place: Path) -> None:
    assert train(there, "--model_class_name", model_class, "--hook_name", hook) == 0
    summary = json.loads((there / "summary.json").read_text())
    assert summary["heldout/tokens"] >= 200
    assert summary["training/steps"] == 10
    metadata = json.loads((there / "cfg.json").read_text())["metadata"]
    recipe = yaml.safe_load((there / "run.yaml").read_text())
    for source in (metadata, recipe):
        assert (source["model_class_name"], source["hook_name"]) == (model_class, hook)
        assert source["model_name"] == str(place / "model")


@pytest.mark.ci
@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    ("model_class", "hook"),
    [
        ("HookedTransformer", HOOKED),
        ("AutoModelForCausalLM", HUGGING),
        ("TransformerBridge", HOOKED),
    ],
)
def test_kept_activations_of_each_way_to_load_a_model(
    model_class: str, hook: str, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.activations_store import ActivationsStore

    flags = ("--model_class_name", model_class, "--hook_name", hook)
    cache = ("--activation_cache", str(there / "cache"))
    assert train(there / "plain", *flags) == 0
    assert train(there / "first", *flags, *cache) == 0
    monkeypatch.setattr(ActivationsStore, "get_activations", lambda *_: pytest.fail("it was run"))
    assert train(there / "second", *flags, *cache) == 0
    names = ("plain", "first", "second")
    weights = {(there / name / "sae_weights.safetensors").read_bytes() for name in names}
    assert len(weights) == 1


@pytest.mark.ci
@pytest.mark.usefixtures("sketched")
def test_the_same_layer_by_both_names_trains_the_same_sae(there: Path) -> None:
    from sae_lens import SAE

    saes = []
    for model_class, hook in (("HookedTransformer", HOOKED), ("AutoModelForCausalLM", HUGGING)):
        folder = there / model_class
        assert train(folder, "--model_class_name", model_class, "--hook_name", hook) == 0
        saes.append(SAE.load_from_disk(folder).state_dict())
    for name, tensor in saes[0].items():
        assert torch.allclose(tensor, saes[1][name], atol=1e-3)


@pytest.mark.ci
@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("model_class", ["HookedTransformer", "AutoModelForCausalLM"])
def test_a_language_model_in_bfloat16_trains_an_sae_in_float32(
    model_class: str, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activations are rounded; sums of them, and what they are normalised by, are not."""
    trainers, models = [], []
    step, load = PluginTrainer.step, language_model.load_model

    def watched(trainer: PluginTrainer, batch: torch.Tensor) -> Any:
        trainers.append((trainer, batch))
        return step(trainer, batch)

    def loaded(*given: Any, **how: Any) -> Any:
        models.append(load(*given, **how))
        return models[-1]

    monkeypatch.setattr(PluginTrainer, "step", watched)
    monkeypatch.setattr(language_model, "load_model", loaded)
    flags = ["--model_class_name", model_class, "--plugin", "input-norm-l1", "--fast_step"]
    flags += ["--hook_name", HOOKED if "Hooked" in model_class else HUGGING]
    flags += ["--normalize_activations", "expected_average_only_in"]
    flags += ["--n_batches_for_norm_estimate", "2", "--autocast", "true"]
    assert train(there, *flags, "--model_from_pretrained_kwargs", '{"dtype": "bfloat16"}') == 0
    trainer, batch = trainers[-1]
    found = getattr(models[0], "model", models[0])
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert torch.equal(batch.bfloat16().float(), batch)  # what a model in bfloat16 gives
    state = snapshot(trainer)
    norm = trainer.run.plugin("input-norm-l1").average
    kinds = {value.dtype for value in (batch, norm, *state.values()) if value.is_floating_point()}
    assert kinds == {torch.float32}


SHOWN_LATER = ("bare", "foreign", "--use_chat_formatting")
"""What lets a model be loaded, since it shows in the text, or in the tokenizer."""
AUTO = ("--model_class_name", "AutoModelForCausalLM", "--hook_name")


@pytest.mark.parametrize(
    ("flags", "given", "said"),
    [
        ((*AUTO, "model.layers.7"), {}, "--hook_name 'model.layers.7': {}/model has no such hook; "
         "did you mean 'model.layers.0'"),
        ((*AUTO, "model.layers"), {}, "--hook_name model.layers gives no tensor: choose a module"),
        ((*AUTO, HUGGING, "--context_size", "65"), {},
         "--context_size 65 is too large: {}/model reads 64 tokens"),
        ((*AUTO, HUGGING), {"model": "bare"}, "--model_name {0}/bare has no tokenizer, and "
         "--dataset_path {0}/text no tokens, but text in its column 'text': save the model's "
         "tokenizer there"),
        ((*AUTO, HUGGING), {"text": "foreign"}, "--dataset_path {0}/foreign: the text has the "
         "token 259, and those of {0}/model are 0 to 258"),
        ((*AUTO, HUGGING, "--exclude_special_tokens", "259"), {},
         "--exclude_special_tokens 259: the tokens of {}/model are 0 to 258"),
        ((*AUTO, HUGGING, "--use_chat_formatting", "true"), {}, "has no chat template"),
        (("--hook_name", HUGGING), {}, "--hook_name 'model.layers.1': {}/model has no such hook; "
         "it is called 'blocks.1.hook_resid_post' here, or add --model_class_name AutoModelFor"),
        (("--hook_name", HOOKED), {"model": "text"}, "text is a folder without a config.json"),
        (("--hook_name", HOOKED), {"model": "bare"}, "--model_name: {}/bare has no tokenizer"),
        (("--hook_name", HOOKED), {"model": "Qwen/Qwen3-0.6B"}, "run code on this machine"),
        (("--hook_name", HOOKED, "--model_from_pretrained_kwargs", '{"use_cache": false}'),
         {}, "--model_from_pretrained_kwargs: 'use_cache' is not among those"),
        ((*AUTO, HUGGING, "--model_from_pretrained_kwargs", '{"attn_implementation": "a/b"}'),
         {}, "--model_from_pretrained_kwargs: attn_implementation cannot be 'a/b': eager"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_model_is_loaded(
    flags: tuple[str, ...], given: dict[str, str], said: str, there: Path, place: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not {*SHOWN_LATER} & {*flags, *given.values()}:
        monkeypatch.setattr("sae_plugins.runs.language_model.load_model", None)
    assert train(there, *flags, **given) == 2
    assert said.format(place) in capsys.readouterr().err
    assert not there.exists()


@pytest.mark.ci
def test_tokens_without_a_tokenizer(there: Path) -> None:
    assert train(there, *AUTO, HUGGING, model="bare", text="tokens") == 0


def test_a_stream_with_tokens_of_another_model_says_so(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a stream holds shows only when it is read."""
    more: Any = ("--streaming", "true", "--training_tokens", "2560")
    assert train(there, *AUTO, HUGGING, *more, text="foreign") == 1
    assert "the text has the token 259, and those of" in capsys.readouterr().err
