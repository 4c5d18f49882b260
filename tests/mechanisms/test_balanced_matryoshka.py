"""The weights of a Matryoshka SAE's widths."""

from __future__ import annotations

import pytest
import torch

from sae_plugins import PluginError, plugins
from sae_plugins.mechanisms.balanced_matryoshka import BalancedMatryoshka
from sae_plugins.testing import PluginContract, advance, tiny_batches, tiny_sae, tiny_trainer

MATRYOSHKA = "matryoshka_batchtopk"
(BATCH,) = tiny_batches(steps=1)


class TestContract(PluginContract):
    """The paper's weight."""

    plugin = BalancedMatryoshka


@pytest.mark.parametrize("fast", [False, True])
def test_each_width_counts_less_than_the_next(fast: bool) -> None:
    with plugins(
        BalancedMatryoshka,
        options={"balanced-matryoshka": {"multiplier": 0.5}},
        training={"fast_step": fast},
    ):
        trainer = tiny_trainer(tiny_sae(MATRYOSHKA), [BATCH])
    output = trainer.step(BATCH)
    losses = {name: value.item() for name, value in output.losses.items()}
    whole = losses["mse_loss"] + losses["auxiliary_reconstruction_loss"]
    expected = whole + 0.25 * losses["inner_mse_loss_6"] + 0.5 * losses["inner_mse_loss_14"]
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)


def test_without_the_inner_losses_it_is_batchtopk() -> None:
    rows = []
    for architecture, chosen in (("batchtopk", ()), (MATRYOSHKA, (BalancedMatryoshka,))):
        options = {plugin.name: {"multiplier": 0} for plugin in chosen}
        with plugins(*chosen, options=options):
            trainer = tiny_trainer(tiny_sae(architecture, dtype=torch.float64), [BATCH.double()])
        advance(trainer, [BATCH.double()])
        rows.append(trainer.sae.W_dec.detach())
    assert torch.allclose(*rows, rtol=0, atol=1e-12)


def test_one_width_is_refused() -> None:
    with (
        pytest.raises(PluginError, match="does not work on batchtopk SAEs: they have no loss of"),
        plugins(BalancedMatryoshka),
    ):
        tiny_trainer(tiny_sae("batchtopk"), [BATCH])
