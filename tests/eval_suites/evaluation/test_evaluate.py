"""The run over SAEs, suites and seeds: what is computed, what is kept, and what is said."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import Field

from sae_plugins.base.code import code
from sae_plugins.base.errors import PluginError, SaePluginsError, SuiteError
from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.evaluation import folder as module
from sae_plugins.eval_suites.evaluation import plan
from sae_plugins.eval_suites.evaluation.evaluate import Evaluation, Request
from sae_plugins.eval_suites.evaluation.manifest import Manifest
from sae_plugins.eval_suites.evaluation.results import Result
from sae_plugins.eval_suites.suite import Cost, Metric, Scores, Suite, Value
from sae_plugins.eval_suites.suite import SuiteSettings as SuiteSettings

HOOK = "blocks.1.hook_resid_post"


class Settings(SuiteSettings):
    size: int = Field(4, ge=1, description="of something")


class Dummy(Suite):
    """Scores that tell the SAE and the seed."""

    name = "dummy"
    metrics = (
        Metric("score_{k}", "score", "of nothing", "higher", headline=True),
        Metric("other", "other", "no headline", "lower"),
    )
    Settings = Settings

    def __init__(self):
        self.calls = []
        self.breaks = {}

    def cost(self, subject, settings):
        return Cost(1000, 100, 10)

    def refusal(self, subject):
        return "it is too small" if subject.name == "small" else None

    def prepare(self, bench, settings, seed):
        self.calls.append("prepare")
        bench.stage("preparing")
        (bench.folder / "prepared").write_text("kept for all SAEs")
        if "prepare" in self.breaks:
            raise self.breaks["prepare"]
        return bench.folder / "prepared"

    def evaluate(self, subject, bench, settings, seed, prepared):
        self.calls.append(subject.name)
        assert prepared.exists()
        assert not list(bench.folder.iterdir())
        bench.data.text("open text", 0, seed)
        if subject.name in self.breaks:
            raise self.breaks[subject.name]
        value = float(len(subject.name) + seed)
        metrics = {f"score_{k}": Value(value=value, n=3, std=0.5) for k in (10, 2)}
        return Scores(
            {**metrics, "other": Value(value=float("nan"))},
            details={"b": {"rate": 0.5}, "a": {"rate": float("nan")}},
            warnings=["odd"],
            raw='{"raw": 1}',
        )


class Modelless(Dummy):
    """Needs no language model."""

    name = "modelless"
    needs_model = False

    def evaluate(self, subject, bench, settings, seed, prepared):
        self.calls.append(subject.name)
        assert bench.model is None
        return Scores({"score_1": Value(value=1.0)})


class Data:
    name, version = "world", "v1"

    def __init__(self, revisions):
        self.revisions = {**revisions, "open text": "commit1"}

    def fingerprint(self, dataset, config=None):
        return self.version

    def text(self, dataset, skip, seed):
        return ["text"]


class Progress:
    def __init__(self):
        self.seen = []

    def stage(self, text):
        pass

    def finished(self, row, again):
        self.seen.append((row.suite, row.sae, row.seed, row.status, again))


@pytest.fixture
def loaders(monkeypatch):
    """Fake loaders in the place of those that need torch and SAELens."""
    state = SimpleNamespace(
        model_hash="m1", models=[], data=Data, model_error=None, revisions=[], configs=[],
        checked=[], unfit=[],
    )  # fmt: skip

    def load_subject(source):
        name = Path(source).name
        if name.startswith("missing"):
            raise SuiteError(f"there is no {source}")
        model = "synthetic:toy" if name == "synthetic" else "gpt2"
        return SimpleNamespace(
            name=name.partition("@")[0], source=source, hash=(name.encode().hex() * 9)[:32],
            architecture="topk", d_in=4, d_sae=8, hook_name=HOOK, model_name=model,
            warnings=("decoder norms",), dataset=None, training_tokens=None, l0=None,
        )  # fmt: skip

    def expected(name, dtype, model_class):
        def load(device):
            state.models.append(name)
            if state.model_error:
                raise state.model_error
            return SimpleNamespace(
                name=name, hash=state.model_hash, dtype=dtype, hooked=None, loaded_as="dummy"
            )

        def check(subject, flag, prompt):
            state.checked.append((subject.name, flag, prompt))
            if subject.name in state.unfit:
                raise SuiteError("it does not fit")

        state.configs.append(name)
        loader = SimpleNamespace(kind=f"a {model_class or 'dummy'}")
        return SimpleNamespace(loader=loader, check=check, load=load)

    def data_source(name, model_name, revisions):
        state.revisions.append(dict(revisions))
        return state.data(revisions)

    fakes = {
        "evaluation.loading": {"load_subject": load_subject},
        "evaluation.sources": {"check_source": lambda _: None},
        "inputs.models": {
            "expected": expected,
        },
        "inputs.data_source": {"data_source": data_source},
        "saebench.facts": {"default_dtype": lambda _: "float32"},
        "saebench.isolation": {"undisturbed": nullcontext},
    }
    for name, functions in fakes.items():
        fake = SimpleNamespace(**functions)
        monkeypatch.setitem(sys.modules, f"sae_plugins.eval_suites.{name}", fake)
    return state


@pytest.fixture
def evaluate(loaders, tmp_path):
    """Runs an evaluation into OUT, and returns it with its progress."""

    def run(*sources, suites=None, seeds=(42,), size=4, dry=False):
        suites = suites or [Dummy()]
        request = Request(
            sources=sources or ("runs/a", "runs/bb"),
            suites={suite.name: (suite, Settings(size=size)) for suite in suites},
            seeds=seeds,
            preset="quick",
            output_path=tmp_path / "OUT",
            cache_path=tmp_path / "cache",
        )
        done = Evaluation(request)
        done.progress = Progress()
        if not dry:
            done.run(done.progress)
        return done

    return run


def table(folder, name):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def statuses(done):
    return {(row.sae, row.seed): row.status for row in done.rows}


def test_every_row_is_a_file_a_manifest_row_and_lines_of_the_tables(evaluate):
    suite = Dummy()
    done = evaluate(suites=[suite], seeds=(42, 43))
    assert suite.calls == ["prepare", "a", "bb", "prepare", "a", "bb"]  # prepared once a seed
    manifest = json.loads((done.output.path / "manifest.json").read_text())
    assert [(row["sae"], row["seed"], row["status"]) for row in manifest["rows"]] == [
        ("a", 42, "ok"), ("a", 43, "ok"), ("bb", 42, "ok"), ("bb", 43, "ok"),
    ]  # fmt: skip
    assert manifest["revisions"] == {"open text": "commit1"}
    file = done.output.path / manifest["rows"][2]["file"]
    result = Result.model_validate_json(file.read_text())
    assert file.parent.name == f"bb-{result.sae.hash[:8]}"
    assert file.name.startswith("dummy-seed42-")
    assert result.metrics["score_2"].value == 44
    assert result.metrics["other"].value is None
    assert result.datasets == {"open text": "v1"}
    assert result.warnings == ["decoder norms", "odd"]
    assert result.settings == {"size": 4}
    assert result.model.hash == "m1"
    assert result.seconds >= 0
    assert result.peak_memory_bytes > 1_000_000
    assert (file.parent / result.raw).read_text() == '{"raw": 1}'
    rows = table(done.output.path, "results.csv")
    assert [(row["sae"], row["seed"], row["metric"]) for row in rows[:3]] == [
        ("a", "42", "score_2"), ("a", "42", "score_10"), ("a", "43", "score_2"),
    ]  # fmt: skip
    assert list(rows[0])[:8] == ["suite", "sae", "seed", "metric", "value", "n", "std", "status"]
    assert list(rows[0])[-2:] == ["seconds", "cpu_seconds"]
    details = table(done.output.path, "details.csv")
    assert list(details[0].values())[:6] == ["dummy", "a", "42", "a", "rate", ""]
    assert details[1]["value"] == "0.5"


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """As if the dummies were installed, for the headlines of results.csv."""
    known = {"dummy": Dummy, "modelless": Modelless}

    def load(name):
        if name not in known:
            raise PluginError(name)
        return known[name]()

    monkeypatch.setattr(registry, "load", load)


def test_a_second_run_computes_nothing_and_changes_no_byte(evaluate):
    first = evaluate()
    before = {p: p.read_bytes() for p in first.output.path.rglob("*") if p.is_file()}
    suite = Dummy()
    again = evaluate(suites=[suite])
    assert suite.calls == []
    assert [seen[-2:] for seen in again.progress.seen] == [("ok", True)] * 2
    assert {p: p.read_bytes() for p in first.output.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "what",
    ["setting", "seed", "model", "data", "suite version", "distribution", "code", "damage"],
)
def test_what_a_result_depends_on_makes_it_computed_anew(
    evaluate, loaders, what, monkeypatch, caplog
):
    first = evaluate("runs/a")
    suite, wishes, file = Dummy(), {}, ""
    if what == "setting":
        wishes["size"] = 5
    elif what == "seed":
        wishes["seeds"] = (43,)
    elif what == "model":
        loaders.model_hash = "m2"
    elif what == "data":
        monkeypatch.setattr(Data, "version", "v2")
    elif what == "suite version":
        monkeypatch.setattr(Dummy, "version", 2)
    elif what == "distribution":
        monkeypatch.setattr(Dummy, "distributions", ("pytest",))
    elif what == "code":
        (file,) = [name for name in code((), [Dummy]) if name.endswith("test_evaluate.py")]
        edited = {**code((), [Dummy]), file: "another"}
        monkeypatch.setattr(plan, "code", lambda patterns, suites: edited)
    else:
        (first.output.path / first.rows[0].file).write_text("{")
    evaluate("runs/a", suites=[suite], **wishes)
    assert suite.calls == ["prepare", "a"]
    assert (f"results of dummy are computed again: {file} changed" in caplog.text) == (
        what == "code"
    )


def test_a_result_of_an_earlier_version_stays(evaluate):
    first = evaluate("runs/a")
    file = first.output.path / first.rows[0].file
    result = json.loads(file.read_text())
    assert result.pop("code")
    file.write_text(json.dumps(result))
    suite = Dummy()
    evaluate("runs/a", suites=[suite])
    assert suite.calls == []


def test_results_do_not_depend_on_the_order_of_saes(evaluate, tmp_path):
    evaluate("runs/a", "runs/bb").output.path.rename(tmp_path / "one")
    evaluate("runs/bb", "runs/a")
    for name in ("manifest.json", "details.csv"):
        assert (tmp_path / "one" / name).read_text().replace("runs/", "") == (
            tmp_path / "OUT" / name
        ).read_text().replace("runs/", "")
    names = [
        sorted(str(p.relative_to(tmp_path / f)) for p in (tmp_path / f).rglob("*"))
        for f in ("one", "OUT")
    ]
    assert names[0] == names[1]


def test_a_failed_row_says_why_and_the_rest_goes_on(evaluate):
    suite = Dummy()
    suite.breaks = {"a": SuiteError("too few letters"), "bb": RuntimeError("CUDA\nmore lines")}
    done = evaluate("runs/a", "runs/bb", "runs/ccc", suites=[suite])
    assert statuses(done) == {("a", 42): "failed", ("bb", 42): "failed", ("ccc", 42): "ok"}
    assert [row.reason for row in done.rows] == ["too few letters", "RuntimeError: CUDA", None]
    traces = list(done.output.path.rglob("*.error.txt"))
    assert len(traces) == 1  # a SuiteError explains itself
    assert "more lines" in traces[0].read_text()
    result = Result.model_validate_json((done.output.path / done.rows[0].file).read_text())
    assert (result.status, result.reason) == ("failed", "too few letters")
    assert {row["sae"] for row in table(done.output.path, "results.csv")} == {"ccc"}

    suite = Dummy()
    mended = evaluate("runs/a", "runs/bb", "runs/ccc", suites=[suite])
    assert suite.calls == ["prepare", "a", "bb"]
    assert set(statuses(mended).values()) == {"ok"}
    assert not list(done.output.path.rglob("*.error.txt"))


def test_a_failing_preparation_fails_all_rows_of_its_group(evaluate):
    suite = Dummy()
    suite.breaks = {"prepare": SuiteError("no data")}
    done = evaluate(suites=[suite, Modelless()])
    assert {(row.suite, row.status, row.reason) for row in done.rows} == {
        ("dummy", "failed", "no data"), ("modelless", "ok", None),
    }  # fmt: skip


def test_a_model_that_does_not_load_fails_its_rows_only(evaluate, loaders):
    loaders.model_error = SuiteError("no such model")
    done = evaluate("runs/a", suites=[Dummy(), Modelless()])
    assert [(row.suite, row.status) for row in done.rows] == [
        ("dummy", "failed"), ("modelless", "ok"),
    ]  # fmt: skip
    loaders.model_error = None
    done = evaluate("runs/a", suites=[Dummy(), Modelless()])
    assert {row.status for row in done.rows} == {"ok"}
    results = [json.loads(p.read_text()) for p in done.output.path.glob("*/*[0-9a-f].json")]
    assert {r["status"] for r in results} == {"ok"}  # the failed row's file is gone


def test_an_sae_that_does_not_load_fails_its_rows_only(evaluate):
    done = evaluate("runs/missing", "runs/a")
    assert statuses(done) == {("runs/missing", 42): "failed", ("a", 42): "ok"}
    row = Manifest.read(done.output.path).rows[1]
    assert (row.source, row.reason) == ("runs/missing", "there is no runs/missing")
    assert ("dummy", "runs/missing", 42, "failed", False) in done.progress.seen


def test_a_suite_that_does_not_apply_loads_no_model(evaluate, loaders):
    done = evaluate("runs/small", "runs/synthetic", suites=[Dummy(), Modelless()])
    reasons = {(row.suite, row.sae): (row.status, row.reason) for row in done.rows}
    assert reasons["dummy", "small"] == ("not applicable", "it is too small")
    status, reason = reasons["dummy", "synthetic"]
    assert status == "not applicable"
    assert "synthetic:toy" in reason
    assert reasons["modelless", "synthetic"] == ("ok", None)
    assert loaders.models == []


def test_the_same_sae_twice_counts_once(evaluate):
    done = evaluate("runs/a", "copy/a", "runs/a")
    assert len(done.rows) == 1
    assert done.notes == ["copy/a is the same SAE as runs/a: it counts once"]


def test_saes_of_one_name_are_told_apart(evaluate):
    done = evaluate("runs/a@1", "runs/a@2")
    names = {row["sae"] for row in table(done.output.path, "results.csv")}
    assert len(names) == 2
    assert all(name.startswith("a-") for name in names)


def test_later_evaluations_add_to_the_folder(evaluate):
    evaluate("runs/a")
    done = evaluate("runs/bb", suites=[Modelless()])
    assert {(row["suite"], row["sae"]) for row in table(done.output.path, "results.csv")} == {
        ("dummy", "a"), ("modelless", "bb"),
    }  # fmt: skip


def test_data_are_read_at_the_commits_of_the_first_run(evaluate, loaders):
    evaluate()
    assert loaders.revisions.pop() == {}
    loaders.revisions.clear()
    evaluate(seeds=(43,))
    assert {*map(str, loaders.revisions)} == {str({"open text": "commit1"})}


def test_an_interruption_keeps_what_is_finished(evaluate, tmp_path):
    suite = Dummy()
    suite.breaks = {"bb": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        evaluate("runs/a", "runs/bb", "runs/ccc", suites=[suite])
    rows = Manifest.read(tmp_path / "OUT").rows
    assert [(row.sae, row.status) for row in rows] == [
        ("a", "ok"), ("bb", "planned"), ("ccc", "planned"),
    ]  # fmt: skip
    suite = Dummy()
    evaluate("runs/a", "runs/bb", "runs/ccc", suites=[suite])
    assert suite.calls == ["prepare", "bb", "ccc"]


@pytest.mark.parametrize("where", ["prepare", "bb"])
def test_a_fault_of_the_machine_is_no_row_s(evaluate, tmp_path, where):
    suite = Dummy()
    suite.breaks = {where: RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel")}
    with pytest.raises(SaePluginsError, match="has a fault: RuntimeError: CUDA error: unspecified"):
        evaluate("runs/a", "runs/bb", "runs/ccc", suites=[suite])
    rows = {row.sae: row.status for row in Manifest.read(tmp_path / "OUT").rows}
    first = "planned" if where == "prepare" else "ok"
    assert rows == {"a": first, "bb": "planned", "ccc": "planned"}


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(evaluate, monkeypatch, tmp_path):
    own = module.write

    def full(path, text, **how):
        if path.parent.name.startswith("bb"):
            raise OSError(errno.ENOSPC, "No space left on device")
        own(path, text, **how)

    monkeypatch.setattr(module, "write", full)
    with pytest.raises(SaePluginsError, match="No space left on device; the 1 finished rows"):
        evaluate()
    assert len(table(tmp_path / "OUT", "results.csv")) == 2
    monkeypatch.setattr(module, "write", own)
    suite = Dummy()
    evaluate(suites=[suite])
    assert suite.calls == ["prepare", "bb"]


def test_two_evaluations_do_not_share_a_folder(evaluate, tmp_path):
    (tmp_path / "OUT").mkdir()
    code = (
        "import sys; from pathlib import Path; from sae_plugins.base.files import lock\n"
        "unlock = lock(Path(sys.argv[1]), None); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "OUT")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SaePluginsError, match="another evaluation is writing into it"):
            evaluate()
        other.stdin.close()
    assert statuses(evaluate())["a", 42] == "ok"


def test_files_name_no_folder_and_a_failed_row_goes_when_it_is_mended(evaluate, loaders, tmp_path):
    suite = Dummy()
    whole = str(tmp_path / "runs" / "a")
    suite.breaks = {"a": OSError(f"{tmp_path}/texts/x.jsonl: no such file")}
    done = evaluate(whole, suites=[suite])
    (row,) = done.rows
    assert row.status == "failed"
    folder = done.output.path
    for file in folder.rglob("*.*"):
        assert file.suffix == ".png" or str(tmp_path) not in file.read_text(), file
    (kept,) = Manifest.read(folder).rows
    assert (kept.source, kept.reason) == ("a", "OSError: x.jsonl: no such file")
    suite.breaks = {}
    evaluate(whole, suites=[suite])
    assert [row.status for row in Manifest.read(folder).rows] == ["ok"]


def test_a_damaged_manifest_is_named_and_results_survive_its_removal(evaluate, tmp_path):
    evaluate()
    (tmp_path / "OUT" / "manifest.json").write_text("{")
    with pytest.raises(SaePluginsError, match=r"manifest\.json cannot be read"):
        evaluate()
    (tmp_path / "OUT" / "manifest.json").unlink()
    suite = Dummy()
    evaluate(suites=[suite])
    assert suite.calls == []


def test_a_forecast_changes_nothing_and_counts_shared_work_once(evaluate, loaders, tmp_path):
    dry = evaluate("runs/a", "runs/bb", "runs/small", seeds=(1, 2), dry=True)
    forecast = dry.forecast()
    assert forecast.done == 2  # not applicable
    assert [first for _, first, _ in forecast.costs] == [True, False] * 2
    assert not (tmp_path / "OUT").exists()
    evaluate("runs/a", seeds=(1,))
    assert evaluate("runs/a", "runs/bb", seeds=(1,), dry=True).forecast().done == 1
    assert len(loaders.models) == 1
    shutil.rmtree(tmp_path / "OUT")
    assert evaluate("runs/a", seeds=(1,), dry=True).forecast().done == 0


ENTRIES = [
    ("nowhere", "no_such_module:Suite", "cannot be imported from no_such_module:Suite"),
    ("dummy", "pathlib:Path", "it must be a subclass of sae_plugins.eval_suites.suite.Suite"),
    ("misspelt", None, "no suite 'misspelt' is installed"),
]


@pytest.mark.parametrize(("name", "target", "words"), ENTRIES)
def test_a_broken_suite_is_named(monkeypatch, name, target, words):
    monkeypatch.undo()  # of `_installed`
    entries = {name: [registry.Installed(name, target, "theirs", "2.1")]} if target else {}
    monkeypatch.setattr("sae_plugins.framework.registry.installed", lambda group: entries)
    with pytest.raises(PluginError, match=words):
        registry.load(name)
