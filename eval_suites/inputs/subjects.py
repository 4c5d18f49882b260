"""An SAE that is evaluated, and what is known about it.

`subject_of` refuses what SAEBench cannot evaluate, or would evaluate wrongly without a word, and
notes as warnings what may surprise. SAEBench changes the SAEs that it is given, so it only ever
gets a `Subject.copy`.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_plugins.base.errors import SuiteError
from sae_plugins.base.fingerprints import fingerprint
from sae_plugins.base.names import file_name
from sae_plugins.runs.folder import CONFIG
from sae_plugins.runs.language_models.hooks import as_transformer_lens
from sae_plugins.world.synthetic_models import SYNTHETIC

_UNIT_NORM = 1e-3
"""How far from 1 a decoder row's norm may be without a warning."""


@dataclass(frozen=True)
class Reader:
    """Who works with an SAE, for sentences that refuse it.

    Attributes:
        name: who.
        transcoder: what it would do with one.
        temporal: what it would do with an SAE that predicts from the tokens before.
        negative: what it does with negative activations.
    """

    name: str
    transcoder: str
    temporal: str
    negative: str


SAEBENCH = Reader(
    "SAEBench",
    "SAEBench would score it as if it reconstructed that one",
    "SAEBench decodes codes alone, and would leave out what is predicted from the tokens before",
    "SAEBench's feature densities count as inactive",
)


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
    l0: float | None = None
    """Active features per held-out token, as its run measured it, if known."""
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
        where.hook_name, where.hook_layer = self.hook_name, self.hook_layer
        where.model_from_pretrained_kwargs = {}
        where.prepend_bos = where.prepend_bos is None or where.prepend_bos
        return sae


# -- what is known about it ---------------------------------------------------------------------


def subject_of(
    name: str, source: str, sae: Any, facts: Mapping[str, Any], reader: Reader = SAEBENCH
) -> Subject:
    """An SAE with what is known about it, also by the config of the run that trained it.

    Raises:
        SuiteError: its reader cannot work with it, or its config does not say where it belongs.
    """
    where = _where(sae)
    model_name, hook_name = where.model_name, as_transformer_lens(where.hook_name or "")
    synthetic = str(model_name).startswith(SYNTHETIC)
    for needed, value in (("model_name", model_name), ("hook_name", hook_name or synthetic)):
        if not value:
            raise SuiteError(
                f"{source}: its config does not say where it belongs; add {needed} to the metadata "
                f"in its {CONFIG}"
            )
    architecture = sae.cfg.architecture
    architecture = architecture() if callable(architecture) else architecture
    _check_function(source, sae, architecture, reader)
    _check_numbers(source, sae)
    return Subject(
        name=file_name(name),
        source=source,
        hash=_hash(sae, architecture),
        sae=sae,
        architecture=architecture,
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        hook_name=hook_name,
        hook_layer=0 if synthetic else layer_of(hook_name, reader),
        hook_head_index=where.hook_head_index,
        model_name=model_name,
        dataset=facts.get("dataset_path") or where.dataset_path or None,
        training_tokens=facts.get("training_tokens") or facts.get("training_samples"),
        l0=facts.get("l0"),
        warnings=tuple(_warnings(sae, architecture, synthetic, reader)),
    )


def layer_of(hook_name: str, reader: Reader = SAEBENCH) -> int:
    """The layer of a hook as SAEBench reads it: the first number in its name.

    Raises:
        SuiteError: the name has none.
    """
    number = re.search(r"\d+", hook_name)
    if number is None:
        raise SuiteError(f"hook {hook_name}: {reader.name} needs a layer's number in its name")
    return int(number.group())


def _where(sae: Any) -> Any:
    """What has an SAE's `model_name`, `hook_name` and the like as attributes."""
    return getattr(sae.cfg, "metadata", sae.cfg)


def _check_function(source: str, sae: Any, architecture: str, reader: Reader) -> None:
    """Refuse what is no autoencoder of single activations."""
    where = _where(sae)
    hook_name_out = where.hook_name_out if where is not sae.cfg else None
    if hasattr(sae.cfg, "d_out") or hook_name_out not in (None, where.hook_name):
        raise SuiteError(
            f"{source} is a {architecture}: it predicts another activation than the one that it "
            f"encodes, and {reader.transcoder}"
        )
    if architecture == "temporal":
        raise SuiteError(f"{source} is a temporal SAE: {reader.temporal}")
    acts = torch.ones(1, 2, sae.cfg.d_in, dtype=sae.dtype, device=sae.W_dec.device)
    if getattr(sae, "hook_z_reshaping_mode", False):
        acts = acts[:, :, None]
    try:
        with torch.no_grad():
            codes = sae.encode(acts)
            recon = sae.decode(codes).flatten(2)
    except Exception as error:  # of anybody's architecture
        raise SuiteError(f"{source} does not encode or decode: {first_line(error)}") from error
    shapes = [
        tuple(codes.shape),
        tuple(recon.shape),
        tuple(sae.W_enc.shape),
        tuple(sae.W_dec.shape),
    ]
    d_in, d_sae = sae.cfg.d_in, sae.cfg.d_sae
    if shapes != [(1, 2, d_sae), (1, 2, d_in), (d_in, d_sae), (d_sae, d_in)]:
        raise SuiteError(
            f"{source}: {reader.name} needs codes, reconstructions, W_enc and W_dec of the shapes "
            f"that d_in={d_in} and d_sae={d_sae} say, but for 2 activations they are {shapes}"
        )


def _check_numbers(source: str, sae: Any) -> None:
    """Refuse weights that are no numbers. A threshold may be infinite: it shuts a feature off."""
    for name, tensor in sae.state_dict().items():
        bad = tensor.isnan() if name == "threshold" else ~tensor.isfinite()
        if bad.any():
            raise SuiteError(
                f"{source}: {int(bad.sum())} of {tensor.numel()} numbers in {name} are NaN or "
                "infinite; train it again"
            )


def _hash(sae: Any, architecture: str) -> str:
    where, config = _where(sae), sae.cfg.to_dict()
    for name in ("metadata", "device", "dtype"):  # the tensors have their own
        config.pop(name, None)
    place = [where.model_name, where.hook_name, where.hook_head_index, where.prepend_bos]
    return fingerprint(architecture, config, place, sae.state_dict())


def _warnings(sae: Any, architecture: str, synthetic: bool, reader: Reader) -> Iterator[str]:
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
        yield f"its activations may be negative, which {reader.negative}"
    if synthetic:
        return
    if where.hook_name != as_transformer_lens(where.hook_name):
        yield (
            f"it was trained at {where.hook_name} of Hugging Face's model, which is "
            f"{as_transformer_lens(where.hook_name)} of TransformerLens'"
        )
    if where.prepend_bos is None:
        yield "its config does not say whether prompts begin with BOS (prepend_bos): they do here"
    processing = {
        name: value
        for name, value in (where.model_from_pretrained_kwargs or {}).items()
        if value and name not in ("device", "dtype", "torch_dtype")
    }
    if processing:
        yield (
            f"it was trained on a model loaded with {processing}; {reader.name} loads it without "
            "that"
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


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
