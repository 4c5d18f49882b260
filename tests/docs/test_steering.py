"""The page about steering: its blocks run, and change the one feature and nothing else."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import save
from sae_lens import SAE, HookedSAETransformer, SAETransformerBridge
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from snippets import DOCS, blocks
from torch import Tensor

from sae_plugins import world
from sae_plugins.runs.language_models.choice import loader_of

RECIPE, WRITE, PUSH, OWN, LAYER = blocks("python", DOCS / "steering.md")
FIELDS: dict[str, dict[str, Any]] = {"topk": {"k": 20}, "abstopk": {"k": 20}}
Run = Callable[..., dict[str, Any]]


def made(architecture: str = "topk", d_in: int = 192, **fields: Any) -> Any:
    """A random SAE of which some features fire at a token, and others do not."""
    kind, config = get_sae_class(architecture)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post", **fields.pop("metadata", {}))
    fields = {**FIELDS.get(architecture, {}), **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae: Any = kind(config(d_in=d_in, d_sae=64, metadata=metadata, **fields))
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter) / 8
        if architecture == "jumprelu":
            sae.threshold.data = sae.threshold.abs()
    return sae


@pytest.fixture(scope="module")
def embedded() -> HookedSAETransformer:
    return world.load_hooked_transformer()


@pytest.fixture
def run(embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the recipe on an SAE, and on the world's model or another, and gives its names."""
    monkeypatch.chdir(tmp_path)

    def run(sae: Any, model: Any = None) -> dict[str, Any]:
        sae.save_model("runs/demo")
        monkeypatch.setattr(world, "load_hooked_transformer", lambda: model or embedded)
        names: dict[str, Any] = {}
        exec(RECIPE, names)
        return names

    return run


def at(hook: str, model: Any, act: Callable[[], Any]) -> Tensor:
    """What a hook of the first prompt sees while something is done."""
    seen: list[Tensor] = []
    with model.hooks([(hook, lambda x, hook: seen.append(x.detach().clone()))]):
        act()
    return seen[-1][0]


def activations(names: dict[str, Any]) -> Tensor:
    """Those of the SAE's features at each token of the text, [tokens, d_sae]."""
    with torch.no_grad():
        return names["sae"].encode(inputs(names))


def inputs(names: dict[str, Any]) -> Tensor:
    """What the SAE is given, [tokens, d_in]."""
    model, hook = names["model"], names["sae"].cfg.metadata.hook_name
    return at(hook, model, lambda: model(names["text"]))


def moves(names: dict[str, Any], feature: int, **change: float) -> Tensor:
    """How far the residual stream after the SAE moves when a feature is changed."""
    names["feature"] = feature
    _, layer, _ = names["sae"].cfg.metadata.hook_name.split(".")
    after = f"blocks.{int(layer) + 1}.hook_resid_pre"
    own, changed = (
        at(after, names["model"], lambda change=each: names["next_token"](**change))
        for each in ({}, change)
    )
    return changed - own


def test_the_recipe_has_ten_lines_and_shows_ten_tokens(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, recipe = RECIPE.split("@torch.no_grad()")
    assert len([line for line in recipe.splitlines() if line]) == 9
    names = run(made())
    heads, *rows = capsys.readouterr().out.splitlines()[-11:]
    assert heads.split() == ["as", "is", "off", "up"]
    assert len(rows) == 10
    own, off, up = (names["next_token"](times=times) for times in (1, 0, 3))
    assert (own - off).abs().max() > 0.01
    assert set((own - off).abs().topk(10).indices.tolist()) == set(names["top"].tolist())
    for token, row in zip(names["top"], rows, strict=True):
        shown = [float(number) for number in row.split()[-3:]]
        assert shown == pytest.approx([float(p[token]) for p in (own, off, up)], abs=6e-4)


def test_the_table_on_the_page_is_that_of_the_kept_sae(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(SAE.load_from_disk(str(DOCS / "gallery" / "sae")))
    shown, *more = blocks("text", DOCS / "steering.md")
    found = capsys.readouterr().out
    assert re.sub(r"[\d.]+", "", shown).split() == re.sub(r"[\d.]+", "", found).split()
    numbers = [[float(number) for number in re.findall(r"0\.\d+", text)] for text in (shown, found)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.002)
    assert (names["feature"], more) == (13, [])


def check(names: dict[str, Any], plain: bool) -> None:
    """Only the chosen feature changes, by as much as it shall, and not at BOS.

    Args:
        names: those of the recipe.
        plain: whether the SAE scales nothing, so that a feature is worth its decoder row.
    """
    model, sae, text, acts = names["model"], names["sae"], names["text"], activations(names)
    with torch.no_grad():
        own = model(text)[0, -1].softmax(-1)
    assert torch.allclose(names["next_token"](), own, atol=1e-6)
    near = functools.partial(torch.allclose, atol=2e-6 * float(inputs(names).abs().max()))
    silent = int((acts == 0).all(dim=0).nonzero()[0, 0])
    firing = int((acts[1:] != 0).sum(dim=0).argmax())
    assert not moves(names, silent, times=0).any()
    assert torch.equal(names["next_token"](times=0), names["next_token"]())
    for feature, times, plus in ((firing, 0, 0), (firing, 3, 0), (silent, 1, 4)):
        wanted = acts.clone()
        wanted[1:, feature] = times * acts[1:, feature] + plus
        found = moves(names, feature, times=times, plus=plus)
        expected = decoded(names, wanted) - decoded(names, acts)
        if plain:
            along = (wanted - acts)[:, feature, None] * sae.W_dec[feature].detach()
            assert near(expected, along)
        assert not found[0].any()
        assert found[1:].abs().max() > 1e-3 * inputs(names).abs().max()
        assert near(found, expected)


@torch.no_grad()
def decoded(names: dict[str, Any], acts: Tensor) -> Tensor:
    """What an SAE makes of activations that it may have scaled."""
    sae = names["sae"]
    sae.encode(inputs(names))  # keeps the scales
    return sae.decode(acts)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("topk", {}),
        ("jumprelu", {"normalize_activations": "layer_norm"}),
        pytest.param("standard", {}, marks=pytest.mark.ci),
        pytest.param("abstopk", {}, marks=pytest.mark.ci),
        pytest.param("gated", {}, marks=pytest.mark.ci),
        pytest.param("topk", {"rescale_acts_by_decoder_norm": True}, marks=pytest.mark.ci),
        pytest.param(
            "standard", {"normalize_activations": "constant_norm_rescale"}, marks=pytest.mark.ci
        ),
    ],
)
def test_only_this_feature_changes(architecture: str, fields: dict[str, Any], run: Run) -> None:
    check(run(made(architecture, **fields)), plain=not fields)


@pytest.mark.parametrize(
    ("kind", "fields", "loaded"),
    [
        pytest.param("Llama", {}, HookedSAETransformer, marks=pytest.mark.ci),
        ("Gemma2", {"query_pre_attn_scalar": 8}, SAETransformerBridge),
    ],
)
def test_a_model_of_ones_own(
    kind: str, fields: dict[str, Any], loaded: type, run: Run, tmp_path: Path
) -> None:
    folder = save(tmp_path / "models" / "mine", kind, **fields)
    names = run(made(d_in=32), loader_of(str(folder)).load("cpu"))
    assert isinstance(names["model"], loaded)
    check(names, plain=True)
    made(d_in=32, metadata={"model_name": str(folder)}).save_model("runs/mine")
    exec(OWN, names)
    assert isinstance(names["model"], loaded)
    check(names, plain=True)


@pytest.mark.ci
def test_an_sae_of_a_layer_of_transformers(run: Run, tmp_path: Path) -> None:
    folder = save(tmp_path / "models" / "mine", num_hidden_layers=8)
    proxy = loader_of(str(folder), "AutoModelForCausalLM").load("cpu")
    assert not hasattr(proxy, "run_with_saes")
    names = run(made(d_in=32), loader_of(str(folder)).load("cpu"))
    names["sae"].cfg.metadata.hook_name = "model.layers.6"
    names["loader_of"] = loader_of
    exec(LAYER, names)
    assert isinstance(names["model"], SAETransformerBridge)
    tokens = names["model"].to_tokens(names["text"])
    seen = at("model.layers.6", proxy, lambda: proxy(tokens))
    assert torch.allclose(seen, inputs(names), atol=1e-5)
    check(names, plain=True)


@pytest.mark.ci
def test_the_model_writes_while_a_feature_is_up(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(made())
    capsys.readouterr()
    exec(WRITE, names)
    written = capsys.readouterr().out.rstrip("\n")
    assert written.startswith(names["text"])
    tokens = names["model"].to_tokens(written)[0]
    for end in range(len(tokens) - 20, len(tokens)):
        names["text"] = tokens[None, :end]
        assert names["next_token"](plus=20).argmax() == tokens[end]
    own = names["model"].generate(names["text"][:, :11], max_new_tokens=9, do_sample=False)
    assert not torch.equal(own[0], tokens[:20])


def test_the_direction_alone(run: Run) -> None:
    names = run(made("matching_pursuit", residual_threshold=1.0, max_iterations=8))
    own = at("blocks.2.hook_resid_pre", names["model"], lambda: names["model"](names["text"]))
    moved = at("blocks.2.hook_resid_pre", names["model"], lambda: exec(PUSH, names)) - own
    pushed = 20 * names["sae"].W_dec[names["feature"]]
    assert torch.allclose(moved[1:], pushed.expand_as(moved[1:]), atol=1e-3)
    assert not moved[0].any()
    assert names["logits"].shape[-1] == names["model"].cfg.d_vocab


def test_matching_pursuit_lets_nobody_change_its_activations(run: Run) -> None:
    """As the page says: SAELens calls no hook there."""
    names = run(made("matching_pursuit", residual_threshold=1.0, max_iterations=8))
    assert torch.equal(names["next_token"](plus=100), names["next_token"]())
