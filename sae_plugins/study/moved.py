"""Mechanisms whose text has changed since SAEs were keyed by it, and that train as they did."""

FORMER = {
    "f062bf4a8b62a868": "4eb394deffcadeda",  # activation_threshold
    "c13c8d8715f87a49": "14ffed5db38fa920",  # coactivation_penalty
    "0767555a4d7cec0c": "1dce41b49b136a1b",  # decoder_orthogonality
    "9ce99dc346db6467": "0e6c5777f775f7de",  # firing_frequency
    "a7a08fe68e5cec4a": "e3033b48a32975cd",  # firing_window
    "dbdc52d3cea7a0f1": "6ae563c40cb897c2",  # importance
    "ffb845f62126457a": "5660869ed45f204e",  # importance_lr
    "984c3d21683fe23c": "fc328085513cdd48",  # input_norm_l1
    "a5537c9528f38d16": "219e02989ba9295c",  # linear_l1
    "2aa1576eeed4ff01": "dc074bba2196a8d0",  # merge
    "77e05d06e9f8ae20": "68519141d110bf7b",  # nan_guard
    "82ba2c4ce43a1b87": "b5eb910f36caa41d",  # post_hoc_threshold
    "50c06ea849c33b5b": "35c316cc75b29e6a",  # reconstruction_l1
    "abc01564e73949f8": "23b693959f7c988e",  # reconstruction_warm_up
    "a0092a58c25203b7": "55636f3f2f3850f0",  # reorder
    "cb16c2731b74488f": "97dbe9d03a915cf9",  # resample
    "0642eea9c7b67d2e": "04def2c433f8a48c",  # unit_norm_decoder
}
"""The hash of a text, and that of the text before: SAEs keep the key under which they lie."""
