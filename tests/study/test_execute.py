"""A study from end to end, on a synthetic model: what is trained, kept, redone and reported."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
import yaml
from datasets import Dataset
from sae_lens import SAE
from safetensors.torch import load_file

from sae_plugins.base import identity
from sae_plugins.base.clock import age
from sae_plugins.base.code import code
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.files import lock
from sae_plugins.entrypoints import study_time
from sae_plugins.entrypoints.main import main
from sae_plugins.runs import lockstep, machine
from sae_plugins.study import execute as study_run
from sae_plugins.study import work
from sae_plugins.study.findings import Findings, Trained
from sae_plugins.study.gather import _missed as missed
from sae_plugins.study.gather import gather
from sae_plugins.study.plan import plan
from sae_plugins.study.spec import Study

STUDY: dict[str, Any] = {
    "description": "Does reordering help?",
    "reference": "l1",
    "models": {
        "toy": {
            "train": toys.TRAIN,
            "sparsity": {"l1_coefficient": [0.3, 3.0], "k": [16, 32]},
            "suites": toys.SUITES,
        }
    },
    "arms": {
        "l1": {"kind": "baseline", "description": "plain SAELens"},
        "topk": {"kind": "control", "train": {"architecture": "topk"}},
        "reordered": {"train": {"plugin": ["reorder"], "reorder.start": 5, "reorder.interval": 5}},
    },
    "seeds": [0, 1],
}


class Heard:
    """A `Progress` that remembers, and may interrupt."""

    def __init__(self, until: float = float("inf")) -> None:
        self.until, self.done, self.total = until, 0.0, 0
        self.stages: list[str] = []

    def say(self, text: str) -> None:
        self.said = text

    def expect(self, shares: int) -> None:
        self.total += shares

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def advance(self, share: float) -> None:
        self.done += share
        if self.done >= self.until:
            raise KeyboardInterrupt


def changed(**contents: Any) -> Study:
    return Study.model_validate(STUDY | contents)


pytestmark = pytest.mark.usefixtures("sketched")


def run(study: Study, folder: Path, **heard: float) -> tuple[Findings, Heard]:
    progress = Heard(**heard)
    study_run.run(study, folder, 1, progress)
    return gather("try", study, folder), progress


def numbers(findings: Findings) -> Any:
    """All but when and where; seconds too are another run's."""
    found = findings.model_dump(exclude={"provenance", "study"})
    timed = ("seconds", "tokens_per_second")
    found["scores"] = [score for score in found["scores"] if score["metric"] not in timed]
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings, Heard]:
    torch.set_num_threads(1)  # as for every test: sums round by the number of threads
    folder = tmp_path_factory.mktemp("study")
    return (folder, *run(changed(), folder))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Of the first seed alone, in a run that nothing interrupts."""
    torch.set_num_threads(1)
    return run(changed(seeds=[0]), tmp_path_factory.mktemp("half"))[0]


@pytest.fixture
def copy(done: tuple[Path, Findings, Heard], tmp_path: Path) -> Path:
    return Path(shutil.copytree(done[0], tmp_path / "copy"))


def saes(folder: Path) -> dict[str, int]:
    """When each SAE was written, by its folder's name."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in folder.glob("saes/*/*/sae_weights.safetensors")
    }


def test_every_sae_is_a_run_and_has_scores(done: tuple[Path, Findings, Heard]) -> None:
    folder, findings, heard = done
    assert len(saes(folder)) == 12
    assert heard.done == pytest.approx(heard.total)
    assert heard.total == 24, "training and evaluating each is one share"
    assert {trained.status for trained in findings.trained} == {"ok"}
    one = folder / findings.trained[0].folder
    names = {path.name for path in one.iterdir()}
    assert names >= {"cfg.json", "sae_weights.safetensors", "run.yaml", "metrics.jsonl"}
    mcc = [score for score in findings.scores if score.metric == "mcc"]
    assert len(mcc) == 12
    assert all(score.value is not None and 0 < score.value < 1 for score in mcc)
    assert findings.failures == []
    assert findings.arms[0].name == "l1"
    assert "with fewer than 5" in findings.warnings[0]


def test_a_permutation_is_equivalent_and_two_seeds_are_too_few_for_anything_else(
    done: tuple[Path, Findings, Heard],
) -> None:
    verdicts = {(c.arm, c.metric): c.comparison for c in done[1].contrasts}
    assert {arm for arm, _ in verdicts} == {"topk", "reordered"}
    assert {metric for _, metric in verdicts} == {
        *("mcc", "recovered", "matched_f1", "absorption", "explained_variance"),
    }
    assert verdicts["reordered", "mcc"].verdict == "equivalent"
    recovered = verdicts.pop(("topk", "recovered"))
    assert recovered.warnings[-1] == "the scores are equal in every seed", "0, after 12 steps"
    absorption = verdicts.pop(("topk", "absorption"))
    assert absorption.reason == "it is undefined for the SAEs of seeds 0, 1", (
        "no child has a latent"
    )
    assert {c.verdict for (arm, _), c in verdicts.items() if arm == "topk"} == {"underpowered"}
    assert verdicts["reordered", "mcc"].difference == pytest.approx(0, abs=1e-4)


def test_a_run_can_be_made_again_from_its_recipe(
    done: tuple[Path, Findings, Heard], tmp_path: Path
) -> None:
    folder, findings, _ = done
    trained = next(t for t in findings.trained if t.arm == "reordered" and t.seed == 1)
    there = folder / trained.folder
    again = tmp_path / "again"
    arguments = ["--recipe", str(there / "run.yaml"), "--output_path", str(again)]
    assert main(["train", *arguments]) == 0
    for name in ("sae_weights.safetensors", "cfg.json", "sparsity.safetensors"):
        assert (again / name).read_bytes() == (there / name).read_bytes(), name


def test_a_second_run_does_nothing(
    done: tuple[Path, Findings, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, findings, _ = done
    before = saes(folder)
    monkeypatch.setattr(lockstep, "train", lambda *_: pytest.fail("trained again"))
    again, heard = run(changed(), folder)
    assert saes(folder) == before
    assert numbers(again) == numbers(findings)
    assert heard.done == pytest.approx(24)


@pytest.mark.parametrize(
    ("until", "seeds"),
    [(0.5, [0]), *(pytest.param(*p, marks=pytest.mark.ci) for p in ((7, [0]), (15, [0, 1])))],
)
def test_interrupted_anywhere_it_ends_with_the_same_numbers(
    done: tuple[Path, Findings, Heard],
    half: Findings,
    tmp_path: Path,
    until: float,
    seeds: list[int],
) -> None:
    study, whole = changed(seeds=seeds), {1: half, 2: done[1]}[len(seeds)]
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, until=until)
    partial = gather("try", study, tmp_path)
    assert len(partial.trained) == 6 * len(seeds), "a report can be had of what there is"
    findings, _ = run(study, tmp_path)
    assert numbers(findings) == numbers(whole)
    assert list(tmp_path.glob("saes/*/*.unfinished")) == []


def test_each_sae_tells_its_machines_whatever_became_of_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = changed(seeds=[0], arms={"l1": STUDY["arms"]["l1"]})
    monkeypatch.setattr(lockstep, "SHARE_OF_MEMORY", 0)  # an SAE at a time
    monkeypatch.setattr(lockstep, "Kept", functools.partial(lockstep.Kept, every="5"))
    monkeypatch.setattr(machine, "_processor", lambda: "old")
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, until=1.7)
    monkeypatch.setattr(machine, "_processor", lambda: "new")
    findings, _ = run(study, tmp_path)
    told = [json.loads(file.read_text())["machines"] for file in tmp_path.rglob("made_from.json")]
    assert sorted([one["name"] for one in of] for of in told) == [["old"], ["old", "new"]]
    assert findings.provenance["trained on"]["name"] == "new and old"
    assert findings.provenance["evaluated on"]["name"] == "new"
    assert [w for w in findings.warnings if "trained on machines that differ: name new and" in w]


def test_a_changed_arm_is_all_that_is_done_again(
    done: tuple[Path, Findings, Heard], copy: Path
) -> None:
    arms = {**STUDY["arms"], "topk": {"train": {"architecture": "topk", "lr": 0.01}}}
    before = saes(copy)
    findings, _ = run(changed(arms=arms), copy)
    after = saes(copy)
    assert before.items() <= after.items()
    assert len(after) == 16
    assert {name.partition("_")[0] for name in after.keys() - before.keys()} == {"topk"}
    other = gather("try", changed(reference="topk", arms=STUDY["arms"]), copy)
    assert {c.arm for c in other.contrasts} == {"l1", "reordered"}
    assert other.failures == [], "another reference judges the same SAEs"
    old, new = ({(s.arm, s.sparsity, s.seed): s.value for s in f.scores if s.metric == "mcc"}
                for f in (done[1], findings))  # fmt: skip
    assert {key[0] for key in new if new[key] != old[key]} == {"topk"}
    assert len(study_run.stale(study_run.plan_of(changed(arms=arms), copy), copy)) == 4


def test_an_edited_module_is_named_and_its_saes_are_to_be_trained_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def edited(patterns: Any, classes: Any = ()) -> dict[str, str | None]:
        found = code(patterns, classes)
        return {n: "another" if n.endswith("/reorder.py") else text for n, text in found.items()}

    assert study_run.plan_of(changed(), copy).changes == {}
    monkeypatch.setattr(identity, "code", edited)
    known = study_run.plan_of(changed(), copy)
    assert known.changes == {"mechanisms/reorder.py changed": 4}
    missing = [cell.arm for cell in known.cells if cell.summary(copy) is None]
    assert missing == ["reordered"] * 4
    Path(copy, "mine.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "status", str(copy / "mine.yaml"), "--output_path", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "4 SAEs are to be trained again: mechanisms/reorder.py changed" in said


def test_saes_of_an_earlier_version_are_kept_and_what_is_unknown_is_said(copy: Path) -> None:
    for made in copy.glob("saes/*/*/made_from.json"):
        made.unlink()
        made.parent.rename(made.parent.with_name(f"{made.parent.name[:-8]}0123abcd"))
    known = study_run.plan_of(changed(), copy)
    assert all(cell.summary(copy) for cell in known.cells)
    assert study_run.stale(known, copy) == []
    assert (
        "12 SAEs trained earlier are kept, though the embedded world and the code could not be "
        "compared: it was not noted then"
    ) in gather("try", changed(), copy).warnings
    models = json.loads(json.dumps(STUDY["models"]))
    models["toy"]["train"]["lr"] = 0.25
    known = study_run.plan_of(changed(models=models), copy)
    assert known.changes == {"lr is 0.25, and was 0.003": 12}


@pytest.mark.ci
def test_data_that_are_replaced_are_trained_on(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, text = tiny_world.text("train")["tokens"], tmp_path / "text"
    train = {
        "dataset_path": str(text), "training_tokens": 512, "train_batch_size_tokens": 64,
        "context_size": 16, "d_sae": 32, "store_batch_size_prompts": 4, "n_batches_in_buffer": 8,
        "n_batches_for_norm_estimate": 1, "heldout_tokens": 64,
    }  # fmt: skip
    models = {"world": {"train": train, "sparsity": {"l1_coefficient": [1]}, "suites": {}}}
    study = STUDY | {"models": models, "arms": {"l1": {}}, "seeds": [0]}
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    command = ["study", "run", "mine.yaml", "--output_path", "out", "--jobs", "1"]

    def weights() -> dict[str, bytes]:
        assert main(command) == 0
        return {p.parent.name: p.read_bytes() for p in Path("out").rglob("sae_weights*")}

    Dataset.from_dict({"tokens": rows}).save_to_disk(text)
    first = weights()
    assert weights() == first
    Dataset.from_dict({"tokens": [row[::-1] for row in rows]}).save_to_disk(text)
    capsys.readouterr()
    again = weights()
    said = capsys.readouterr().out
    assert f"1 SAE is to be trained again: the dataset in {text} changed: " in said
    assert len(again) == 2
    assert again.items() >= first.items(), "what was there stays"
    assert len(set(again.values())) == 2


@pytest.mark.ci
def test_another_seed_and_other_settings_of_a_suite_leave_saes_alone(copy: Path) -> None:
    before = saes(copy)
    models = json.loads(json.dumps(STUDY["models"]))
    models["toy"]["suites"]["ground-truth"]["samples"] = 600
    findings, _ = run(changed(models=models, seeds=[0, 1, 2]), copy)
    assert before.items() <= saes(copy).items()
    assert len(saes(copy)) == 18
    assert len([score for score in findings.scores if score.metric == "mcc"]) == 18
    compared = changed(models=models, seeds=[0, 1, 2], compare=["seeds/stability"])
    found = {c.arm: c.comparison for c in gather("try", compared, copy).contrasts}
    assert found["reordered"].verdict == "equivalent", "the same features in another order"
    assert found["topk"].n == 3
    assert found["topk"].p is not None


def test_stability_is_a_score_of_every_sae_and_takes_three_seeds_for_a_verdict(
    done: tuple[Path, Findings, Heard],
) -> None:
    folder, findings, _ = done
    scores = [score for score in findings.scores if score.suite == "seeds"]
    assert len(scores) == 12
    assert all(score.value is not None and 0 < score.value < 1 for score in scores)
    rows = {
        (one.sparsity, one.seed): torch.nn.functional.normalize(
            load_file(folder / one.folder / "sae_weights.safetensors")["W_dec"], dim=1
        )
        for one in findings.trained
        if one.arm == "topk"
    }
    for score in scores:
        if score.arm == "topk":
            own, other = (rows[score.sparsity, seed] for seed in (score.seed, 1 - score.seed))
            matched = (own @ other.T).amax(dim=1) > 0.7
            assert score.value == pytest.approx(float(matched.float().mean()))
    assert not [c for c in findings.contrasts if c.suite == "seeds"], "only if it is named"
    named = gather("try", changed(compare=["seeds/stability"]), folder)
    assert {(c.comparison.verdict, c.comparison.reason) for c in named.contrasts} == {
        ("no verdict", "2 seeds in common: it takes three at least")
    }


def test_an_arm_that_fails_is_reported_and_the_others_are_as_without_it(
    half: Findings, tmp_path: Path
) -> None:
    arms = {**STUDY["arms"], "diverging": {"train": {"lr": 1e30}}}
    findings, heard = run(changed(arms=arms, seeds=[0]), tmp_path)
    assert heard.done == pytest.approx(16)
    assert len(findings.failures) == 2
    assert "toy, diverging, l1_coefficient=0.3, seed 0: " in findings.failures[0]
    assert "NaN" in findings.failures[0] or "finite" in findings.failures[0]
    others = [score for score in findings.scores if score.arm != "diverging"]
    timed = ("seconds", "tokens_per_second")
    expected = [score for score in half.scores if score.metric not in timed]
    assert [score for score in others if score.metric not in timed] == expected
    verdicts = {c.comparison.verdict for c in findings.contrasts if c.arm == "diverging"}
    assert verdicts == {"no verdict"}


@pytest.mark.parametrize("what", ["training", "evaluation"])
def test_a_seed_that_failed_is_not_left_out(what: str, copy: Path) -> None:
    """Verdicts of the seeds that went well would be of seeds chosen by their outcome."""
    if what == "training":
        for folder in copy.glob("saes/toy/topk*seed1*"):
            shutil.rmtree(folder)
            folder.with_name(f"{folder.name}.failed").write_text("the loss is NaN\n")
    else:
        manifest = copy / "evaluations/toy/seed1/manifest.json"
        found = json.loads(manifest.read_text())
        for row in found["rows"]:
            if row["sae"].startswith("topk"):
                row |= {"status": "failed", "reason": "out of memory", "file": None}
        manifest.write_text(json.dumps(found))
    findings = gather("try", changed(seeds=[0, 1]), copy)
    assert len(findings.failures) == 2
    found = {c.comparison.verdict: str(c.comparison.reason) for c in findings.contrasts
             if c.arm == "topk" and c.metric != "absorption"}  # fmt: skip
    assert found.keys() == {"no verdict"}
    assert "no common L0 in seed 1" in found["no verdict"]


def test_versions_are_those_of_the_saes_and_results(copy: Path) -> None:
    before = gather("try", changed(), copy)
    assert before.provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert not any("different versions" in warning for warning in before.warnings)
    file = next(copy.glob("saes/*/*/run.yaml"))
    recipe = yaml.safe_load(file.read_text())
    recipe["versions"]["torch"] = "1.0"
    file.write_text(yaml.safe_dump(recipe))
    assert any(
        "different versions: torch 1.0 and" in w for w in gather("x", changed(), copy).warnings
    )


def test_a_metric_that_no_result_has_is_named(copy: Path) -> None:
    study = changed(compare=["ground-truth/mcc", "ground-truth/uniqueness"])
    for file in copy.glob("evaluations/*/*/*/*.json"):
        result = json.loads(file.read_text())
        del result["metrics"]["uniqueness"]
        file.write_text(json.dumps(result))
    named = [w for w in gather("try", study, copy).warnings if "no result has" in w]
    assert named == ["toy: no result has ground-truth/uniqueness, which is to be compared"]


def test_an_arm_that_fails_is_tried_again_when_it_is_mended(tmp_path: Path) -> None:
    arms = {"l1": {}, "other": {"train": {"lr": 1e30}}}
    findings, _ = run(changed(arms=arms, seeds=[0]), tmp_path)
    assert len(findings.failures) == 2
    arms["other"]["train"]["lr"] = 1e-3
    findings, _ = run(changed(arms=arms, seeds=[0]), tmp_path)
    assert findings.failures == []


def test_what_may_be_shared_names_no_folder(done: tuple[Path, Findings, Heard]) -> None:
    folder, findings, _ = done
    names = ("manifest.json", "made_from.json", "summary.json", "results.csv")
    files = [file for name in names for file in folder.rglob(name)]
    files += [*folder.glob("evaluations/**/*-seed*.json"), *folder.rglob("*.failed")]
    assert {*names[:2]} < {file.name for file in files}
    for file in files:
        assert str(folder) not in file.read_text(), file
    assert str(folder) not in findings.model_dump_json()


def test_files_of_others_stay_where_an_sae_would_lie(copy: Path) -> None:
    one, other = sorted(copy.glob("saes/toy/topk*seed0*"))
    for folder in (one, other):
        (folder / "summary.json").unlink()
    (one / "notes.txt").write_text("mine")
    findings, _ = run(changed(seeds=[0]), copy)
    assert [*one.iterdir()] == [one / "notes.txt"]
    assert (other / "summary.json").is_file()
    (failure,) = findings.failures
    assert f"{one.name} holds no whole run, but files of others: move them away" in failure


def test_two_arms_that_are_the_same_sae_both_have_scores(tmp_path: Path) -> None:
    findings, heard = run(changed(arms={"l1": {}, "same": {}}, seeds=[0]), tmp_path)
    assert heard.done == pytest.approx(8)
    mcc = {(s.arm, s.sparsity): s.value for s in findings.scores if s.metric == "mcc"}
    assert len(mcc) == 4
    for sparsity in ("l1_coefficient=0.3", "l1_coefficient=3"):
        assert mcc["l1", sparsity] == mcc["same", sparsity]


@pytest.mark.ci
def test_wanted_l0s_are_reached(tmp_path: Path) -> None:
    models = json.loads(json.dumps(STUDY["models"]))
    models["toy"] |= {"target_l0": [8.0], "sparsity": {"l1_coefficient": [0.3, 1, 3, 10]}}
    models["toy"]["exact_l0"] = False
    models["toy"]["train"]["training_tokens"] = 19_200
    findings, heard = run(changed(models=models, arms={"l1": {}}), tmp_path)
    assert heard.done == pytest.approx(heard.total)
    assert heard.total == 4 + 2 * 2
    for trained in findings.trained:
        assert trained.l0 == pytest.approx(8, rel=0.25)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, Findings, Heard]:
    """All architectures that can, at exactly one L0 and each at its best learning rate."""
    torch.set_num_threads(1)
    arms: dict[str, Any] = {
        "l1": {"tune": {"lr": [0.003, 0.01], "seeds": 1}},
        "gated": {"train": {"architecture": "gated"}},
        "jumprelu": {
            "train": {"architecture": "jumprelu"},
            "sparsity": {"jumprelu_init_threshold": [0.1, 0.2, 0.4]},  # in 12 steps it moves little
        },
        "topk": {"train": {"architecture": "topk"}, "tune": {"lr": [0.001, 0.003], "seeds": 2}},
        "batchtopk": {"train": {"architecture": "batchtopk"}},
    }
    toy = {**STUDY["models"]["toy"], "target_l0": [5.5], "suites": {}}
    toy["train"] = {**toy["train"], "heldout_tokens": 131_072, "calibrate_tokens": 131_072}
    toy["sparsity"] = {"l1_coefficient": [0.3, 30], "k": [8]}
    study = changed(models={"toy": toy}, arms=arms, seeds=[0])
    folder = tmp_path_factory.mktemp("exact")
    return (folder, study, *run(study, folder))


@pytest.mark.ci
def test_arms_have_exactly_the_wanted_l0_on_text_that_set_nothing(
    exact: tuple[Path, Study, Findings, Heard],
) -> None:
    folder, _, findings, heard = exact
    assert heard.done == pytest.approx(heard.total)
    names = ("l1", "gated", "jumprelu", "topk", "batchtopk")
    assert {one.arm: one.status for one in findings.trained} == dict.fromkeys(names, "ok"), (
        findings.warnings
    )
    for one in findings.trained:
        assert one.exact_l0 == 5.5
        assert one.l0 == pytest.approx(5.5, rel=0.005), one.arm
        sae: Any = SAE.load_from_disk(str(folder / one.folder))
        assert sae.cfg.architecture() == "jumprelu"
        own: Any = SAE.load_from_disk(str(folder / one.folder / "uncalibrated"))
        assert (own.cfg.architecture() == "standard") == (one.arm == "l1")
    own_l0 = {s.arm: s.value for s in findings.scores if (s.suite, s.metric) == (
        "uncalibrated", "l0")}  # fmt: skip
    assert own_l0["topk"] == pytest.approx(6, abs=0.2)
    assert own_l0["l1"] > 5.5
    assert not [w for w in findings.warnings if "L0" in w]


@pytest.mark.ci
def test_learning_rates_are_tried_on_other_seeds_and_other_text(
    exact: tuple[Path, Study, Findings, Heard],
) -> None:
    folder, study, findings, _ = exact
    assert {one.arm: [len(t.scores) for t in one.tried] for one in findings.tuned} == {
        "l1": [1, 1], "topk": [2, 2],
    }  # fmt: skip
    best = {one.arm: one.best for one in findings.tuned}
    assert findings.learning_rates["toy"].items() >= best.items()
    for summary in folder.glob("saes/*/*_tuning_*/summary.json"):
        found = json.loads(summary.read_text())
        assert not [line for line in found if line.startswith("heldout/")], "it saw no such text"
        assert found["tuning/l0"] == pytest.approx(5.5, rel=1e-4)
        assert found["tuning/tokens"] >= 131_072
        assert yaml.safe_load((summary.parent / "run.yaml").read_text())["seed"] >= 10_000
    assert all(one.warning and one.warning in findings.warnings for one in findings.tuned), "edges"
    before = saes(folder)
    again, _ = run(study, folder)
    assert saes(folder) == before
    assert numbers(again) == numbers(findings)


@pytest.mark.ci
def test_an_exact_sae_can_be_made_again_from_its_recipe(
    exact: tuple[Path, Study, Findings, Heard], tmp_path: Path
) -> None:
    folder, _, findings, _ = exact
    there = folder / next(one.folder for one in findings.trained if one.arm == "gated")
    again = tmp_path / "again"
    assert main(["train", "--recipe", str(there / "run.yaml"), "--output_path", str(again)]) == 0
    for name in ("sae_weights.safetensors", "cfg.json"):
        for place in ("", "uncalibrated/"):
            assert (again / f"{place}{name}").read_bytes() == (
                there / f"{place}{name}"
            ).read_bytes(), place


def test_an_evaluation_that_fails_is_reported(copy: Path) -> None:
    damaged = next(copy.glob("saes/toy/topk*"))
    (damaged / "cfg.json").write_text("{}")
    shutil.rmtree(copy / "evaluations")
    findings, _ = run(changed(), copy)
    assert any("cfg.json" in text or "architecture" in text for text in findings.failures)
    assert len([score for score in findings.scores if score.metric == "mcc"]) == 11


def test_a_report_of_a_part_says_so_and_what_is_compared_may_be_missing(copy: Path) -> None:
    shutil.rmtree(next(copy.glob("saes/toy/topk*seed0*")))
    shutil.rmtree(copy / "evaluations/toy/seed1")
    findings = gather("try", changed(compare=["ground-truth/mcc"]), copy)
    assert any(w.startswith("not complete: 1 of 12 SAEs and 7 of 12") for w in findings.warnings)


def test_pilots_that_fail_are_reported(tmp_path: Path) -> None:
    models = json.loads(json.dumps(STUDY["models"]))
    models["toy"]["target_l0"] = [8.0]
    arms = {"l1": {}, "diverging": {"train": {"lr": 1e30}}}
    findings, heard = run(changed(models=models, arms=arms, seeds=[0]), tmp_path)
    assert heard.done == pytest.approx(heard.total)
    assert (
        sum("diverging, l1_coefficient=0.3, seed 10000, pilot: " in f for f in findings.failures)
        == 1
    )
    assert any("toy, diverging: none of the values" in w for w in findings.warnings)


def test_a_damaged_manifest_is_named(copy: Path) -> None:
    (copy / "evaluations/toy/seed0/manifest.json").write_text('{"rows": [')
    with pytest.raises(SaePluginsError, match=r"seed0/manifest.json cannot be read"):
        gather("try", changed(), copy)


def test_only_metrics_that_are_named_are_compared(copy: Path) -> None:
    findings = gather("try", changed(compare=["ground-truth/uniqueness"]), copy)
    assert {contrast.metric for contrast in findings.contrasts} == {"uniqueness"}


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    return "mine.yaml"


def test_the_commands(file: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "status", file]) == 0
    assert "studies/mine" in (shown := capsys.readouterr().out)
    assert "l1 (reference)" in shown
    assert main(["study", "run", file, "--output_path", str(copy), "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    assert "underpowered" in out
    assert "topk" in out.partition("effects")[2]
    assert str(copy / "report.html") in out
    assert "75% toy, seed 1: evaluating 6 SAEs" in err
    assert Findings.model_validate_json((copy / "findings.json").read_text()).name == "mine"
    assert main(["study", "report", file, "--output_path", str(copy)]) == 0


def test_a_failure_makes_the_exit_code_1(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"l1": {"train": {"lr": 1e30}}}
    Path(file).write_text(yaml.safe_dump({**STUDY, "arms": arms, "seeds": [0]}))
    assert main(["study", "run", file, "--jobs", "1"]) == 1
    assert "failed: toy, l1, l1_coefficient=0.3, seed 0: " in capsys.readouterr().err


def test_packaged_studies_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list"]) == 0
    assert "quick" in capsys.readouterr().out
    assert main(["study", "show", "quick"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["reference"] == "l1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quik"], "there is no study 'quik': did you mean 'quick'?"),
        (["run", "mine.yaml", "--jobs", "0"], "--jobs 0: it must be at least 1"),
        (["run", "mine.yaml", "--output_path", "mine.yaml"], "mine.yaml is a file; name a folder"),
        (["report", "mine.yaml"], "there is no such folder; run the study first"),
        (["status", "missing.yaml"], "there is no study file missing.yaml"),
    ],
)
def test_what_is_wrong_is_said(
    file: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ground-truth/mc", "compare: no metric 'ground-truth/mc': did you mean 'mcc'?"),
        ("cor/l0", "compare: no suite 'cor': did you mean 'core'"),
        ("ground-truth/sae_l0", "neither higher nor lower is better; leave it out"),
    ],
)
def test_wrong_metrics_are_refused_before_training(
    file: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(yaml.safe_dump({**STUDY, "compare": [name]}))
    for action in ("status", "run"):
        assert main(["study", action, file]) == 2
        assert message in capsys.readouterr().err
    assert not Path("studies/mine/saes").exists()


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        ({"cor": {}}, "models.toy.suites.cor: no suite 'cor' is installed: did you mean 'core'"),
        (
            {"ground-truth": {"sample": 5}},
            "models.toy.suites.ground-truth: there is no option --ground-truth.sample: did you "
            "mean '--ground-truth.samples'?",
        ),
        (
            {"ground-truth": {"samples": 0}},
            "models.toy.suites.ground-truth: --ground-truth.samples 0: it must be greater than 0",
        ),
    ],
)
def test_wrong_suites_are_refused_before_training(
    file: str, suites: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"toy": {**STUDY["models"]["toy"], "suites": suites}}
    Path(file).write_text(yaml.safe_dump({**STUDY, "models": models}))
    for action in ("status", "run"):
        assert main(["study", action, file]) == 2
        assert message in capsys.readouterr().err
    assert not Path("studies/mine/saes").exists()


def test_a_report_of_saes_that_count_no_more_stays(
    file: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output_path", str(copy)]
    assert main(["study", "report", file, *where]) == 0
    report = (copy / "report.html").read_bytes()
    text = Path(file).read_text()
    assert "training_tokens: 4608" in text
    Path(file).write_text(text.replace("training_tokens: 4608", "training_tokens: 4992"))
    capsys.readouterr()
    assert main(["study", "report", file, *where]) == 2
    said = capsys.readouterr()
    assert "has no SAE of this study, but an earlier report, which stays" in said.err
    assert "12 SAEs in" in said.out
    assert (copy / "report.html").read_bytes() == report


def test_two_runs_of_one_study_are_not_at_once(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "studies/mine").mkdir(parents=True)
    with lock(tmp_path / "studies/mine", SaePluginsError("busy")):
        assert main(["study", "run", file, "--underpowered"]) == 1
    assert "this study is being run already" in capsys.readouterr().err


def test_a_first_training_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Nothing has made the folder in which the reason is written."""
    toy = {**STUDY["models"]["toy"], "suites": {}}
    toy["train"] = {**toy["train"], "device": "cuda:99"}
    findings, _ = run(changed(models={"toy": toy}, seeds=[0]), tmp_path / "out")
    assert {one.status for one in findings.trained} == {"failed"}
    reasons = {one.reason or "" for one in findings.trained}
    assert all("--device cuda:99 cannot be used" in reason for reason in reasons), reasons


# -- the time that it is given ---------------------------------------------------------------------


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What ends the time of `--max_time`, of which a test decides when that is."""
    timers: list[Any] = []

    class Timer:
        def __init__(self, seconds: float, act: Callable[[], None]) -> None:
            self.seconds, self.act, self.cancelled = seconds, act, False
            timers.append(self)

        def start(self) -> None: ...

        def cancel(self) -> None:
            self.cancelled = True

    monkeypatch.setattr(study_time.threading, "Timer", Timer)
    yield lambda: timers[-1].act()
    left = 9 * 3600 - age()  # of the process
    assert all(left - 60 < timer.seconds < left + 60 for timer in timers)
    assert all(timer.cancelled for timer in timers)


@pytest.mark.ci
def test_out_of_time_it_pauses_and_ends_with_the_same_findings(
    done: tuple[Path, Findings, Heard],
    file: str,
    over: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["study", "run", file, "--underpowered", "--output_path", "out", "--jobs", "1"]
    in_time = [*command, "--max_time", "9h"]
    for owner, name in ((lockstep, "_score"), (work, "evaluate")):
        own, calls = getattr(owner, name), []

        def at_second(*given: Any, own: Any = own, calls: list[None] = calls) -> Any:
            calls.append(None)
            if len(calls) == 2:
                over()
            return own(*given)

        monkeypatch.setattr(owner, name, at_second)
        assert main(in_time) == 75
        assert "paused; the same command goes on from there" in capsys.readouterr().err
        assert not list(Path("out").rglob("findings.json"))
        monkeypatch.setattr(owner, name, own)
    assert len(saes(Path("out"))) > 0
    assert main(in_time) == 0
    assert numbers(gather("try", changed(), Path("out"))) == numbers(done[1])


@pytest.mark.ci
def test_a_study_that_would_never_get_on_is_no_pause(
    file: str,
    over: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lockstep, "_score", lambda *_: over())
    command = ["study", "run", file, "--underpowered", "--jobs", "1"]
    assert main([*command, "--max_time", "9h"]) == 1
    assert "--max_time 9h: in this time no SAE was trained and scored" in capsys.readouterr().err
    monkeypatch.setattr(lockstep, "_score", lambda *_: signal.raise_signal(signal.SIGUSR1))
    assert main([*command, "--max_time", "9h"]) == 75, "somebody else's signal may come early"


def test_what_is_no_length_of_time_is_refused(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", file, "--max_time", "soon"]) == 2
    assert "--max_time: 'soon' is no length of time" in capsys.readouterr().err


# -- processes -------------------------------------------------------------------------------------


KILLED = """
import contextlib, functools, os, signal, sys, time
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites.ground_truth import GroundTruth
from sae_plugins.runs import lockstep, machine
from sae_plugins.study import work

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs in the background
own_steps, own_evaluate, evaluated = work._steps, GroundTruth.evaluate, []

def end(where):
    # the first process that comes here has the study killed; none goes on
    if where == sys.argv[1]:
        with contextlib.suppress(FileExistsError):
            open(f"killed while {where}", "x").close()
            os.kill(os.getppid(), int(sys.argv[2]))
        if where == "training":
            return time.sleep(10)  # until this process hears of it; then the step ends
        while True:
            signal.pause()

def steps(saes, progress):
    tell, begun = own_steps(saes, progress), []

    def told(done, total):
        if not begun:
            begun.append(done)
            open(f"{sys.argv[1]} began at {done}", "w").close()
        tell(done, total)
        if done == total // 2:
            end("training")

    return told

def evaluate(*given):
    scores = own_evaluate(*given)
    evaluated.append(scores)
    if len(evaluated) == 2:
        end("evaluating")
    return scores

work._steps, GroundTruth.evaluate = steps, evaluate
lockstep.Kept = functools.partial(lockstep.Kept, every="4")  # of 12
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
"""
"""`study run`, killed in the middle; its processes import this file, too."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 130),
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 75),
    ],
)
def test_killed_with_its_processes_it_ends_with_the_same_numbers(
    done: tuple[Path, Findings, Heard], file: str, how: signal.Signals, code: int
) -> None:
    Path("killed.py").write_text(KILLED)
    here = ["study", "run", file, "--underpowered", "--output_path", "here"]
    jobs = str(max(2, os.cpu_count() or 1))
    for where, left in (
        ("training", "checkpoints/*/step-*.safetensors"),
        ("evaluating", "evaluations/toy/seed*/*/*.json"),
    ):
        command = [sys.executable, "killed.py", where, str(int(how)), *here, "--jobs", jobs]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        process.communicate(timeout=1800)  # until the last of its processes has let go of stdout
        assert process.returncode == code
        assert Path(f"killed while {where}").exists()
        assert list(Path("here").glob(left))
    assert {*Path().glob("evaluating began at *")} - {Path("evaluating began at 1")}
    assert main([*here, "--jobs", "1"]) == 0
    assert not Path("here/checkpoints").exists()
    assert numbers(gather("try", changed(), Path("here"))) == numbers(done[1])


def reaching(targets: list[float], *arms: str) -> Study:
    toy = {**STUDY["models"]["toy"], "target_l0": targets, "exact_l0": False}
    return changed(models={"toy": toy}, arms={a: STUDY["arms"][a] for a in arms}, seeds=[0])


def test_an_l0_that_the_trained_saes_miss_is_named() -> None:
    """Pilots that stand far apart do not say where the L0 between them is."""
    study = reaching([8, 11], "l1", "topk")
    pilots = plan(study, lambda _: None).pilots

    def named(*l0s: float, arm: str = "l1") -> list[str]:
        trained = [
            Trained(model="toy", arm=arm, sparsity=f"flag={l0}", seed=0, folder="here",
                    status="ok", l0=l0)
            for l0 in l0s
        ]  # fmt: skip
        return list(missed(study, pilots, trained))

    (warning,) = named(8.2, 16.2)
    assert warning.startswith("toy, l1: an L0 of 11 is wanted, and the nearest SAEs have 8.2")
    assert named(8.2, 11.2) == []
    assert named(8.2) == [], "its pilots have said so"
    assert named(20.0, 30.0, arm="topk") == [], "k has no pilots"


def test_a_study_of_which_only_pilots_could_be_trained_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "far.yaml"
    file.write_text(
        yaml.safe_dump(reaching([0.01], "l1").model_dump(mode="json", exclude_defaults=True))
    )
    assert main(["study", "run", str(file), "--output_path", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "an L0 of 0.01 is not between" in said.out + said.err
    assert "only pilots were trained" in said.err
