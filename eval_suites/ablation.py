"""What the suites that ablate latents, SCR and TPP, have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

MaskPadding = Annotated[
    bool,
    Field(
        description="do not ablate what the SAE makes of padding, which SAEBench adds to the text"
    ),
]
SumCodes = Annotated[
    bool,
    Field(
        description="add up codes over the tokens before decoding them, since decoders are affine; "
        "equal up to rounding",
        json_schema_extra={"shortcut": True},
    ),
]


Masks = dict[bytes, tuple[Tensor, set[int]]]


class Ablation:
    """What SAEBench's ablation gives for many masks of latents, encoding and decoding only once.

    SAEBench takes the mean over a text's tokens of the activations without the masked latents. It
    also adds what these latents are at padding, where activations are 0 (hazard 8): `leak` says how
    much that is.
    """

    def __init__(self, sum_codes: bool, mask_padding: bool) -> None:
        """See the settings."""
        self.sum_codes, self.mask_padding = sum_codes, mask_padding
        self.affine: bool | None = None
        """Whether codes may be added up before they are decoded; not known before the first."""
        self.fewer: dict[int, int] = {}
        """Of so many latents to ablate, the fewest that had an effect on the probe, if fewer."""
        self._lengths: dict[int, Tensor] = {}

    def choose(self, number: int, mask: Tensor, effects: Tensor) -> None:
        """Take note of the latents [d_sae] that SAEBench ablates, and of all latents' effects."""
        count = int((mask & (effects > 0)).sum())
        if count < number:
            self.fewer[number] = min(count, self.fewer.get(number, count))

    @torch.no_grad()
    def __call__(
        self, acts: Tensor, sae: Any, masks: Masks, batch_size: int, own: Callable[..., Tensor]
    ) -> dict[bytes, Tensor]:
        """The inputs of the probe [texts, d_in], by mask.

        Args:
            acts: [texts, tokens, d_in], 0 at padding.
            sae: the SAE.
            masks: of latents [d_sae] to ablate, and for how many each was asked.
            batch_size: texts at once.
            own: SAEBench's `ablated_precomputed_activations`.
        """
        parts: dict[bytes, list[Tensor]] = {key: [] for key in masks}
        for batch in acts.split(batch_size):
            kept = (batch.sum(dim=-1) != 0).to(batch.dtype)  # [texts, tokens], as SAEBench has it
            codes, padding = sae.encode(batch), 1 - kept
            self._measure(sae, codes, kept, padding, masks)
            if self.mask_padding:
                codes = codes * kept[..., None]
            if self.sum_codes and self.affine is None:
                self.affine = _is_affine(sae, codes)
            if self.sum_codes and self.affine:
                # one token a text: the sum over its tokens
                batch, codes = batch.sum(1, keepdim=True), codes.sum(1, keepdim=True)
                scale = kept.sum(dim=1, keepdim=True)
            else:
                scale = torch.ones_like(kept[:, :1])
            once = _EncodedOnce(sae, codes)
            for key, (mask, _) in masks.items():
                parts[key].append(own(batch, once, mask, batch_size) / scale)
        return {key: torch.cat(part) for key, part in parts.items()}

    def _measure(
        self, sae: Any, codes: Tensor, kept: Tensor, padding: Tensor, masks: Masks
    ) -> None:
        text, rest = (torch.einsum("blf,bl->bf", codes, part) for part in (kept, padding))
        for mask, numbers in masks.values():
            direction = sae.W_dec[mask]
            lengths = [(part[:, mask] @ direction).norm(dim=-1).sum() for part in (rest, text)]
            for n in numbers:
                self._lengths.setdefault(n, torch.zeros(2)).add_(torch.stack(lengths).cpu())

    def leak(self, numbers: tuple[int, ...]) -> dict[int, float]:
        """By number of latents that were ablated: mean length of the one to the other's."""
        found = {n: self._lengths[n].tolist() for n in numbers if n in self._lengths}
        return {n: of_padding / of_text for n, (of_padding, of_text) in found.items() if of_text}

    def deviations(self) -> list[str]:
        """In what the numbers may differ from SAEBench's."""
        said = []
        if self.sum_codes and self.affine:
            said.append("codes are added up over the tokens before they are decoded")
        if self.mask_padding:
            said.append("what the SAE makes of padding is not ablated")
        return said


class _EncodedOnce:
    """Stands in for an SAE whose codes are known; SAEBench decodes all first, then the rest."""

    def __init__(self, sae: Any, codes: Tensor) -> None:
        self._sae, self._codes, self._out = sae, codes, sae.decode(codes)
        self._is_whole = False

    def encode(self, _: Tensor) -> Tensor:
        self._is_whole = True
        return self._codes.clone()

    def decode(self, codes: Tensor) -> Tensor:
        out: Tensor = self._out if self._is_whole else self._sae.decode(codes)
        self._is_whole = False
        return out


def _is_affine(sae: Any, codes: Tensor) -> bool:
    """Whether the decoder of the sum is the sum of the decoders, but for the bias."""
    total = codes.sum(1, keepdim=True)
    try:
        each = (sae.decode(codes) - sae.decode(torch.zeros_like(codes))).sum(1, keepdim=True)
        of_sum = sae.decode(total) - sae.decode(torch.zeros_like(total))
    except RuntimeError:  # it remembers a scale for each token that it has encoded
        return False
    tolerance = max(1e-4, 4 * torch.finfo(codes.dtype).eps)
    return each.shape == of_sum.shape and bool((each - of_sum).norm() <= tolerance * each.norm())
