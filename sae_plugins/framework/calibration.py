"""What came of setting a saved SAE's thresholds for an L0; pure numbers, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

TOLERANCE = 0.005
"""A share of the wanted L0 that nobody needs to know better."""


@dataclass(frozen=True)
class Calibration:
    """The bound of thresholds that gives an SAE an L0, and what came of it."""

    l0: float
    """What is wanted."""
    reached: float
    """Of the SAE with these thresholds, on the tokens that they were set on."""
    most: float
    """Of the SAE without any threshold."""
    spread: float
    """Half the 95% interval of L0 on as many other tokens, as a share of it."""
    tokens: int
    threshold: float
    """Of activations times the norms of decoder rows."""
    lowers: bool
    """Whether no feature's threshold is above it; else, none is below it."""

    @property
    def is_exact(self) -> bool:
        """Whether the SAE has the wanted L0 on the tokens that its thresholds were set on."""
        return abs(self.reached - self.l0) <= TOLERANCE * self.l0

    @property
    def shortfall(self) -> str | None:
        """Why the L0 is another one than is wanted."""
        if self.is_exact:
            return None
        if self.most < self.l0:
            return (
                f"an L0 of {self.l0:g} is wanted, and without any threshold it is "
                f"{self.most:.4g}: train with less sparsity"
            )
        return (
            f"an L0 of {self.l0:g} is wanted, and {self.reached:.4g} is the nearest: many "
            "activations are equal, which no threshold tells apart"
        )

    @property
    def enough_tokens(self) -> int:
        """How many would tell the L0 of other text to within the tolerance."""
        return math.ceil(self.tokens * (self.spread / TOLERANCE) ** 2)
