"""SAELens' flags: what is written is what is installed."""

import json

from sae_plugins.settings.flags import FLAGS_FILE
from sae_plugins.settings.introspection import introspect


def test_the_generated_file_is_in_step_with_sae_lens():
    written = json.loads(FLAGS_FILE.read_text("utf-8"))
    now = json.loads(json.dumps(introspect()))
    assert written == now, "run `python -m sae_plugins.settings.introspection`"
