"""The table of flags agrees with the framework."""

from sae_plugins.settings import flags


def test_our_defaults_are_those_of_the_framework():
    from sae_plugins.framework.architectures import ARCHITECTURES
    from sae_plugins.framework.resolve import TrainingSettings

    assert set(flags.architectures()) == set(ARCHITECTURES)
    for name, field in TrainingSettings.model_fields.items():
        expected = True if name == "calibrate_threshold" else field.default  # off in Python
        assert flags.our_flags()[name].default == expected
    assert TrainingSettings().calibrate_threshold is False
