"""One training, in this process and on two ranks that share its batches: what is not the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from sae_lens.synthetic.training import SyntheticActivationIterator

from sae_plugins.base.ranks import ranks
from sae_plugins.base.seeds import isolated_random_state
from sae_plugins.framework.compared import equal_values
from sae_plugins.framework.forked import Crashed, outcomes
from sae_plugins.resume.state import read_state, write_state


def samples(d_in: int, batch: int) -> SyntheticActivationIterator:
    """Batches [batch, d_in] of sparse combinations of fixed directions, as SAELens makes them."""
    count = 2 * d_in
    with isolated_random_state():
        directions = FeatureDictionary(count, d_in, initializer=None)
    return SyntheticActivationIterator(directions, ActivationGenerator(count, 0.2), batch)


def unlike(train: Callable[[], Mapping[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Names of what each of two ranks has otherwise than this process; a crash by its last line.

    Args:
        train: what all of them do; gives a state that can be written.
        folder: for the states.
    """

    def on_a_rank() -> None:
        state = train()  # in which the ranks meet
        write_state(folder / f"rank-{ranks().rank}.safetensors", state)

    with isolated_random_state():
        write_state(folder / "alone.safetensors", train())
    alone = read_state(folder / "alone.safetensors")
    found = {}
    for rank, outcome in enumerate(outcomes(2, on_a_rank)):
        if isinstance(outcome, Crashed):
            found[f"rank {rank}"] = [str(outcome).strip().splitlines()[-1]]
            continue
        other = read_state(folder / f"rank-{rank}.safetensors")
        names = {**alone, **other}
        unequal = [n for n in names if not equal_values(alone.get(n), other.get(n))]
        if unequal:
            found[f"rank {rank}"] = unequal
    return found
