"""Held-out metrics against numpy, and the cases in which they are easily wrong."""

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_plugins.eval_suites.evaluation.metrics import OF_THE_RUN
from sae_plugins.runs.heldout import AtHand, heldout_metrics, tokens_after
from sae_plugins.runs.load import load_setup
from sae_plugins.runs.setup import SAELensSettings

SIZES = {"hook_name": "blocks.1.hook_resid_post", "n_batches_in_buffer": 16}
D_IN, D_SAE = 12, 30


class Store:
    """Like an ActivationsStore: activations [n, d_in] in batches, then the end of the text."""

    def __init__(self, activations, batch=64):
        self.batches = list(activations.split(batch))
        self.given = 0

    def get_filtered_llm_batch(self, raise_on_epoch_end=False):
        assert raise_on_epoch_end
        if not self.batches:
            raise StopIteration
        batch = self.batches.pop(0)
        self.given += len(batch)
        return batch


def make_sae(seed=0):
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, device="cpu"))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        sae.b_enc[:3] = -1e6  # these never fire
    return sae


def score(sae, store, n_tokens):
    (metrics,) = heldout_metrics([sae], store, n_tokens)
    return metrics


def activations(n=500, mean=3.0):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1)) + mean


def test_metrics_are_those_of_numpy():
    sae, x = make_sae(), activations()
    features = sae.encode(x).detach()
    x_hat = sae.decode(features).detach().numpy().astype(np.float64)
    fires = features.numpy() != 0
    x64 = x.numpy().astype(np.float64)
    squared_error = ((x64 - x_hat) ** 2).sum(axis=1)
    variance = ((x64 - x64.mean(axis=0)) ** 2).sum(axis=1)
    norms = np.linalg.norm(x64, axis=1) * np.linalg.norm(x_hat, axis=1)
    assert score(sae, Store(x), len(x)) == pytest.approx(
        {
            "explained_variance": 1 - squared_error.sum() / variance.sum(),
            "mse": squared_error.mean(),
            "cosine": ((x64 * x_hat).sum(axis=1) / norms).mean(),
            "l0": fires.sum(axis=1).mean(),
            "never_fired": 1 - fires.any(axis=0).mean(),
            "tokens": len(x),
        },
        rel=1e-6,
    )


def test_reports_and_cards_can_explain_each_metric():
    known = {row.name for row in OF_THE_RUN} - {"k"}  # which is of the SAE's config
    assert score(make_sae(), Store(activations()), 64).keys() == known


def test_predicting_the_mean_explains_nothing_however_large_it_is():
    x = activations(mean=1e4)
    sae = make_sae()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.b_dec.copy_(x.double().mean(dim=0))
    metrics = score(sae, Store(x), len(x))
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["l0"] == 0
    assert metrics["never_fired"] == 1


def test_stops_at_enough_tokens_and_at_the_end_of_the_text():
    store = Store(activations(n=500), batch=64)
    assert score(make_sae(), store, 100)["tokens"] == store.given == 128
    assert score(make_sae(), store, 10**9)["tokens"] == 500 - 128
    with pytest.raises(ValueError, match="less than one batch"):
        score(make_sae(), store, 1)


def test_batches_do_not_matter():
    x = activations()
    whole = score(make_sae(), Store(x, batch=len(x)), len(x))
    # a batch of which every token is excluded comes empty
    pieces = Store(x, batch=7)
    pieces.batches.insert(3, x[:0])
    assert score(make_sae(), pieces, len(x)) == pytest.approx(whole, rel=1e-5)


def test_an_sae_on_attention_heads_gets_them_concatenated():
    sae, x = make_sae(), activations()
    expected = score(sae, Store(x), len(x))
    sae.cfg.reshape_activations = "hook_z"
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()
    assert score(sae, Store(x), len(x)) == expected
    assert sae.hook_z_reshaping_mode


def test_several_saes_are_scored_on_the_same_activations():
    saes, x = [make_sae(seed) for seed in range(3)], activations()
    store = Store(x)
    assert heldout_metrics(saes, store, 300) == [score(sae, Store(x), 300) for sae in saes]
    assert store.given == 320
    assert heldout_metrics([], Store(x), 300) == []


@pytest.mark.parametrize(
    ("scored", "there", "said"),
    [(256, 256, ""), (4608, 192, "these are taken"), (9999, 0, "what follows in the training")],
)
def test_too_little_text_to_set_thresholds_on_is_said(
    scored: int, there: int, said: str, tiny_world: object, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"context_size": 16, "store_batch_size_prompts": 4, "train_batch_size_tokens": 64}
    setup = load_setup(
        SAELensSettings("sae-plugins-world", heldout_tokens=scored, runner=SIZES | sizes)
    )
    found = setup.unseen(256)
    assert sum(map(len, found)) == there
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(said)
    if said:
        (message,) = messages
        assert f"has {there} tokens beside the {scored} of --heldout_tokens, and 256" in message
        assert f"{said}" in message
        assert message.endswith("lower --heldout_tokens or --calibrate_tokens")


def test_what_sets_thresholds_comes_after_what_is_scored() -> None:
    batches = [torch.full((10, 4), float(number)) for number in range(6)]
    kept = tokens_after(AtHand(batches), 15, 20)
    assert [int(batch[0, 0]) for batch in kept] == [2, 3], "two batches are scored"
    assert [int(batch[0, 0]) for batch in tokens_after(AtHand(batches), 45, 99)] == [5]
    assert tokens_after(AtHand(batches), 100, 1) == []
