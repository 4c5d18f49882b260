"""Mechanisms whose text has changed since SAEs were keyed by it, and that train as they did."""

FORMER = {
    "9b7aa22ae4a7a2ce": "4eb394deffcadeda",
    "c13c8d8715f87a49": "14ffed5db38fa920",
    "0767555a4d7cec0c": "1dce41b49b136a1b",
    "9ce99dc346db6467": "0e6c5777f775f7de",
    "a7a08fe68e5cec4a": "e3033b48a32975cd",
    "dbdc52d3cea7a0f1": "6ae563c40cb897c2",
    "ffb845f62126457a": "5660869ed45f204e",
    "984c3d21683fe23c": "fc328085513cdd48",
    "a5537c9528f38d16": "219e02989ba9295c",
    "2aa1576eeed4ff01": "dc074bba2196a8d0",
    "77e05d06e9f8ae20": "68519141d110bf7b",
    "82ba2c4ce43a1b87": "b5eb910f36caa41d",
    "50c06ea849c33b5b": "35c316cc75b29e6a",
    "abc01564e73949f8": "23b693959f7c988e",
    "a0092a58c25203b7": "55636f3f2f3850f0",
    "cb16c2731b74488f": "97dbe9d03a915cf9",
    "0642eea9c7b67d2e": "04def2c433f8a48c",
}
"""The hash of a text, and that of the text before: SAEs keep the key under which they lie."""
