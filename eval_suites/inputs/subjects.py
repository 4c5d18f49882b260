"""The SAEs that are evaluated: from a folder, a release or the Hub, whatever their format.

`load_subject` refuses what SAEBench cannot evaluate, or would evaluate wrongly without a word, and
notes as warnings what may surprise. SAEBench changes the SAEs that it is given, so it only ever
gets a `Subject.copy`.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sae_plugins.base.errors import SuiteError, did_you_mean
from sae_plugins.base.hub import local, why
from sae_plugins.eval_suites.inputs.cache import fingerprint
from sae_plugins.runs.folder import (
    CONFIG,
    RUNNER_CONFIG,
    SYNTHETIC_RUNNER_CONFIG,
    UNFINISHED,
    WEIGHTS,
)
from sae_plugins.world.synthetic_models import SYNTHETIC

_DICTIONARY_LEARNING = ("config.json", "ae.pt")
_LONGEST_NAME = 80
_UNIT_NORM = 1e-3
"""How far from 1 a decoder row's norm may be without a warning."""


@dataclass(frozen=True)
class Subject:
    """An SAE to be evaluated, and what is known about it."""

    name: str
    """Safe as a part of a file's name; not unique."""
    source: str
    """As the user gave it."""
    hash: str
    """Of the function and the place where it applies: folders and names are no part of it."""
    sae: Any = field(repr=False)
    """As loaded. Take a `copy` to run it."""
    architecture: str
    d_in: int
    d_sae: int
    hook_name: str
    """Empty for SAEs of synthetic models."""
    hook_layer: int
    """0 for SAEs of synthetic models."""
    hook_head_index: int | None
    model_name: str
    dataset: str | None
    """Path of the training text, if known."""
    training_tokens: int | None
    """How much of it was read, if known."""
    warnings: tuple[str, ...] = ()

    def copy(self, device: str, dtype: str) -> Any:
        """A fresh SAE that computes the same, ready for SAEBench.

        Decoder rows have norm 1 where that can be had without changing reconstructions. Nothing is
        shared with `sae`, and the global random state is left alone.

        Args:
            device: where it shall be.
            dtype: such as `bfloat16`; norms are folded in at least float32 before.
        """
        sae = _duplicate(self.sae)
        sae.to(dtype=torch.promote_types(sae.dtype, torch.float32))
        if hasattr(sae, "fold_W_dec_norm"):
            with contextlib.suppress(NotImplementedError):  # it would change what is active
                sae.fold_W_dec_norm()
        sae.to(device=torch.device(device), dtype=getattr(torch, dtype))
        sae.cfg.device, sae.cfg.dtype = device, dtype
        where = _where(sae)
        where.hook_layer = self.hook_layer
        where.model_from_pretrained_kwargs = {}
        where.prepend_bos = where.prepend_bos is None or where.prepend_bos
        return sae


def load_subject(source: str, device: str = "cpu") -> Subject:
    """Load an SAE.

    Args:
        source: a folder, of a run, of anything else that SAELens saved, or of dictionary_learning
            (`ae.pt` and `config.json`); or `RELEASE:SAE_ID`, a release that SAELens knows or a
            repository on the Hugging Face Hub.
        device: where to keep it.

    Raises:
        SuiteError: there is no such SAE, it is damaged, or SAEBench cannot evaluate it.
    """
    folder = Path(source)
    facts: Mapping[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is said in our own words
        if folder.is_dir():
            name = folder.resolve().name
            if all((folder / file).is_file() for file in _DICTIONARY_LEARNING):
                sae = load_dictionary_learning(folder, device)
            else:
                _check_folder(folder)
                sae, facts = _from_folder(folder, device), _training_facts(folder)
        elif ":" in source:
            name = source
            sae, facts = _from_hub(source, device)
        else:
            is_file = f"is a file; name the folder {folder.parent}" if folder.is_file() else None
            raise SuiteError(
                f"{source} {is_file or 'is no folder; name one, or give RELEASE:SAE_ID'}"
            )
    return _subject(name, source, sae, facts)


# -- from where ---------------------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    """Refuse a folder without an SAE."""
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if not missing:
        return
    if (folder / UNFINISHED).is_dir():
        raise SuiteError(
            f"{folder} holds an unfinished run and no SAE yet; go on with it: sae-plugins train "
            f"--resume {folder}"
        )
    inside = sorted(
        path.parent.name
        for file in (CONFIG, _DICTIONARY_LEARNING[1])
        for path in folder.glob(f"*/{file}")
    )
    raise SuiteError(
        f"{folder} holds no SAE: it lacks {' and '.join(missing)}"
        + (f"; name one of the folders in it: {', '.join(inside[:5])}" if inside else "")
    )


def _from_folder(folder: Path, device: str) -> Any:
    from sae_lens import SAE

    try:
        architecture = json.loads((folder / CONFIG).read_text("utf-8")).get("architecture")
    except (ValueError, AttributeError) as error:
        raise SuiteError(f"{folder / CONFIG} is damaged: {error}") from error
    _check_architecture(str(folder), architecture)
    try:
        return SAE.load_from_disk(folder, device=device)
    except SafetensorError as error:
        raise SuiteError(f"{folder / WEIGHTS} is damaged: {error}") from error
    except Exception as error:  # a config's and the weights' many ways not to fit
        raise SuiteError(
            f"{folder}: {WEIGHTS} and {CONFIG} do not fit together ({_line(error)})"
        ) from error


def _from_hub(source: str, device: str) -> tuple[Any, Mapping[str, Any]]:
    """An SAE of a release that SAELens knows, or of any repository, and facts of its training."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = source.partition(":")
    releases = get_pretrained_saes_directory()
    if release in releases:
        known = list(releases[release].saes_map)
        if sae_id not in known:
            near = difflib.get_close_matches(sae_id, known, n=3, cutoff=0.5) or known[:3]
            raise SuiteError(
                f"{source}: release {release} has no SAE {sae_id!r}, but {', '.join(near)}"
                + (", ..." if len(near) < len(known) else "")
            )
    elif "/" in release:
        folder = local(source)
        _check_folder(folder)
        return _from_folder(folder, device), _training_facts(folder)
    else:
        near = difflib.get_close_matches(release, releases, n=3, cutoff=0.5)
        raise SuiteError(
            f"{source} is no folder, and SAELens knows no release {release!r}"
            + (f": {did_you_mean(release, near)}" if near else "")
        )
    try:
        return SAE.from_pretrained(release, sae_id, device=device), {}
    except KeyError as error:
        _check_architecture(source, str(error.args[0]))
        raise SuiteError(f"{source} cannot be loaded: its config lacks {error}") from error
    except Exception as error:  # of the network, the Hub, the disk and the memory
        raise SuiteError(f"{source} cannot be loaded: {why(error)}") from error


def _check_architecture(source: str, architecture: str | None) -> None:
    """Refuse what SAELens cannot load as an inference SAE; old configs may name none."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    if architecture is None or architecture in SAE_CLASS_REGISTRY:
        return
    if architecture in SAE_TRAINING_CLASS_REGISTRY:
        raise SuiteError(
            f"{source} is a {architecture} SAE in training; save it with its method "
            "save_inference_model and evaluate that"
        )
    raise SuiteError(
        f"{source}: SAELens knows no architecture {architecture!r}; "
        f"{did_you_mean(architecture, SAE_CLASS_REGISTRY)}"
    )


def load_dictionary_learning(folder: Path, device: str) -> Any:
    """An SAE of dictionary_learning, by SAEBench's loader and as SAEBench's class.

    Raises:
        SuiteError: the folder holds none that SAEBench knows.
    """
    from transformer_lens.supported_models import MODEL_ALIASES

    from sae_plugins.eval_suites.saebench.isolation import CUSTOM_LOADERS, custom_sae

    config_file, weights_file = (folder / name for name in _DICTIONARY_LEARNING)
    try:
        trainer = json.loads(config_file.read_text("utf-8"))["trainer"]
        kind, model, layer = trainer["trainer_class"], trainer["lm_name"], trainer["layer"]
    except (ValueError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{config_file} is no config of dictionary_learning, or is damaged ({_line(error)})"
        ) from error
    if kind not in CUSTOM_LOADERS:
        raise SuiteError(
            f"{folder} was trained by {kind}, which SAEBench has no loader for; it has them for "
            f"{', '.join(CUSTOM_LOADERS)}"
        )
    place = str(trainer.get("submodule_name") or "resid_post")
    if not place.startswith("resid_post"):
        raise SuiteError(
            f"{folder} was trained on {place}; SAEBench takes every SAE of dictionary_learning for "
            "one of the residual stream after a layer"
        )
    try:
        # What this accepts holds tensors only, so that SAEBench can load it in its own way.
        torch.load(weights_file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's many
        raise SuiteError(
            f"{weights_file} is damaged, or holds more than tensors and is not opened for that "
            f"({_line(error)})"
        ) from error
    short = model.rpartition("/")[2]
    # as TransformerLens and SAEBench's tables call it
    name = short if short in MODEL_ALIASES.get(model, ()) else model
    try:
        return custom_sae(kind, config_file, weights_file, name, layer, device)
    except Exception as error:  # its asserts, and whatever a misfit raises
        raise SuiteError(
            f"{folder} cannot be loaded by SAEBench as the SAE of a {kind}: {_line(error)}"
        ) from error


# -- what is known about it ---------------------------------------------------------------------


def _subject(name: str, source: str, sae: Any, facts: Mapping[str, Any]) -> Subject:
    from sae_plugins.eval_suites.saebench.isolation import layer_of

    where = _where(sae)
    model_name, hook_name = where.model_name, where.hook_name or ""
    synthetic = str(model_name).startswith(SYNTHETIC)
    for needed, value in (("model_name", model_name), ("hook_name", hook_name or synthetic)):
        if not value:
            raise SuiteError(
                f"{source}: its config does not say where it belongs; add {needed} to the metadata "
                f"in its {CONFIG}"
            )
    architecture = sae.cfg.architecture
    architecture = architecture() if callable(architecture) else architecture
    _check_function(source, sae, architecture)
    _check_numbers(source, sae)
    return Subject(
        name=re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip(".-")[:_LONGEST_NAME] or "sae",
        source=source,
        hash=_hash(sae, architecture),
        sae=sae,
        architecture=architecture,
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        hook_name=hook_name,
        hook_layer=0 if synthetic else layer_of(hook_name),
        hook_head_index=where.hook_head_index,
        model_name=model_name,
        dataset=facts.get("dataset_path") or where.dataset_path or None,
        training_tokens=facts.get("training_tokens") or facts.get("training_samples"),
        warnings=tuple(_warnings(sae, architecture, synthetic)),
    )


def _where(sae: Any) -> Any:
    """What has an SAE's `model_name`, `hook_name` and the like as attributes."""
    return getattr(sae.cfg, "metadata", sae.cfg)


def _training_facts(folder: Path) -> dict[str, Any]:
    """The config of the run that left an SAE, where it is still there."""
    for file in (RUNNER_CONFIG, SYNTHETIC_RUNNER_CONFIG):
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((folder / file).read_text("utf-8")))
    return {}


def _check_function(source: str, sae: Any, architecture: str) -> None:
    """Refuse what is no autoencoder of single activations."""
    where = _where(sae)
    hook_name_out = where.hook_name_out if where is not sae.cfg else None
    if hasattr(sae.cfg, "d_out") or hook_name_out not in (None, where.hook_name):
        raise SuiteError(
            f"{source} is a {architecture}: it predicts another activation than the one that it "
            "encodes, and SAEBench would score it as if it reconstructed that one"
        )
    if architecture == "temporal":
        raise SuiteError(
            f"{source} is a temporal SAE: SAEBench decodes codes alone, and would leave out what "
            "is predicted from the tokens before"
        )
    acts = torch.ones(1, 2, sae.cfg.d_in, dtype=sae.dtype, device=sae.W_dec.device)
    if getattr(sae, "hook_z_reshaping_mode", False):
        acts = acts[:, :, None]
    try:
        with torch.no_grad():
            codes = sae.encode(acts)
            recon = sae.decode(codes).flatten(2)
    except Exception as error:  # of anybody's architecture
        raise SuiteError(f"{source} does not encode or decode: {_line(error)}") from error
    shapes = [
        tuple(codes.shape),
        tuple(recon.shape),
        tuple(sae.W_enc.shape),
        tuple(sae.W_dec.shape),
    ]
    d_in, d_sae = sae.cfg.d_in, sae.cfg.d_sae
    if shapes != [(1, 2, d_sae), (1, 2, d_in), (d_in, d_sae), (d_sae, d_in)]:
        raise SuiteError(
            f"{source}: SAEBench needs codes, reconstructions, W_enc and W_dec of the shapes that "
            f"d_in={d_in} and d_sae={d_sae} say, but for 2 activations they are {shapes}"
        )


def _check_numbers(source: str, sae: Any) -> None:
    """Refuse weights that are no numbers. A threshold may be infinite: it shuts a feature off."""
    for name, tensor in sae.state_dict().items():
        bad = tensor.isnan() if name == "threshold" else ~tensor.isfinite()
        if bad.any():
            raise SuiteError(
                f"{source}: {int(bad.sum())} of {tensor.numel()} numbers in {name} are NaN or "
                "infinite; train it anew"
            )


def _hash(sae: Any, architecture: str) -> str:
    where, config = _where(sae), sae.cfg.to_dict()
    for name in ("metadata", "device", "dtype"):  # the tensors have their own
        config.pop(name, None)
    place = [where.model_name, where.hook_name, where.hook_head_index, where.prepend_bos]
    return fingerprint(architecture, config, place, sae.state_dict())


def _warnings(sae: Any, architecture: str, synthetic: bool) -> Iterator[str]:
    where, scaling = _where(sae), sae.cfg.normalize_activations
    norms = sae.W_dec.detach().float().norm(dim=1)
    off = int(((norms - 1).abs() > _UNIT_NORM).sum())
    folds = hasattr(sae, "fold_W_dec_norm")
    if off and folds:
        try:
            _without_weights(sae).fold_W_dec_norm()
        except NotImplementedError:
            folds = False
    if off and not folds:
        yield (
            f"{off} of {len(norms)} decoder rows do not have norm 1, and to fold their norms into "
            f"the encoder would change what is active in this {architecture} SAE: metrics that "
            "compare sizes of activations are not comparable with those of other SAEs"
        )
    elif zero := int((norms == 0).sum()):
        yield f"{zero} of {len(norms)} decoder rows are zero: their cosines are not defined"
    if scaling in ("expected_average_only_in", "covariance_whitening"):
        yield (
            f"it was trained on scaled activations ({scaling}), the scale is not in its weights, "
            "and it is given unscaled ones here"
        )
    if architecture == "abstopk":
        yield (
            "its activations may be negative, which SAEBench's feature densities count as inactive"
        )
    if synthetic:
        return
    if where.prepend_bos is None:
        yield "its config does not say whether prompts begin with BOS (prepend_bos): they do here"
    processing = {
        name: value
        for name, value in (where.model_from_pretrained_kwargs or {}).items()
        if value and name not in ("device", "dtype", "torch_dtype")
    }
    if processing:
        yield (
            f"it was trained on a model loaded with {processing}; SAEBench evaluates without that"
        )


# -- copies -------------------------------------------------------------------------------------


def _duplicate(sae: Any) -> Any:
    """The same SAE; no tensor, config or function is shared."""
    if not hasattr(sae, "fold_W_dec_norm"):  # SAEBench's own classes are plain modules
        return copy.deepcopy(sae)
    new = _without_weights(sae)
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    new.load_state_dict(tensors, assign=True)
    new.to(device=sae.W_dec.device)
    new.turn_off_forward_pass_hook_z_reshaping()  # SAEBench concatenates heads itself
    _remember_scales(new)
    return new


def _without_weights(sae: Any) -> Any:
    """A new SAE of the same config: deepcopy would keep functions that use the old one."""
    cfg = copy.deepcopy(sae.cfg)
    cfg.device = "meta"  # needs no memory, and draws no random numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(sae)(cfg)


def _remember_scales(sae: Any) -> None:
    """Let an SAE that scales each activation decode the same codes twice, as SCR does.

    SAELens' own functions forget the scale after one `decode`, and make NaN of the zeros that
    SAEBench puts in the place of padding.
    """
    if sae.cfg.normalize_activations == "layer_norm":
        sae.run_time_activation_norm_fn_out = lambda x: x * sae.ln_std + sae.ln_mu
    elif sae.cfg.normalize_activations == "constant_norm_rescale":

        def scale(x: Tensor) -> Tensor:
            norms = x.norm(dim=-1, keepdim=True)
            sae.x_norm_coeff = sae.cfg.d_in**0.5 / norms.where(norms > 0, torch.ones_like(norms))
            scaled: Tensor = x * sae.x_norm_coeff
            return scaled

        sae.run_time_activation_norm_fn_in = scale
        sae.run_time_activation_norm_fn_out = lambda x: x / sae.x_norm_coeff


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
