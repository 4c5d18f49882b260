"""Masked orthogonality: our own, and no paper's."""

from sae_plugins.framework.plugin import Method, PaperRow


class MaskedOrthogonality(Method):
    """Ours, not a paper's: keep decoder rows of unit length apart, but only those that are close.

    Squared cosines are penalised where |cos| exceeds 0.3, the same for all features. On small
    synthetic data this was the best single mechanism of those in the four papers and their
    variations: no duplicates, less absorption, at no cost to the reconstruction. It is for you to
    see whether that carries over.
    """

    name = "masked-orthogonality"
    mechanisms = ("decoder-orthogonality", "unit-norm-decoder")
    options = {
        "decoder-orthogonality": {
            "weighting": "none",
            "mask": "constant",
            "threshold": 0.3,
            "weight": 1.0,
            "reduction": "mean",
        },
    }
    training = {"loss_form": "l2_norm"}
    sae_lens = {"decoder_init_norm": 1.0}  # with unit rows, W_enc starts as their transpose
    rows = (
        PaperRow(table="Ours", label="Close pairs only", flags=""),
        PaperRow(
            table="Control",
            label="No penalty",
            flags="--without decoder-orthogonality",
        ),
        PaperRow(
            table="Control",
            label="All pairs",
            flags="--decoder-orthogonality.mask none",
        ),
        PaperRow(
            table="Control",
            label="Weighted by importance",
            flags="--decoder-orthogonality.weighting importance",
        ),
    )
