"""Language models, each loaded in the way that suits it; what cannot be is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import CONTEXT, D_IN, VOCABULARY, save
from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

from sae_plugins import world
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.language_models import hugging_face
from sae_plugins.runs.language_models.choice import loader_of
from sae_plugins.runs.language_models.hooks import shape_at
from sae_plugins.runs.language_models.transformer_lens import Listed

HOOK = "blocks.1.hook_resid_post"
TOKENS = torch.arange(3, 23)[None] % VOCABULARY


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "gemma-or-llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "gemma-2-2b", "Gemma2", query_pre_attn_scalar=8)


@torch.no_grad()
def expected(folder: Path, layer: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' own model gives: logits, and the output of a layer."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    found = model.eval()(TOKENS, output_hidden_states=True)
    return found.logits, found.hidden_states[layer + 1]


@pytest.mark.parametrize(
    ("kind", "model_class", "hook", "said"),
    [
        ("llama", "HookedTransformer", HOOK, "converted by TransformerLens"),
        ("gemma", "HookedTransformer", HOOK, "TransformerBridge"),  # it converts none unlisted
        ("llama", "TransformerBridge", HOOK, "TransformerBridge"),
        ("llama", "AutoModelForCausalLM", "model.layers.1", "SAELens' proxy"),
    ],
)
def test_a_folder_gives_the_model_in_it(
    kind: str, model_class: str, hook: str, said: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    loader = loader_of(str(folder), model_class)
    assert said in loader.kind
    assert (loader.label, loader.dtype) == (folder.name, "float32")
    looks = loader.looks()
    assert (looks.context, looks.vocabulary) == (CONTEXT, VOCABULARY)
    assert all(parameter.is_meta for parameter in looks.model.parameters())
    assert shape_at(hook, looks.model, 2, {}) == (1, 2, D_IN)
    model = loader.load("cpu", hook_name=hook)
    takes_saes = isinstance(model, HookedSAETransformer | SAETransformerBridge)
    assert takes_saes == (model_class != "AutoModelForCausalLM")
    assert model.tokenizer.bos_token == "<s>"
    with torch.no_grad():
        logits, cache = model.run_with_cache(TOKENS, names_filter=[hook], prepend_bos=False)
    for found, wanted in zip((logits, cache[hook]), expected(folder), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_dtype_is_the_models(llama: Path) -> None:
    for kwargs in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}):
        model = loader_of(str(llama), "AutoModelForCausalLM", kwargs).load("cpu")
        assert next(model.parameters()).dtype == torch.bfloat16
    model = loader_of(str(llama), kwargs={"n_ctx": 16}).load("cpu", torch.float64)
    assert (model.W_E.dtype, model.cfg.n_ctx) == (torch.float64, 16)


def test_a_conversion_that_computes_something_else_is_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = HookedTransformer.load_and_process_state_dict

    def changed(self: Any, state: Any, **kwargs: Any) -> None:
        state["blocks.1.mlp.W_out"] = -state["blocks.1.mlp.W_out"]
        state["unembed.W_U"] = state["unembed.W_U"] * 50
        own(self, state, **kwargs)

    monkeypatch.setattr(HookedTransformer, "load_and_process_state_dict", changed)
    with pytest.raises(PluginError, match=r"predicts other tokens .* TransformerBridge"):
        loader_of(str(llama)).load("cpu")


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    """Neither that of a folder, nor that which TransformerLens would allow."""
    (tmp_path / "run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "run.C", "AutoModel": "run.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model_class in ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM"):
        with pytest.raises(PluginError, match="cannot be loaded as a"):
            loader_of(str(tmp_path), model_class).looks()
    assert not (tmp_path / "ran").exists()
    for name in ("Qwen/Qwen-7B", "Qwen/Qwen3-0.6B", "phi-2", "openai/gpt-oss-20b"):
        with pytest.raises(PluginError, match="run code on this machine; --model_class_name"):
            loader_of(name)


def test_transformers_is_told_so(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        own = getattr(__import__("transformers"), name).from_pretrained

        def watched(*args: Any, own: Any = own, **kwargs: Any) -> Any:
            seen.append(kwargs.get("trust_remote_code"))
            return own(*args, **kwargs)

        monkeypatch.setattr(f"transformers.{name}.from_pretrained", watched)
    hugging_face._config.cache_clear()
    loader_of(str(llama), "AutoModelForCausalLM").load("cpu")
    assert len(seen) >= 3
    assert all(value is False for value in seen)


@pytest.mark.parametrize(
    ("name", "model_class", "said"),
    [
        ("gema-2-2b", "HookedTransformer", "did you mean 'gemma-2-2b'"),
        ("/no/such/folder", "HookedTransformer", "there is no folder /no/such/folder"),
        (
            "some/thing",
            "HookedTransformer",
            "some/thing cannot be .*: the Hub cannot be reached",
        ),
        (
            "some/thing",
            "AutoModelForCausalLM",
            "some/thing cannot be .*: the Hub cannot be reached",
        ),
        (world.NAME, "AutoModelForCausalLM", "takes no arguments"),
    ],
)
def test_models_that_are_not_there(
    name: str, model_class: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PluginError, match=said):
        loader_of(name, model_class).looks()


def test_folders_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"is a folder without a config\.json"):
        loader_of(str(tmp_path))
    bare = save(tmp_path / "bare", with_tokenizer=False)
    for model_class in ("HookedTransformer", "TransformerBridge"):
        with pytest.raises(PluginError, match="bare has no tokenizer: save the model's there"):
            loader_of(str(bare), model_class).looks()
    assert loader_of(str(bare), "AutoModelForCausalLM").load("cpu").tokenizer is None


def test_an_architecture_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.factories import architecture_adapter_factory

    monkeypatch.setattr(architecture_adapter_factory, "SUPPORTED_ARCHITECTURES", {})
    folder = save(tmp_path / "odd", "Gemma2", query_pre_attn_scalar=8)
    with pytest.raises(PluginError, match="knows no Gemma2ForCausalLM; add --model_class"):
        loader_of(str(folder)).looks()


def test_a_folder_in_the_place_of_a_listed_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens reads what lies in the working directory under a model's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    with pytest.raises(PluginError, match="would read the folder of that name"):
        loader_of("gpt2")


def test_listed_models_are_transformer_lens_own_business(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(name: str, **kwargs: Any) -> Any:
        assert (kwargs.pop("device"), kwargs.pop("trust_remote_code")) == ("cpu", False)
        calls.append((name, kwargs))

    monkeypatch.setattr(HookedSAETransformer, "from_pretrained_no_processing", load)
    loader = loader_of("gemma-2-2b", kwargs={"center_writing_weights": False, "dtype": "bfloat16"})
    assert isinstance(loader, Listed)
    loader.load("cpu")
    loader_of("gpt2").load("cpu", torch.float32)
    assert calls == [
        ("gemma-2-2b", {"center_writing_weights": False, "dtype": torch.bfloat16}),
        ("gpt2", {"dtype": torch.float32}),
    ]


def test_the_embedded_world_takes_what_changes_nothing() -> None:
    loader = loader_of(world.NAME, kwargs={"center_writing_weights": False, "n_devices": 1})
    model = loader.looks().model
    assert loader.load("cpu") is model
    assert loader.load("cpu") is not model
    for kwargs in ({"n_devices": 2}, {"fold_ln": True}, {"dtype": "bfloat16"}):
        with pytest.raises(PluginError, match="takes no arguments"):
            loader_of(world.NAME, kwargs=kwargs)


def test_a_listed_model_is_known_by_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's is TransformerLens' own: nothing is downloaded, and nothing fills the memory."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    looks = loader_of("gemma-2-2b", kwargs={"fold_ln": False, "n_devices": 2}).looks()
    assert (looks.context, looks.vocabulary) == (8192, 256000)
    assert shape_at("blocks.19.hook_resid_post", looks.model, 2, {}) == (1, 2, 2304)
    assert "blocks.26.hook_resid_post" not in looks.hooks
