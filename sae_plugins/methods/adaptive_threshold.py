"""Dynamic Feature Disentanglement: Adaptive Thresholding for Interpretable Sparse Autoencoders."""

from sae_plugins.framework.plugin import Method, PaperRow

_PAPER_STEPS = 4882
_WARM_UP = 1000


class AdaptiveThreshold(Method):
    """A gate that follows firing frequencies, and a penalty on overlaps of important features.

    The reconstruction loss is the unsquared norm: only so do the paper's loss and L1 add up, and
    its L1 coefficient belongs to it. What its mechanisms can do: thresholds remove weak
    activations, which a threshold on a finished SAE does as well (see the control); the penalty,
    as printed, keeps decoder rows apart. The learning rates by importance and the adaptive masking
    that the paper names have no equation there: a row has both.
    """

    name = "adaptive-threshold"
    mechanisms = (
        "activation-threshold",
        "decoder-orthogonality",
        "reconstruction-warm-up",
        "unit-norm-decoder",
    )
    options = {
        "activation-threshold": {"start": _WARM_UP + 1},
        "decoder-orthogonality": {"reduction": "sum", "start": _WARM_UP + 1},
        "importance": {"step": "this"},  # Eq. 3
        "reconstruction-warm-up": {"steps": _WARM_UP},
        "unit-norm-decoder": {"project": False},  # section 4.4 only constrains after the update
    }
    training = {"loss_form": "l2_norm", "weight_decay": 0.01}
    sae_lens = {
        "architecture": "standard",
        "apply_b_dec_to_input": False,
        "decoder_init_norm": 1.0,  # with unit rows, W_enc starts as the transpose of W_dec
        "lr_scheduler_name": "constant",
        "lr_warm_up_fraction": _WARM_UP / _PAPER_STEPS,
    }
    rows = (
        PaperRow(
            table="Section 6.1",
            label="Final model (Run 9)",
            flags="",
            paper="L0 76.85, explained variance 0.291, loss 202.22",
        ),
        PaperRow(
            table="Section 6.1",
            label="Baseline: a plain L1 SAE with unit-norm rows",
            flags="--without activation-threshold --without decoder-orthogonality "
            "--without reconstruction-warm-up",
            paper="L0 85.21, explained variance 0.309, loss 200.22",
        ),
        PaperRow(
            table="Section 6.2",
            label="Run 1: basic orthogonality, lambda_ortho 0.01",
            flags="--without activation-threshold --decoder-orthogonality.weighting none "
            "--decoder-orthogonality.weight 0.01",
            paper="L0 80.59, explained variance 0.305",
        ),
        PaperRow(
            table="Section 6.2",
            label="Run 2: basic orthogonality, lambda_ortho 0.05",
            flags="--without activation-threshold --decoder-orthogonality.weighting none "
            "--decoder-orthogonality.weight 0.05",
            paper="L0 69.89, explained variance 0.275",
        ),
        PaperRow(
            table="Section 6.2",
            label="EMA decay 0.99",
            flags="--firing-frequency.decay 0.99",
            paper="no number",
        ),
        *(
            PaperRow(
                table="Section 5.2",
                label=f"Base threshold {base}",
                flags=f"--activation-threshold.base {base}",
                paper="no number",
            )
            for base in (0.0, 0.1, 1.0)
        ),
        PaperRow(
            table="Section 7",
            label="Final model with all three innovations: thresholds, adaptive masking, learning "
            "rates by importance",
            flags="--plugin adaptive-threshold --plugin importance-lr "
            "--decoder-orthogonality.mask adaptive",
            paper="named, without equations",
        ),
        PaperRow(
            table="Control",
            label="Eq. 1 as printed: averages that begin at 0",
            flags="--firing-frequency.bias_correction false",
        ),
        PaperRow(
            table="Control",
            label="Importance of the step before, which costs no product",
            flags="--importance.step before",
        ),
        PaperRow(table="Control", label="No threshold", flags="--without activation-threshold"),
        PaperRow(
            table="Control",
            label="A threshold on the finished SAE instead, 6% of each feature's mean",
            flags="--plugin adaptive-threshold --plugin post-hoc-threshold "
            "--without activation-threshold --post-hoc-threshold.share 0.06",
        ),
        PaperRow(
            table="Control",
            label="The baseline with that threshold on the finished SAE",
            flags="--plugin adaptive-threshold --plugin post-hoc-threshold "
            "--without activation-threshold --without decoder-orthogonality "
            "--without reconstruction-warm-up --post-hoc-threshold.share 0.06",
        ),
        PaperRow(
            table="Control",
            label="Constant threshold",
            flags="--activation-threshold.sensitivity 0",
        ),
        PaperRow(
            table="Control",
            label="Variance raises the threshold, as the prose says",
            flags="--activation-threshold.sensitivity -1",
        ),
        PaperRow(
            table="Control", label="No orthogonality", flags="--without decoder-orthogonality"
        ),
        PaperRow(
            table="Control",
            label="All features equally important",
            flags="--decoder-orthogonality.weighting none",
        ),
        PaperRow(
            table="Control",
            label="|w_i . w_j| in Eq. 5's denominator",
            flags="--decoder-orthogonality.denominator pair",
        ),
        PaperRow(
            table="Control",
            label="Adaptive masking: only pairs above tau_i",
            flags="--decoder-orthogonality.mask adaptive",
        ),
        PaperRow(
            table="Control",
            label="Decoder gradients without what would lengthen the rows",
            flags="--unit-norm-decoder.project true",
        ),
        PaperRow(
            table="Control",
            label="Sparsity from the first step on",
            flags="--without reconstruction-warm-up",
        ),
        PaperRow(
            table="Control",
            label="Learning rates by importance",
            flags="--plugin adaptive-threshold --plugin importance-lr",
        ),
    )
