"""SAEs of every origin and architecture: what is loaded, what is refused, and what a copy does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from expected import ARCHITECTURES
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from sae_plugins.base.errors import HubError, PluginError, SuiteError
from sae_plugins.eval_suites.evaluation.loading import load_subject
from sae_plugins.eval_suites.inputs.subjects import Subject
from sae_plugins.eval_suites.saebench.dictionary_learning import CUSTOM_LOADERS

D_IN, D_SAE = 16, 24
HOOK = "blocks.1.hook_resid_post"
FIELDS = {name: row.saved for name, row in ARCHITECTURES.items()}
FIELDS["temporal"] = {"n_heads": 2, "bottleneck_factor": 2, "kval_topk": 4}


def saved(
    folder: Path, architecture: str = "standard", norm: float = 1.0, where: Any = (), **fields: Any
) -> Path:
    """An SAE with random weights, saved by SAELens; its codes are in units of 1 / norm."""
    metadata = {"model_name": "a-model", "hook_name": HOOK, "prepend_bos": True, **dict(where)}
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    fields = {**FIELDS.get(architecture, {}), **fields}
    if "transcoder" in architecture:
        fields |= {"d_out": D_IN, "apply_b_dec_to_input": False}
    config: Any = config_class(d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(**metadata), **fields)
    sae: Any = sae_class(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
            elif name == "W_dec":
                parameter.div_(parameter.norm(dim=1, keepdim=True) / norm)
            if name not in ("W_dec", "b_dec", "r_mag") and "attn" not in name:
                parameter.div_(norm)
    sae.save_model(folder)
    return folder


def acts() -> torch.Tensor:
    return torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(1))


def change(folder: Path, **entries: Any) -> None:
    """Change entries of a saved config; those of its metadata by a dict."""
    file = folder / "cfg.json"
    config = json.loads(file.read_text())
    metadata = {**config["metadata"], **entries.pop("metadata", {})}
    file.write_text(json.dumps({**config, **entries, "metadata": metadata}))


# -- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("standard", {}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"rescale_acts_by_decoder_norm": True}),
    ],
)
def test_norms_fold_without_changing_codes_or_reconstructions(tmp_path, architecture, fields):
    long = load_subject(str(saved(tmp_path / "long", architecture, norm=3.0, **fields)))
    unit = load_subject(str(saved(tmp_path / "unit", architecture, norm=1.0, **fields)))
    folded = long.copy("cpu", "float32")

    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(D_SAE))
    codes = folded.encode(acts())
    assert (codes != 0).any()
    assert (codes == 0).any()
    own = long.sae.encode(acts())
    # SAELens' own codes are in units of the norm already where it rescales them by it
    factor = 1 if "rescale_acts_by_decoder_norm" in fields else 3
    torch.testing.assert_close(codes, factor * own, rtol=1e-4, atol=1e-5)
    # the scale that layer_norm takes from the last encode is the same for both
    torch.testing.assert_close(folded.decode(codes), long.sae.decode(own), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes, unit.sae.encode(acts()), rtol=1e-4, atol=1e-4)
    assert not [text for text in long.warnings if "norm 1" in text]


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "matching_pursuit"])
def test_norms_that_cannot_be_folded_stay_with_a_warning(tmp_path, architecture):
    fields = {} if architecture == "matching_pursuit" else {"rescale_acts_by_decoder_norm": False}
    long = load_subject(str(saved(tmp_path / "long", architecture, norm=3.0, **fields)))
    unit = load_subject(str(saved(tmp_path / "unit", architecture, norm=1.0, **fields)))

    assert any("24 of 24 decoder rows do not have norm 1" in text for text in long.warnings)
    assert not any("norm 1" in text for text in unit.warnings)
    same = long.copy("cpu", "float32")
    assert torch.equal(same.encode(acts()), long.sae.encode(acts()))


def test_a_copy_shares_nothing(tmp_path):
    subject = load_subject(str(saved(tmp_path / "sae", norm=3.0)))
    before = {name: tensor.clone() for name, tensor in subject.sae.state_dict().items()}
    config = repr(subject.sae.cfg)
    state = torch.get_rng_state()

    sae = subject.copy("cpu", "bfloat16")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    sae.cfg.metadata.model_name = "another"

    assert torch.equal(state, torch.get_rng_state())
    assert repr(subject.sae.cfg) == config
    assert all(torch.equal(before[n], tensor) for n, tensor in subject.sae.state_dict().items())
    assert (sae.dtype, sae.cfg.dtype) == (torch.bfloat16, "bfloat16")
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.bfloat16}


def test_a_copy_satisfies_saebench(tmp_path):
    from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg

    kwargs = {"fold_ln": True, "dtype": "bfloat16"}
    where = {"prepend_bos": None, "model_from_pretrained_kwargs": kwargs}
    subject = load_subject(str(saved(tmp_path / "sae", where=where)))
    cfg = subject.copy("cpu", "float32").cfg
    _standardize_sae_cfg(cfg)

    assert (cfg.hook_name, cfg.hook_layer, cfg.model_name) == (HOOK, 1, "a-model")
    assert (cfg.prepend_bos, cfg.model_from_pretrained_kwargs) == (True, {})
    assert any("prepend_bos" in text for text in subject.warnings)
    assert any("{'fold_ln': True}" in text for text in subject.warnings)
    json.dumps(cfg.to_dict())


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_a_copy_decodes_twice_and_takes_zeros(tmp_path, scaling):
    folder = saved(tmp_path / "sae", normalize_activations=scaling)
    sae = load_subject(str(folder)).copy("cpu", "float32")
    x = acts()
    expected = SAE.load_from_disk(folder)(x)
    codes = sae.encode(x)

    torch.testing.assert_close(sae.decode(codes), expected)
    torch.testing.assert_close(sae.decode(codes), expected)
    x[:, 1] = 0
    assert sae.decode(sae.encode(x)).isfinite().all()


def test_a_copy_takes_heads_as_saebench_gives_them(tmp_path):
    where = {"hook_name": "blocks.0.attn.hook_z"}
    folder = saved(tmp_path / "sae", where=where, reshape_activations="hook_z")
    subject = load_subject(str(folder))
    x = acts()

    expected = SAE.load_from_disk(folder)(x.unflatten(-1, (4, 4))).flatten(-2)
    torch.testing.assert_close(subject.copy("cpu", "float32")(x), expected)


@pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if name in SAE_CLASS_REGISTRY]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saebench_evaluates_each_architecture(tmp_path, architecture, dtype):
    from sae_bench.evals.core.main import get_featurewise_weight_based_metrics
    from sae_bench.evals.scr_and_tpp.main import ablated_precomputed_activations
    from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg

    sae = load_subject(str(saved(tmp_path / "sae", architecture))).copy("cpu", dtype)
    _standardize_sae_cfg(sae.cfg)
    with torch.no_grad():
        metrics = get_featurewise_weight_based_metrics(sae)
        none = torch.zeros(D_SAE, dtype=torch.bool)
        x = acts().to(sae.dtype)
        changed = ablated_precomputed_activations(x, sae, none, 2)

    assert {len(values) for values in metrics.values()} == {D_SAE}
    torch.testing.assert_close(changed, x.mean(1), rtol=0.05, atol=0.05)


# -- hashes and names ---------------------------------------------------------------------------


def test_the_hash_is_of_the_function(tmp_path):
    first = load_subject(str(saved(tmp_path / "a", "jumprelu")))
    same = saved(tmp_path / "b", "jumprelu")
    change(same, device="cuda", metadata={"sae_lens_version": "6.99.0", "note": "another"})
    assert load_subject(str(same)).hash == first.hash


@pytest.mark.parametrize(
    "entries",
    [
        {"apply_b_dec_to_input": False},
        {"normalize_activations": "layer_norm"},
        {"metadata": {"hook_name": "blocks.0.hook_resid_post"}},
        {"metadata": {"model_name": "b-model"}},
        {"metadata": {"prepend_bos": False}},
        {"k": 5},
    ],
)
def test_another_function_or_place_is_another_hash(tmp_path, entries):
    architecture = "topk" if "k" in entries else "standard"
    first = load_subject(str(saved(tmp_path / "a", architecture)))
    other = saved(tmp_path / "b", architecture)
    change(other, **entries)
    assert load_subject(str(other)).hash != first.hash


@pytest.mark.parametrize("name", ["threshold", "W_enc", "b_dec"])
def test_one_number_is_another_hash(tmp_path, name):
    first = load_subject(str(saved(tmp_path / "a", "jumprelu")))
    sae = SAE.load_from_disk(tmp_path / "a")
    with torch.no_grad():
        getattr(sae, name).flatten()[3] += 1e-4
    sae.save_model(tmp_path / "b")
    assert load_subject(str(tmp_path / "b")).hash != first.hash


def test_names_are_safe_in_files(tmp_path):
    strange = tmp_path / ("..seed 1: ü x" + "y" * 80)
    name = load_subject(str(saved(strange))).name
    assert re.fullmatch(r"\w[\w.+-]{0,79}", name, re.ASCII)


# -- what is known about it ---------------------------------------------------------------------


def test_facts_of_a_run_folder(tmp_path):
    folder = saved(tmp_path / "run", where={"hook_head_index": None})
    (folder / "runner_cfg.json").write_text(
        json.dumps({"training_tokens": 5000, "dataset_path": "some/text"})
    )
    subject = load_subject(str(folder))
    assert isinstance(subject, Subject)
    assert (subject.name, subject.source) == ("run", str(folder))
    assert (subject.architecture, subject.d_in, subject.d_sae) == ("standard", D_IN, D_SAE)
    assert (subject.hook_name, subject.hook_layer, subject.hook_head_index) == (HOOK, 1, None)
    assert (subject.model_name, subject.dataset) == ("a-model", "some/text")
    assert subject.training_tokens == 5000
    assert subject.warnings == ()


def test_scales_that_are_missing_and_negative_codes_are_told(tmp_path):
    scaled = saved(tmp_path / "scaled", normalize_activations="expected_average_only_in")
    assert any("scaled activations" in text for text in load_subject(str(scaled)).warnings)
    negative = load_subject(str(saved(tmp_path / "negative", "abstopk")))
    assert any("negative" in text for text in negative.warnings)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere is no folder"),
        ("gpt2-small-res-jp:blocks.0", "did you mean 'gpt2-small-res-jb'"),
        ("gpt2-small-res-jb:blocks.3.hook_resid_pr", "has no SAE .* but blocks.3.hook_resid_pre"),
        ("zzzzqqqq:x", "is no folder, and SAELens knows no release 'zzzzqqqq'$"),
    ],
)
def test_no_such_sae(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuiteError, match=message):
        load_subject(source)


def test_an_sae_on_the_hub(tmp_path, monkeypatch, loopback_hub):
    loopback_hub.here(monkeypatch, None)
    folder = saved(tmp_path / "saes" / "layer-1" / "small")
    loopback_hub.add("someone/saes", tmp_path / "saes", "models")
    subject = load_subject("someone/saes:layer-1/small")
    assert (subject.name, subject.hook_layer) == ("someone-saes-layer-1-small", 1)
    assert subject.hash == load_subject(str(folder)).hash
    change(folder, architecture="batchtopk")
    loopback_hub.add("someone/saes", tmp_path / "saes", "models")
    with pytest.raises(SuiteError, match="batchtopk SAE in training"):
        load_subject("someone/saes:layer-1/small")
    with pytest.raises(HubError, match="the repository someone/saes has no SAE 'layer-2'"):
        load_subject("someone/saes:layer-2")


def test_an_sae_of_a_release(tmp_path, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders

    def download(filename: str, **_: Any) -> str:
        if not (tmp_path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    folder = saved(tmp_path / "blocks.1.hook_resid_pre")
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    subject = load_subject("gpt2-small-res-jb:blocks.1.hook_resid_pre")
    assert subject.name == "gpt2-small-res-jb-blocks.1.hook_resid_pre"
    assert subject.d_sae == load_subject(str(folder)).d_sae
    (folder / "cfg.json").unlink()
    with pytest.raises(SuiteError, match=r"cannot be loaded: the repository lacks a file"):
        load_subject("gpt2-small-res-jb:blocks.1.hook_resid_pre")


def test_a_repository_while_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"cannot be downloaded: .* unset HF_HUB_OFFLINE"):
        load_subject("nobody/nothing:sae")


def test_folders_without_an_sae(tmp_path):
    with pytest.raises(SuiteError, match=r"lacks cfg.json and sae_weights.safetensors$"):
        load_subject(str(tmp_path))
    saved(tmp_path / "inner")
    with pytest.raises(SuiteError, match=r"name one of the folders in it: inner$"):
        load_subject(str(tmp_path))
    with pytest.raises(SuiteError, match=r"is a file; name the folder .*inner"):
        load_subject(str(tmp_path / "inner" / "cfg.json"))
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(SuiteError, match=r"unfinished run and no SAE yet; .*train --resume"):
        load_subject(str(tmp_path))


def test_damaged_files(tmp_path):
    weights = saved(tmp_path / "weights") / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SuiteError, match=r"sae_weights.safetensors is damaged"):
        load_subject(str(weights.parent))
    config = saved(tmp_path / "config") / "cfg.json"
    config.write_text("{")
    with pytest.raises(PluginError, match=r"cfg.json is damaged"):
        load_subject(str(config.parent))
    misfit = saved(tmp_path / "misfit")
    change(misfit, d_sae=D_SAE + 1)
    with pytest.raises(SuiteError, match="do not fit together"):
        load_subject(str(misfit))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    sae = SAE.load_from_disk(saved(tmp_path / "sae"))
    with torch.no_grad():
        sae.W_dec[2, 3] = value
    sae.save_model(tmp_path / "bad")
    with pytest.raises(SuiteError, match="1 of 384 numbers in W_dec are NaN or infinite"):
        load_subject(str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("architecture", "where", "message"),
    [
        ("transcoder", {}, "predicts another activation"),
        ("jumprelu_skip_transcoder", {}, "predicts another activation"),
        ("standard", {"hook_name_out": "blocks.1.hook_mlp_out"}, "predicts another activation"),
        ("temporal", {}, "temporal SAE"),
        ("standard", {"hook_name": None}, "add hook_name to the metadata"),
        ("standard", {"model_name": None}, "add model_name to the metadata"),
        ("standard", {"hook_name": "hook_embed"}, "layer"),
    ],
)
def test_what_saebench_would_score_wrongly(tmp_path, architecture, where, message):
    with pytest.raises(SuiteError, match=message):
        load_subject(str(saved(tmp_path / "sae", architecture, where=where)))


def test_architectures_that_are_not_for_inference(tmp_path):
    folder = saved(tmp_path / "sae")
    change(folder, architecture="batchtopk")
    assert "batchtopk" in SAE_TRAINING_CLASS_REGISTRY
    with pytest.raises(SuiteError, match=r"batchtopk SAE in training; save it with .*inference"):
        load_subject(str(folder))
    change(folder, architecture="jumprelou")
    with pytest.raises(SuiteError, match="no architecture 'jumprelou'; did you mean 'jumprelu'"):
        load_subject(str(folder))


# -- dictionary_learning ------------------------------------------------------------------------


def dictionary(folder: Path, kind: str, **trainer: Any) -> dict[str, torch.Tensor]:
    """A folder as dictionary_learning leaves it, with a unit-norm decoder."""
    decoder = torch.randn(D_SAE, D_IN)
    decoder /= decoder.norm(dim=1, keepdim=True)
    tensors = {
        "encoder.weight": torch.randn(D_SAE, D_IN),
        "decoder.weight": decoder.T.contiguous(),
        "encoder.bias": torch.randn(D_SAE),
        "bias": torch.randn(D_IN),
    }
    if kind == "GatedSAETrainer":
        tensors |= {name: torch.randn(D_SAE) for name in ("r_mag", "gate_bias", "mag_bias")}
        del tensors["encoder.bias"]
        tensors["decoder_bias"] = tensors.pop("bias")
    if kind in ("JumpReluTrainer", "MatryoshkaBatchTopKTrainer"):
        names = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc"}
        tensors = {names.get(name, "b_dec"): t.t().contiguous() for name, t in tensors.items()}
    if kind == "JumpReluTrainer":
        tensors["threshold"] = torch.rand(D_SAE)
    if "TopK" in kind:
        tensors |= {"k": torch.tensor(4), "threshold": torch.tensor(0.5)}
        trainer.setdefault("k", 4)
    if "Matryoshka" in kind:
        tensors["group_sizes"] = torch.tensor([8, 16])
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "ae.pt")
    facts = {"trainer_class": kind, "lm_name": "EleutherAI/pythia-160m-deduped", "layer": 8}
    (folder / "config.json").write_text(json.dumps({"trainer": {**facts, **trainer}}))
    return tensors


@pytest.mark.parametrize("kind", CUSTOM_LOADERS)
def test_dictionary_learning_in_saebench(tmp_path, capsys, kind):
    from sae_bench.evals.core.main import get_featurewise_weight_based_metrics
    from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg

    dictionary(tmp_path / "trainer_0", kind)
    subject = load_subject(str(tmp_path / "trainer_0"))
    assert (subject.model_name, subject.hook_layer) == ("pythia-160m-deduped", 8)
    assert subject.hook_name == "blocks.8.hook_resid_post"
    assert (subject.d_in, subject.d_sae, subject.warnings) == (D_IN, D_SAE, ())
    assert capsys.readouterr().out == ""
    assert load_subject(str(tmp_path / "trainer_0")).hash == subject.hash

    sae = subject.copy("cpu", "bfloat16")
    assert sae.cfg.dtype == "bfloat16"
    _standardize_sae_cfg(sae.cfg)
    with torch.no_grad():
        codes = sae.encode(acts().bfloat16())
        metrics = get_featurewise_weight_based_metrics(sae)
    assert (codes.shape, codes.dtype) == ((3, 5, D_SAE), torch.bfloat16)
    assert len(metrics["encoder_bias"]) == D_SAE
    assert subject.sae.W_enc.dtype == torch.float32


def test_dictionary_learning_computes_what_was_trained(tmp_path):
    tensors = dictionary(tmp_path / "sae", "TopKTrainer")
    pre = (acts() - tensors["bias"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    top = pre.relu().topk(4, dim=-1)
    expected = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
    sae = load_subject(str(tmp_path / "sae")).copy("cpu", "float32")
    torch.testing.assert_close(sae.encode(acts()), expected)


def test_dictionary_learning_that_is_refused(tmp_path, monkeypatch):
    dictionary(tmp_path / "kind", "JumpGPTTrainer")
    with pytest.raises(SuiteError, match="JumpGPTTrainer, which SAEBench has no loader for"):
        load_subject(str(tmp_path / "kind"))
    dictionary(tmp_path / "place", "TopKTrainer", submodule_name="mlp_out_layer_8")
    with pytest.raises(SuiteError, match="trained on mlp_out_layer_8"):
        load_subject(str(tmp_path / "place"))
    tensors = dictionary(tmp_path / "norm", "TopKTrainer")
    tensors["decoder.weight"] *= 3
    torch.save(tensors, tmp_path / "norm" / "ae.pt")
    with pytest.raises(SuiteError, match=r"cannot be loaded by SAEBench .* not normalized"):
        load_subject(str(tmp_path / "norm"))


def test_pickled_code_is_never_run(tmp_path, monkeypatch):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    # the variable makes torch.load unpickle anything wherever nobody forbids it
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tensors = dictionary(tmp_path / "sae", "StandardTrainer")
    torch.save({**tensors, "harm": Harm()}, tmp_path / "sae" / "ae.pt")
    with pytest.raises(SuiteError, match="holds more than tensors"):
        load_subject(str(tmp_path / "sae"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_saebench_has_no_other_loaders():
    from sae_bench.custom_saes.run_all_evals_dictionary_learning_saes import TRAINERCUSTOM_LOADERS

    own = {
        kind: f"{load.__module__}.{load.__name__}".removeprefix("sae_bench.custom_saes.")
        for kind, load in TRAINERCUSTOM_LOADERS.items()
    }
    assert own == CUSTOM_LOADERS


@pytest.mark.parametrize(
    "entries", [{"metadata": {"prepend_bos": "false"}}, {"apply_b_dec_to_input": "False"}]
)
def test_a_truth_value_that_is_a_text_is_refused(entries: Any, tmp_path: Path) -> None:
    change(saved(tmp_path / "sae"), **entries)
    said = r"(metadata.prepend_bos 'false'|apply_b_dec_to_input 'False'): it must be true or false"
    with pytest.raises(PluginError, match=said):
        load_subject(str(tmp_path / "sae"))
