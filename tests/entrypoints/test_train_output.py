"""What `sae-plugins train` prints."""

import io
import json
from dataclasses import fields

from rich.console import Console

from sae_plugins.entrypoints.train_output import meanings, print_end, print_next, print_summary
from sae_plugins.eval_suites.saebench import installed
from sae_plugins.framework.calibration import Calibration
from sae_plugins.runs.silent import WHY


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


def test_nobody_is_sent_to_what_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    print_next(tmp_path)
    said = capsys.readouterr().out
    assert "sae-plugins features" in said
    assert "sae-plugins evaluate" not in said
    (tmp_path / "runner_config.json").touch()  # whose suites are ours
    print_next(tmp_path)
    assert "sae-plugins evaluate" in capsys.readouterr().out


SUMMARY = {
    "heldout/never_fired": 0.02, "heldout/tokens": 53248, "training/dead_features": 7,
    "training/steps": 1172, "calibration/l0": 16,
}  # fmt: skip


def test_silent_features_are_counted_with_their_tokens(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "cfg.json").write_text('{"d_sae": 750}')
    print_end(tmp_path, None)
    assert "fire in none of the last --dead_feature_window steps" in capsys.readouterr().out
    recipe = "dead_feature_window: 200\ntrain_batch_size_tokens: 512\n"
    (tmp_path / "run.yaml").write_text(recipe)
    print_end(tmp_path, None)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    last = "the last 102,400 tokens of the training (200 steps)"
    assert f"dead_features 7 of 750 fire at none of {last}" in said
    assert "never_fired 15 of 750 fire at none of 53,248 held-out tokens" in said
    assert f"note: {WHY}" in said
    assert "calibration thresholds set after training, so that L0 is what is wanted l0 16" in said


def test_every_row_of_a_calibration_is_explained():
    rows = {f"calibration/{field.name}" for field in fields(Calibration)}
    assert rows <= {name for name, meaning in meanings(None).items() if meaning}
