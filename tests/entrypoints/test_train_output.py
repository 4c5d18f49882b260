"""What `sae-plugins train` prints."""

import io

from rich.console import Console

from sae_plugins.entrypoints.train_output import print_summary


def test_summary_table_is_grouped_by_prefix():
    console = Console(file=io.StringIO(), width=60)
    rows = {"SAE": "[d]", "training/loss": 2.5, "reorder/events": 3, "training/l0": None}
    print_summary("A run", rows, console)
    words = console.file.getvalue().split()
    kept = [word for word in words if word.strip("│┃┏┓└┘├┤─┌┐┼┴┬")]
    assert kept == ["A", "run", "SAE", "[d]", "training", "loss", "2.500", "l0", "n/a", "reorder",
                    "events", "3"]  # fmt: skip
