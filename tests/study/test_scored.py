"""A study with SAEs that exist, from end to end: loaded, scored, evaluated, compared, reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_plugins import world
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.entrypoints.main import main
from sae_plugins.runs import lockstep
from sae_plugins.study import execute, scored
from sae_plugins.study.findings import Findings
from sae_plugins.study.gather import gather
from sae_plugins.study.plan import plan
from sae_plugins.study.planned import plan_of
from sae_plugins.study.spec import Study

D_IN = 48
STUDY: dict[str, Any] = {
    "reference": "l1",
    "models": {
        "toy": {
            "train": {
                "model_name": "synthetic:toy",
                "training_tokens": 3840,
                "n_batches_for_norm_estimate": 4,
                "heldout_tokens": 4096,
                "d_sae": 32,
            },
            "sparsity": {"l1_coefficient": [0.3]},
            "suites": {"ground-truth": {"samples": 500}},
        }
    },
    "arms": {
        "l1": {},
        "theirs": {"saes": [{"sae": "theirs/0", "seed": 0}, {"sae": "theirs/1", "seed": 1}]},
        "one": {"saes": ["one"]},
    },
    "compare": ["ground-truth/mcc", "seeds/stability"],
    "seeds": [0, 1],
}

pytestmark = pytest.mark.usefixtures("sketched")


class Silent:
    """A `Progress` that counts."""

    done = total = 0.0

    def say(self, text: str) -> None: ...

    def stage(self, text: str) -> None: ...

    def expect(self, shares: int) -> None:
        self.total += shares

    def advance(self, share: float) -> None:
        self.done += share


def save(folder: Path, seed: int, d_in: int = D_IN, **metadata: str) -> None:
    """A random SAE, about as dense as the study's own."""
    where = SAEMetadata(**{"model_name": "synthetic:toy", **metadata})
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=32, metadata=where))
    rows = torch.randn(32, d_in, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
    sae.save_model(folder)


def run(folder: Path, **contents: Any) -> tuple[Findings, Silent]:
    """In the working directory, where the SAEs are."""
    study, progress = Study.model_validate(STUDY | contents), Silent()
    execute.run(study, folder, 1, progress)
    return gather("try", study, folder), progress


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SAEs, and a study of them in `out`."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("existing")
    save(place / "theirs/0", 0)
    save(place / "theirs/1", 1)
    save(place / "one", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        _, progress = run(place / "out")
    assert progress.done == pytest.approx(progress.total)
    return place


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In that folder, where nothing may be trained."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(lockstep, "train", lambda *_: pytest.fail("something was trained"))
    return made


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all of it, to change."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return Path.cwd()


def test_they_have_an_l0_scores_and_verdicts_like_the_others(here: Path) -> None:
    findings = gather("try", Study.model_validate(STUDY), here / "out")
    assert findings.failures == []
    l0 = {(one.arm, one.seed): one.l0 for one in findings.trained}
    assert l0.keys() == {("l1", 0), ("l1", 1), ("theirs", 0), ("theirs", 1), ("one", 0)}
    assert {one.status for one in findings.trained} == {"ok"}
    mcc = {(s.arm, s.seed): s.value for s in findings.scores if s.metric == "mcc"}
    assert mcc.keys() == l0.keys()
    for one in findings.trained:
        result = next(
            s.value
            for s in findings.scores
            if s.metric == "sae_l0" and (s.arm, s.seed) == (one.arm, one.seed)
        )
        assert one.l0 == pytest.approx(result, rel=0.1), "two samples of the same SAE"
    stability = {s.arm for s in findings.scores if s.metric == "stability"}
    assert stability == {"l1", "theirs"}


def test_one_sae_has_no_verdict_and_its_scores_are_in_the_report(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "report", "mine.yaml", "--output_path", "out"]) == 0
    assert "one seed in common with l1: no verdict" in capsys.readouterr().out
    text = Path("out/report.md").read_text("utf-8")
    findings = Findings.model_validate_json(Path("out/findings.json").read_text())
    (mcc,) = (s.value for s in findings.scores if (s.arm, s.metric) == ("one", "mcc"))
    assert mcc is not None
    assert "One seed, which gives no verdict (in brackets are its scores): one (at an L0 of" in text
    assert f"MCC {mcc:.3f})" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| one | one | 0 |"))
    assert f"| {mcc:.3f} |" in row
    assert "**theirs**: not trained here, but theirs/0, theirs/1" in text
    assert "theirs/1" in Path("out/report.html").read_text("utf-8")


def test_a_second_run_does_nothing(here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.glob("out/saes/*/*/*")}
    run(here / "out")
    assert {path: path.stat().st_mtime_ns for path in here.glob("out/saes/*/*/*")} == before
    study = Study.model_validate(STUDY)
    assert execute.stale(plan_of(study, here / "out"), here / "out") == []


def test_an_sae_that_was_changed_is_scored_and_evaluated_again(copy: Path) -> None:
    before, _ = run(copy / "out")
    save(copy / "theirs/1", 7)
    after, _ = run(copy / "out")
    for metric in ("mcc", "sae_l0"):
        old, new = ({(s.arm, s.seed): s.value for s in f.scores if s.metric == metric}
                    for f in (before, after))  # fmt: skip
        assert {place for place in old if old[place] != new[place]} == {("theirs", 1)}
    l0 = [{(t.arm, t.seed): t.l0 for t in f.trained} for f in (before, after)]
    assert {place for place in l0[0] if l0[0][place] != l0[1][place]} == {("theirs", 1)}


def test_one_that_is_gone_keeps_what_was_found_out(copy: Path) -> None:
    before = gather("try", Study.model_validate(STUDY), copy / "out")
    shutil.rmtree("theirs")
    after, progress = run(copy / "out")
    assert after.scores == before.scores
    assert progress.done == pytest.approx(progress.total)
    said = "toy, theirs, seed 0: as it was when it was scored; it cannot be loaded now: "
    assert any(text.startswith(said) and "is no folder" in text for text in after.warnings)
    assert after.failures == []
    Path("other").mkdir()
    with pytest.raises(SaePluginsError, match="theirs/0 is no folder; name one, or give RELEASE"):
        run(copy / "other")


def test_one_sae_under_two_names_is_not_two_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockstep, "train", lambda *_: pytest.fail("something was trained"))
    for name in ("a", "b"):
        save(Path(name), 0)
    saes = [{"sae": "a", "seed": 0}, {"sae": "b", "seed": 1}]
    with pytest.raises(SaePluginsError, match=r"arms.theirs.saes: .*/a and .*/b are the same SAE"):
        run(tmp_path / "out", arms={"l1": {}, "theirs": {"saes": saes}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("narrow", "has a d_in of 20, and synthetic:toy has 48 dimensions there"),
        ("elsewhere", "is an SAE of synthetic:small, and model toy of the study is synthetic:toy"),
        ("empty", "holds no SAE: it lacks cfg.json and sae_weights.safetensors"),
        ("file", "is a file; name the folder"),
        ("missing", "is no folder; name one, or give RELEASE:SAE_ID"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    damage: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockstep, "train", lambda *_: pytest.fail("something was trained"))
    save(Path("narrow"), 0, d_in=20)
    save(Path("elsewhere"), 0, model_name="synthetic:small")
    Path("empty").mkdir()
    Path("file").write_text("")
    save(Path("right"), 0)
    saes = [{"sae": "right", "seed": 1}, {"sae": damage, "seed": 0}]
    with pytest.raises(SaePluginsError) as error:
        run(tmp_path / "out", arms={"l1": {}, "theirs": {"saes": saes}})
    (sentence,) = error.value.args
    assert sentence.startswith(f"arms.theirs.saes: {tmp_path / damage}")
    assert message in sentence


def test_another_hook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for layer in (0, 1):
        hook = f"blocks.{layer}.hook_resid_post"
        save(Path(f"layer{layer}"), 0, 192, model_name=world.NAME, hook_name=hook)
    train = {"recipe": "baseline-demo"}
    study = Study.model_validate({
        "reference": "l1",
        "models": {"world": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}},
        "arms": {"l1": {}, "theirs": {"saes": [
            {"sae": "layer0", "l0": 1}, {"sae": "layer1", "l0": 2}]}},
    })  # fmt: skip
    cells = [cell for cell in plan(study, lambda _: None).cells if cell.source]
    with pytest.raises(SaePluginsError) as error:
        scored.check(cells, tmp_path / "out")
    assert error.value.args == (
        f"arms.theirs.saes: {tmp_path / 'layer0'} is an SAE at blocks.0.hook_resid_post, and the "
        "hook_name of model world is blocks.1.hook_resid_post; compare it in a study of its own "
        "hook",
    )


@pytest.mark.ci
def test_an_sae_that_cannot_be_scored_is_named_and_the_others_go_on(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored, "check", lambda *_: None)  # as if it broke only afterwards
    for folder in copy.glob("out/saes/toy/theirs*"):
        shutil.rmtree(folder)
    (copy / "theirs/0/cfg.json").write_text(json.dumps({"architecture": "standrd"}))
    findings, progress = run(copy / "out")
    assert progress.done == pytest.approx(progress.total)
    (failure,) = findings.failures
    assert failure.startswith("toy, theirs, seed 0: ")
    assert "standrd" in failure
    assert {(t.seed, t.status) for t in findings.trained if t.arm == "theirs"} == {
        (0, "failed"), (1, "ok"),
    }  # fmt: skip


@pytest.mark.ci
def test_saes_of_dictionary_learning_are_arms_on_a_language_model(
    tiny_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_world.text("train").save_to_disk("text")
    decoder = torch.nn.functional.normalize(torch.randn(32, tiny_world.d_model), dim=1)
    tensors = {
        "encoder.weight": decoder, "decoder.weight": decoder.T.contiguous(),
        "encoder.bias": torch.zeros(32), "b_dec": torch.zeros(tiny_world.d_model),
        "k": torch.tensor(4), "threshold": torch.tensor(0.5),
    }  # fmt: skip
    Path("theirs").mkdir()
    torch.save(tensors, "theirs/ae.pt")
    trainer = {"trainer_class": "BatchTopKTrainer", "lm_name": world.NAME, "layer": 1, "k": 4}
    Path("theirs/config.json").write_text(json.dumps({"trainer": trainer}))
    train = {
        "dataset_path": "text", "training_tokens": 512, "train_batch_size_tokens": 64,
        "context_size": 16, "d_sae": 32, "store_batch_size_prompts": 4, "n_batches_in_buffer": 8,
        "n_batches_for_norm_estimate": 1, "heldout_tokens": 64,
    }  # fmt: skip
    models = {"world": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}}
    arms = {"l1": {}, "theirs": {"saes": ["theirs"]}}
    compare = ["heldout/explained_variance"]
    findings, _ = run(tmp_path / "out", models=models, arms=arms, seeds=[0], compare=compare)
    assert findings.failures == []
    (theirs,) = (one for one in findings.trained if one.arm == "theirs")
    assert theirs.l0 is not None
    assert 0 < theirs.l0 < 32
    (contrast,) = findings.contrasts
    assert (contrast.arm, contrast.comparison.verdict) == ("theirs", "no verdict")
    assert (tmp_path / "out" / theirs.folder / "decoder.safetensors").is_file()
