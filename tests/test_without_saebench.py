"""An installation without SAEBench, as docs/train.md describes it, with both dashboards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = "requirements-without-saebench.txt"
TRAIN = (
    *("train", "--training_tokens", "2560", "--train_batch_size_tokens", "64", "--d_sae", "32"),
    *("--context_size", "16", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16"),
    *("--heldout_tokens", "256", "--n_batches_for_norm_estimate", "2", "--recorder.every", "2"),
)
LOGGED = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
found = SQLiteStorage.get_logs(sys.argv[1], sys.argv[2])
print(json.dumps([[row["step"], name, value] for row in found for name, value in row.items()
                  if name not in ("step", "timestamp")]))
"""


def test_it_has_all_other_dependencies():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    newer = {"numpy": "numpy>=2", "datasets": "datasets>=4,<5"}
    wanted = [newer.get(each.partition(">")[0], each) for each in declared]
    lines = (ROOT / REQUIREMENTS).read_text().splitlines()
    found = [line for line in lines if not line.startswith("#")]
    assert found == [each for each in wanted if not each.startswith("sae-bench")]


@pytest.mark.slow
def test_train_features_and_upload_work_and_evaluate_says_what_it_needs(tmp_path: Path):
    place = tmp_path / "venv"
    uv = Path(sys.executable).with_name("uv")
    inside = {**os.environ, "VIRTUAL_ENV": str(place), "TRACKIO_DIR": str(tmp_path / "trackio")}
    inside |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    inside.pop("PYTHONPATH", None)

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=inside, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    python, ours = str(place / "bin" / "python"), str(place / "bin" / "sae-plugins")
    run(str(uv), "venv", "--python", sys.executable, str(place))
    run(str(uv), "pip", "install", "-r", str(ROOT / REQUIREMENTS), "tensorboard", "trackio")
    run(str(uv), "pip", "install", "--no-deps", str(ROOT))
    versions = run(
        python, "-c", "import numpy, datasets; print(numpy.__version__, datasets.__version__)"
    )
    numpy, datasets = versions.split()[-2:]
    assert (numpy.partition(".")[0], datasets.partition(".")[0]) == ("2", "4")
    run(python, "-c", "import sae_bench", code=1)

    dashboards = ("--log_to", "tensorboard", "trackio", "--trackio_project", "a project")
    run(ours, *TRAIN, "--output_path", "run", *dashboards)
    assert _logged(run(python, "-c", LOGGED, "a project", _name(run, python, "run"))) == _said(
        tmp_path / "run"
    )
    _kill_midway([ours, *TRAIN, "--output_path", "killed", *dashboards, "--checkpoint_every", "4",
                  "--training_tokens", "19200"], tmp_path / "killed", inside)  # fmt: skip
    run(ours, "train", "--resume", "killed")
    found = _logged(run(python, "-c", LOGGED, "a project", _name(run, python, "killed")))
    assert [each[:2] for each in found] == [each[:2] for each in _said(tmp_path / "killed")]

    run(ours, "features", "run", "--tokens", "2000", "--output_path", "page")
    assert (tmp_path / "page" / "index.html").exists()
    assert "nothing was sent" in run(ours, "upload", "run", "somebody/saes", "--dry_run")
    needs = "needs SAEBench, which is not installed: pip install 'sae-bench"
    assert needs in run(ours, "evaluate", "run", code=2)
    assert needs in run(ours, "study", "run", "quick", code=2)
    assert "absorption" in run(ours, "evaluate", "--list")


def _name(run, python: str, folder: str) -> str:
    code = f"from sae_plugins.runs.logs import *; print(name_of(Path('{folder}')))"
    return run(python, "-c", code).split()[-1]


def _logged(text: str) -> list[list]:
    return sorted(json.loads(text.splitlines()[-1]))


def _said(folder: Path) -> list[list]:
    """What a run's own files say, less what is unknown."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows.append(json.loads((folder / "summary.json").read_text()) | {"step": rows[-1]["step"]})
    return sorted(
        [row["step"], name, value]
        for row in rows
        for name, value in row.items()
        if name != "step" and value is not None
    )


def _kill_midway(words: list[str], folder: Path, inside: dict[str, str]) -> None:
    """Kill a run once it has a checkpoint."""
    process = subprocess.Popen(words, cwd=folder.parent, env=inside, stdout=subprocess.DEVNULL)
    while process.poll() is None and not [*folder.glob("unfinished/resume/*.safetensors")]:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "unfinished").exists(), "it ended before it could be killed"
