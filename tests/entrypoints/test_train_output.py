"""What `sae-plugins train` prints."""

import io

from rich.console import Console

from sae_plugins.entrypoints.train_output import print_next, print_summary


def test_summary_table_is_grouped_by_prefix():
    console = Console(file=io.StringIO(), width=60)
    rows = {"SAE": "[d]", "training/loss": 2.5, "reorder/events": 3, "training/l0": None}
    print_summary("A run", rows, {"training/loss": "last batch"}, console)
    words = console.file.getvalue().split()
    kept = [word for word in words if word.strip("│┃┏┓└┘├┤─┌┐┼┴┬")]
    assert kept == ["A", "run", "SAE", "[d]", "training", "loss", "2.500", "last", "batch",
                    "l0", "n/a", "reorder", "events", "3"]  # fmt: skip


def test_the_end_names_the_figures_and_what_comes_next(tmp_path, capsys):
    folder = tmp_path / "my run"
    for name in ("figures/loss.png", "figures/metrics/merge.png", "figures/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    print_next(folder)
    assert capsys.readouterr().out.splitlines() == [
        f"figures     {folder}/figures: loss.png, metrics/merge.png",
        f"next        sae-plugins features '{folder}'   # what each feature fires on",
        f"            sae-plugins evaluate '{folder}'",
        f'in Python   SAE.load_from_disk("{folder}")',
    ]
    (folder / "runner_config.json").touch()  # of a synthetic model, which has no text
    print_next(folder)
    assert "sae-plugins features" not in capsys.readouterr().out
