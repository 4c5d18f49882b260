"""Over which L0s comparisons are, and which of them are over others than most."""

from sae_plugins.study.ranges import ranges

ALL = (8.0, 16.0, 32.0)


def test_exact_l0s_are_listed_and_those_of_fewer_stand_out() -> None:
    found = ranges({"a": ALL, "b": ALL, "fewer": (8.0, 16.0), "middle": (8.0, 32.0)}, {})
    assert found.usual == "L0s of 8, 16 and 32"
    assert found.others == {"fewer": "L0s of 8 and 16", "middle": "L0s of 8 and 32"}


def test_measured_ranges_stand_out_only_if_an_end_is_far_from_those_of_most() -> None:
    found = ranges({}, {"a": (8.0, 32.0), "b": (8.5, 33.0), "c": (7.9, 31.0), "d": (8.0, 20.0)})
    assert found.usual == "L0s of 8.00 to 31.5"
    assert found.others == {"d": "L0s of 8.00 to 20.0"}


def test_one_l0_is_not_several() -> None:
    assert ranges({"a": (16.0,)}, {}).usual == "an L0 of 16"


def test_no_comparison_is_over_no_l0() -> None:
    assert ranges({}, {}).usual == ""
