"""What studies of tests train on, so that an SAE takes a second."""

TRAIN = {
    "model_name": "synthetic:toy",
    "training_tokens": 4608,  # 12 steps
    "n_batches_for_norm_estimate": 4,
    "heldout_tokens": 4096,
    "d_sae": 32,
}
SUITES = {"ground-truth": {"samples": 500}}
