"""The training loop, and the eleven events in it.

::

    the trainer is built ................................ attached
    for every batch of activations (`run.step` counts them from 1):
        sae_in = activation_scaler(batch)
        with autocast, if it is on:
            ............................................. before_forward    multiply coefficients, k
            output = sae.training_forward_pass(step_input)      # compiled or not
            ............................................. after_forward     observe and multiply
            output.loss += ............................. extra_losses      "<plugin>/<term>"
        output.loss.backward()
        if this batch ends an accumulation window (every batch, unless --accumulate N):
            ............................................. project           the decoder's gradient
            clip the gradients, decay the weights
            ............................................. before_update     gradients are final
            optimizer.step()                                    # `run.updates` counts these
            ............................................. after_update      in reverse order
        lr_scheduler.step()
        ................................................. step_ended        request feature changes
        if the window ended, carry out what was requested: merge, then reset, then permute
            ............................................. features_changed  once per change
    fold the activation scale into the weights
    ..................................................... training_ended
    whenever the inference SAE is saved ................. export_inference

Events run with autocast off, so statistics stay float32, and in the resolved plugin order, which
`sae-plugins train` prints and `sae_plugins.plugins` logs; `after_update` runs in the reverse order,
so that plugins unwind like a stack. `project` is for the plugins that claim `decoder_norm` or
`encoder`, one each. An implementation takes the subset of the arguments that it needs. An exception
in it is re-raised as a `PluginError` that names the plugin and the event.

Shapes: B tokens in a batch, d_in the input dimension, d_sae the number of features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
    from torch import Tensor

    from sae_plugins.framework.features import FeatureChange
    from sae_plugins.framework.run import Run

hookspec = pluggy.HookspecMarker("sae_plugins")
hookimpl = pluggy.HookimplMarker("sae_plugins")


@hookspec
def attached(run: Run) -> None:
    """Called once the trainer, its SAE and its optimizer exist: allocate and track state here."""


@hookspec
def before_forward(run: Run, step_input: TrainStepInput) -> Mapping[str, float | Tensor] | None:
    """Return multipliers by coefficient, or of "k": scalars, or [B] for one that weighs tokens."""


@hookspec
def after_forward(
    run: Run, step_input: TrainStepInput, output: TrainStepOutput
) -> Mapping[str, float | Tensor] | None:
    """Observe without gradients; return scalar multipliers by coefficient, for this very batch."""


@hookspec
def extra_losses(
    run: Run, step_input: TrainStepInput, output: TrainStepOutput
) -> Mapping[str, Tensor] | None:
    """Return scalar loss terms by name; they are added to the loss as "<plugin>/<term>"."""


@hookspec
def project(run: Run, gradient: Tensor, rows: Tensor) -> None:
    """Change the gradient of W_dec in place, before the clip, which counts what is left."""


@hookspec
def before_update(run: Run) -> None:
    """Change the gradients, which are summed and clipped, just before the optimizer uses them."""


@hookspec
def after_update(run: Run) -> None:
    """Change the weights that the optimizer has just updated; plugins run in reverse order."""


@hookspec
def step_ended(run: Run, output: TrainStepOutput) -> None:
    """Look at the finished step; request feature changes with `run.features`."""


@hookspec
def features_changed(run: Run, change: FeatureChange) -> None:
    """Called after features were permuted, reset or merged, tracked tensors already included."""


@hookspec
def training_ended(run: Run, activation_scale: float | None) -> None:
    """Called once after training; the activation scale given here is folded into the weights."""


@hookspec
def export_inference(run: Run, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Edit in place the weights and the config of an inference SAE that is being saved."""
