"""SAEs that exist already, as arms of a study: named in its file, and never trained.

arms:
  theirs:
    saes:
      - {sae: ../theirs/seed0, seed: 0, l0: 20}        # a folder
      - {sae: ../theirs/seed1, seed: 1, l0: 20}
  gemma-scope:
    saes: ["gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82"]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator


class ExistingSAE(BaseModel, extra="forbid", frozen=True):
    """An SAE that exists; its name alone stands for one with the defaults."""

    sae: str = Field(
        min_length=1,
        description="where it lies, as `sae-plugins evaluate` takes it: a folder, or "
        "RELEASE:SAE_ID or USER/REPO:SAE_ID on the Hub",
    )
    seed: int | None = Field(
        None, ge=0, description="the seed of the study that it belongs to (default: the first)"
    )
    l0: float | None = Field(
        None, gt=0, description="which of an arm's SAEs it is, where a seed has several"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"sae": given} if isinstance(given, str) else given

    @property
    def sparsity(self) -> str:
        """What SAEs of other seeds that belong to it are called alike by."""
        return "" if self.l0 is None else f"L0={self.l0:g}"

    def seed_of(self, seeds: Sequence[int]) -> int:
        """Its seed in a study that has these."""
        return seeds[0] if self.seed is None else self.seed

    @property
    def source(self) -> str:
        """Where it lies, in whichever folder the study is run."""
        path = Path(self.sae).expanduser()
        return str(path.absolute()) if path.exists() or ":" not in self.sae else self.sae


def problems(
    where: str, saes: Sequence[ExistingSAE], flags: Collection[str], seeds: Sequence[int]
) -> Iterator[str]:
    """What is wrong with an arm of existing SAEs, as far as the study's file says it.

    Args:
        where: the key that lists them, such as `arms.theirs.saes`.
        saes: the SAEs.
        flags: what the arm says of training.
        seeds: of the study.
    """
    for key in flags:
        yield f"{where}: {key} would do nothing to SAEs that exist; leave it out"
    taken: dict[tuple[int, float | None], str] = {}
    of_seed: dict[str, int] = {}
    for one in saes:
        seed = one.seed_of(seeds)
        place = (seed, one.l0)
        if seed not in seeds:
            known = ", ".join(map(str, seeds))
            yield (
                f"{where}: {one.sae} has seed {seed}, and the seeds of the study are {known}; give "
                "it one of these, or add its own"
            )
        if place in taken:
            at = "no l0" if one.l0 is None else f"an l0 of {one.l0:g}"
            yield (
                f"{where}: {taken[place]} and {one.sae} both have seed {seed} and {at}; give them "
                "seeds or l0s that tell them apart"
            )
        taken[place] = one.sae
        if of_seed.setdefault(one.sae, seed) != seed:
            yield (
                f"{where}: {one.sae} is named for the seeds {of_seed[one.sae]} and {seed}, and one "
                "SAE tells nothing of what seeds do; name it once"
            )
