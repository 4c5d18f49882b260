"""What is wrong with a command line is said before anything slow happens, with the cure."""

import subprocess
import sys
from pathlib import Path

import pytest

from sae_plugins.entrypoints.main import main

RECIPES = {
    "bad.yaml": "a: [1\n",
    "list.yaml": "- a\n",
    "typo.yaml": "trainin_tokens: 5\n",
    "loop.yaml": "extends: loop.yaml\n",
    "value.yaml": "lr: fast\n",
    "overwrite.yaml": "overwrite: true\n",
    "code.yaml": "model_from_pretrained_kwargs: {trust_remote_code: true}\n",
    "recorder.yaml": "recorder.output_path: elsewhere\n",
    "theirs.yaml": "plugin: [jitter]\nversions: {sae-jitter: 0.3.0, sae-plugins: 0.1.0}\n",
    "stray.yaml": "plugin: hybrid-order\nordering.interval: 5\n",
}

CASES = [
    ("--plugin hybrid-ordr", "no plugin 'hybrid-ordr' is installed: did you mean 'hybrid-order'"),
    ("--plugin", "--plugin needs a value"),
    ("--plugin reorder --plugin reorder", "'reorder' is chosen twice"),
    ("--plugin hybrid-order --without reordr", "did you mean 'reorder'"),
    ("--without recorder", "cannot be left out"),
    (
        "--plugin reorder --reorder.intervl 5",
        "no option --reorder.intervl: did you mean '--reorder.interval'?",
    ),
    (
        "--plugin reorder --reorder.interval abc",
        "--reorder.interval abc: it must be a whole number",
    ),
    (
        "--plugin reorder --reorder.interval -5",
        "--reorder.interval -5: it must be a whole number of steps, at least 0, or a share",
    ),
    ("--plugin reorder --reorder.key size", "it must be 'frequency' or 'cluster'"),
    ("--reorder.interval 5", "add --plugin reorder"),
    (
        "--plugin reorder --reordr.interval 5",
        "no plugin 'reordr' is installed: did you mean '--reorder.interval'?",
    ),
    (
        "--spread.weight 0.5",
        "--spread.weight: no plugin 'spread' is installed: --plugin FILE.py:CLASS adds one from a "
        "file, --plugin NAME one of those that `sae-plugins plugins list` lists\n",
    ),
    ("--plugin reorder --spread.weight 0.5", "plugins list` lists; chosen: reorder"),
    ("--plugin hybrid-order --interval 5", "did you mean '--reorder.interval'"),
    ("--trainin_tokens 5", "there is no flag --trainin_tokens: did you mean '--training_tokens'"),
    ("--training-tokens 5", "did you mean '--training_tokens'"),
    ("--zzzzzz", "`sae-plugins train --help` lists all flags"),
    ("--lr fast", "--lr 'fast': it must be a number"),
    ("--lr", "--lr needs a value"),
    ("--lr 1 2", "--lr takes one value, and '2' follows it"),
    ("lr 5", "'lr' is no flag"),
    ("--training_tokens 5.5", "it must be a whole number"),
    ("--lr_scheduler_name cosine", "did you mean 'cosineannealing'?"),
    ("--architecture topkk", "--architecture 'topkk': did you mean 'topk'"),
    ("--architecture topk --l1_coefficient 3", "topk SAEs do not have it; standard and gated"),
    ("--architecture topk --plugin input-norm-l1", "does not work on topk SAEs: they have no"),
    ("--clip -1", "--clip -1.0: it must be greater than 0 or none"),
    ("--accumulate 0", "--accumulate 0: it must be at least 1"),
    ("--loss_form l1", "it must be 'sum_of_squares', 'l2_norm', 'mean' or none"),
    ("--dataset_trust_remote_code true", "never runs code that comes with a dataset"),
    ("--recipe hybrid-order-dem", "did you mean 'hybrid-order-demo'"),
    ("--recipe ../../etc/passwd", "there is no recipe '../../etc/passwd'"),
    ("--recipe nofile.yaml", "there is no recipe file nofile.yaml"),
    ("--recipe bad.yaml", "is not YAML"),
    ("--recipe list.yaml", "must be a mapping of names to values"),
    ("--recipe typo.yaml", "recipe typo.yaml: there is no flag --trainin_tokens"),
    ("--recipe loop.yaml", "extends itself"),
    ("--recipe value.yaml", "recipe value.yaml: --lr 'fast': it must be a number"),
    ("--recipe overwrite.yaml", "belongs on the command line"),
    (
        "--recipe theirs.yaml",
        "no plugin 'jitter' is installed; the run was made with sae-jitter 0.3.0, which is missing",
    ),
    ("--recipe stray.yaml", "the recipe's --ordering.interval: no plugin 'ordering' is installed"),
    ("--recipe code.yaml", "never runs code that comes with a model"),
    ('--model_from_pretrained_kwargs {"trust_remote_code":true}', "never runs code"),
    ("--recipe recorder.yaml", "--recorder.output_path: here the recorder writes into the run's"),
    ("--recorder.output_path elsewhere", "which is --output_path"),
    ("--lr -1", "--lr -1: it must be greater than 0"),
    ("--lr 0", "--lr 0: it must be greater than 0"),
    ("--lr 1e300", "--lr 1e300: it must be at most 3.40282e+38"),
    ("--aux_loss_coefficient nan --architecture topk", "--aux_loss_coefficient nan: it must be"),
    ("--dead_feature_window 1" + "0" * 30, "it must be at most 9223372036854775807"),
    ("--n_checkpoints 977", "--n_checkpoints 977 is more than the run's 976 steps"),
    ("--architecture topk --plugin hybrid-order", "--architecture topk: plugin 'input-norm-l1'"),
    ("--lr nan", "--lr nan: it must be a finite number"),
    ("--adam_beta1 2", "--adam_beta1 2: it must be less than 1"),
    ("--d_sae -4", "--d_sae -4: it must be at least 1"),
    ("--d_sae 0", "--d_sae 0: it must be at least 1"),
    ("--architecture topk --k 0", "--k 0: it must be greater than 0"),
    ("--n_restart_cycles 0", "--n_restart_cycles 0: it must be at least 1"),
    ("--dead_feature_window -1", "--dead_feature_window -1: it must be at least 0"),
    ("--feature_sampling_window 0", "--feature_sampling_window 0: it must be at least 1"),
    ("--seed -1", "--seed -1: it must be at least 0"),
    ("--heldout_tokens -5", "--heldout_tokens -5: it must be at least 0"),
    ("--n_checkpoints -3", "--n_checkpoints -3: it must be at least 0"),
    ("--train_batch_size_tokens 0", "--train_batch_size_tokens 0: it must be at least 1"),
    (
        "--lr_scheduler_name cosineannealing --lr_warm_up_steps 900 --lr_decay_steps 76",
        "do not fit into the run's 976 steps, of which cosineannealing needs 1",
    ),
    (
        "--lr_scheduler_name cosineannealingwarmrestarts --n_restart_cycles 977",
        "of which cosineannealingwarmrestarts needs 977",
    ),
    (
        "--lr_scheduler_name cosineannealing --lr_decay_steps 5 --lr_end 0",
        "decays from --lr_end 0.0, which must be greater than 0",
    ),
    ("--checkpoint_path full --n_checkpoints 1", "/full is not empty: choose another"),
    ("--resume_from_checkpoint kept/unfinished/x --output_path kept", "choose another --output"),
    ("--training_tokens 5", "is less than one batch"),
    ("--training_tokens 0", "must be at least 1"),
    ("--lr_warm_up_steps 5000", "do not fit into the run's 976 steps"),
    ("--lr_warm_up_fraction 2", "--lr_warm_up_fraction 2: it must be at most 1 or none"),
    ("--lr_warm_up_fraction .5 --lr_warm_up_steps 3", "give only one of"),
    ("--lr_decay_fraction .5 --lr_decay_steps 3", "only one of --lr_decay_steps and --lr_decay_fr"),
    ("--calibrate_l0 0", "--calibrate_l0 0.0: it must be greater than 0 or none"),
    ("--calibrate_tokens 5", "--calibrate_tokens: no threshold is set: give --calibrate_l0"),
    ("--model_name synthetic:toi", "no synthetic model 'toi': did you mean 'toy'?"),
    ("--model_name synthetic:toy --hook_name x", "it does not apply to synthetic:toy"),
    ("--eval_samples 5", "for --model_name synthetic:PRESET only"),
    ("--output_path full", "full is not empty (it holds foreign.txt): choose another folder, or"),
    ("--output_path file", "file is a file; name a folder"),
    ("--output_path file/inside", "file/inside cannot be written to: not a directory"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "foreign.txt").write_text("mine")
    (tmp_path / "kept" / "unfinished" / "x").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model would be loaded."""
    from sae_plugins.entrypoints import train

    def train_(*_):
        raise AssertionError("this went as far as loading a model")

    monkeypatch.setattr(train, "_train", train_)


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_bad_input(line: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(folder.rglob("*"))
    assert main(["train", *line.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("sae-plugins train: error: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("no_job")
def test_no_write_permission(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    mkdir = Path.mkdir

    def refused(path, *args, **kwargs):  # root may write anywhere
        if path.parent.name == "new":
            raise PermissionError(13, "Permission denied")
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(["train", "--output_path", "new"]) == 2
    assert "new cannot be written to: permission denied" in capsys.readouterr().err


def test_an_unknown_plugin_to_show(capsys: pytest.CaptureFixture[str]):
    assert main(["plugins", "show", "reordr"]) == 2
    assert "did you mean 'reorder'" in capsys.readouterr().err


def test_early_errors_import_no_sae_lens():
    code = (
        "import sys; from sae_plugins.entrypoints.main import main;"
        "code = main(['train', '--plugin', 'input-norm-l1', '--architecture', 'topk']);"
        "print(code, 'sae_lens' in sys.modules, 'transformer_lens' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
