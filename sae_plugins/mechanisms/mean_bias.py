"""b_dec that starts at the mean of the data; Bricken et al. 2023 have their geometric median."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_plugins.base.errors import PluginError
from sae_plugins.framework.hookspecs import hookimpl
from sae_plugins.framework.mean import usual_tokens
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput

    from sae_plugins.framework.run import Run


class MeanBias(Plugin):
    """Start b_dec at the mean of the first batch, which SAELens starts at 0.

    Tokens over five times as long as the median are left out of the mean, as BOS is in many models.
    The mean is that of the activations as training scales them; SAELens folds the scale into b_dec
    in the end. From then on b_dec is trained as ever.
    """

    name = "mean-bias"

    @hookimpl
    def attached(self, run: Run) -> None:
        """Begin with a b_dec of zeros, as every SAE that is drawn.

        Raises:
            PluginError: it was trained, or is never added to anything.
        """
        if run.sae.b_dec.any():
            raise PluginError(
                "the SAE to begin with has a b_dec that was trained, and that would be lost: leave "
                "the plugin out, or begin with an SAE that is drawn (no --from_pretrained_path)"
            )
        if run.architecture.tied and not run.sae.cfg.apply_b_dec_to_input:
            raise PluginError(
                f"{run.architecture.name} SAEs have no b_dec where it is not subtracted from the "
                "input: leave the plugin out, or give --apply_b_dec_to_input true"
            )

    @hookimpl
    def before_forward(self, run: Run, step_input: TrainStepInput) -> None:
        """Set b_dec, once."""
        if run.step == 1:
            run.sae.b_dec.data.copy_(usual_tokens(run.sae, step_input.sae_in).mean(dim=0))
