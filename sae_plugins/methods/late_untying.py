"""Late untying: our own, and no paper's."""

from sae_plugins.framework.plugin import Method, PaperRow


class LateUntying(Method):
    """Ours, not a paper's: find directions with tied weights, then free the encoder.

    A tied encoder cannot learn to be silent where another feature fires, and absorption needs that.
    So directions are found with the encoder as the decoder's transpose, and with more active
    features than in the end. For the last part of the run the encoder is trained by itself, to tell
    these directions apart, while the decoder hardly moves. Decoder rows keep norm 1.
    """

    name = "late-untying"
    mechanisms = ("tied-weights", "k-factor", "slow-decoder", "unit-norm-decoder")
    options = {
        "tied-weights": {"until": 0.7},
        "k-factor": {"until": 0.7, "factor": 1.5},
        "slow-decoder": {"after": 0.7, "rate": 0.1},
    }
    sae_lens = {"architecture": "batchtopk", "decoder_init_norm": 1.0}
    rows = (
        PaperRow(table="Ours", label="Late untying", flags=""),
        PaperRow(
            table="Control",
            label="Tied to the end",
            flags="--tied-weights.until 1 --without slow-decoder",
        ),
        PaperRow(
            table="Control",
            label="The decoder stands still after untying",
            flags="--slow-decoder.rate 0",
        ),
        PaperRow(
            table="Control",
            label="The decoder goes on at the full rate",
            flags="--without slow-decoder",
        ),
        PaperRow(
            table="Control",
            label="The same k all along",
            flags="--without k-factor",
        ),
        PaperRow(
            table="Control",
            label="Unit rows alone",
            flags="--without tied-weights --without k-factor --without slow-decoder",
        ),
    )
