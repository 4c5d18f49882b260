"""Mechanisms whose text has changed since SAEs were keyed by it, and that train as they did."""

FORMER = {
    "24a0a1e9091159d3": "4eb394deffcadeda",
    "c13c8d8715f87a49": "14ffed5db38fa920",
    "36c308339f2ab0d9": "1dce41b49b136a1b",
    "9ce99dc346db6467": "0e6c5777f775f7de",
    "5b0e86b17302adee": "e3033b48a32975cd",
    "dbdc52d3cea7a0f1": "6ae563c40cb897c2",
    "11b39396241b4e20": "5660869ed45f204e",
    "984c3d21683fe23c": "fc328085513cdd48",
    "a5537c9528f38d16": "219e02989ba9295c",
    "56b39a8af259bb92": "dc074bba2196a8d0",
    "77e05d06e9f8ae20": "68519141d110bf7b",
    "82ba2c4ce43a1b87": "b5eb910f36caa41d",
    "50c06ea849c33b5b": "35c316cc75b29e6a",
    "07dc1a7ae949b722": "23b693959f7c988e",
    "275f1184173f5cf6": "55636f3f2f3850f0",
    "7c2b9f347e3f1627": "97dbe9d03a915cf9",
    "0642eea9c7b67d2e": "04def2c433f8a48c",
}
"""The hash of a text, and that of the text before: SAEs keep the key under which they lie."""
