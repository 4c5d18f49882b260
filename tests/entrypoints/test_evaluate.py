"""`sae-plugins evaluate`: what is typed, what is printed, and the exit code."""

import csv
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import Field

from sae_plugins.base.errors import Problems, SuiteError
from sae_plugins.entrypoints.evaluate import COMMAND
from sae_plugins.entrypoints.evaluate_flags import FLAGS
from sae_plugins.entrypoints.evaluate_suites import chosen_suites
from sae_plugins.entrypoints.help import help_text
from sae_plugins.entrypoints.main import main
from sae_plugins.eval_suites import registry
from sae_plugins.eval_suites.suite import (
    Cost,
    Metric,
    Scores,
    Sent,
    Suite,
    SuiteSettings,
    Value,
)
from sae_plugins.framework.registry import Installed
from sae_plugins.settings.command_line import parse


class Settings(SuiteSettings):
    size: int = Field(4, ge=1, description="of something")
    k_values: tuple[int, ...] = Field((1, 5), description="several")
    skip: int | None = Field(None, description="or none")
    fast: bool = Field(True, description="quick", json_schema_extra={"shortcut": True})
    masked: bool = True


class Dummy(Suite):
    """Scores anything."""

    name = "dummy"
    metrics = (Metric("score_{k}", "the score", "of nothing", "higher", headline=True),)
    Settings = Settings
    presets = {"quick": {"size": 2}}
    seen = []

    def cost(self, subject, settings):
        return Cost(1000, 100, 10**6)

    def evaluate(self, subject, bench, settings, seed, prepared):
        bench.stage("scoring")
        self.seen.append(settings)
        assert bench.cache.folder.is_absolute()  # suites run in another working folder
        assert Path(bench.data.folder).is_absolute()
        if subject.name == "bad":
            raise SuiteError("it is bad")
        return Scores({f"score_{k}": Value(value=0.5 + seed / 100) for k in settings.k_values})


class Fussy(Dummy):
    """Applies to nothing."""

    name = "fussy"

    def refusal(self, subject):
        return "nothing pleases it"


class Sending(Dummy):
    """Asks a language model elsewhere."""

    name = "sending"

    def lack(self, settings, data):
        if settings.skip is None:
            return "name an address"
        if settings.skip == 0:
            raise SuiteError("there is no key")
        return None

    def cost(self, subject, settings):
        sent = Sent("http://there", settings.skip, 1500, 30) if settings.skip else None
        return Cost(1000, 100, 10**6, sent)


def load_subject(source):
    if "damaged" in source:
        raise SuiteError(f"{source} is damaged")
    return SimpleNamespace(
        name=Path(source).name, source=source, hash=(source.encode().hex() * 9)[:32],
        architecture="topk", d_in=4, d_sae=8, hook_name="blocks.1.hook_resid_post",
        model_name="gpt2", warnings=(), dataset=None, training_tokens=None,
        l0=float(source[-2:]) if source[-2:].isdigit() else None,
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The exit code and what was printed by a command line, with dummies for suites."""
    suites = {"dummy": Dummy, "fussy": Fussy, "sending": Sending}
    entries = {name: [Installed(name, f"x:{name}", "sae-plugins", "1")] for name in suites}
    monkeypatch.setattr("sae_plugins.framework.registry.installed", lambda group: entries)
    monkeypatch.setattr(registry, "load", lambda name: suites[name]())

    def data_source(name, *_):
        return SimpleNamespace(name=name, folder=name, revisions={}, fingerprint=lambda *_: "v1")

    model = SimpleNamespace(name="gpt2", hash="m1", dtype="float32", hooked=None, loaded_as="dummy")
    expected = SimpleNamespace(
        loader=SimpleNamespace(kind="a dummy"), check=lambda *_: None, load=lambda _: model
    )
    for name, functions in {
        "evaluation.loading": {"load_subject": load_subject},
        "evaluation.sources": {"check_source": lambda _: None},
        "inputs.models": {
            "expected": lambda *_: expected,
        },
        "inputs.data_source": {"data_source": data_source},
        "saebench.facts": {"default_dtype": lambda _: "float32"},
        "saebench.isolation": {"undisturbed": nullcontext},
    }.items():
        fake = SimpleNamespace(**functions)
        monkeypatch.setitem(sys.modules, f"sae_plugins.eval_suites.{name}", fake)
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    monkeypatch.setattr(Dummy, "seen", [])

    def command(line):
        code = main(["evaluate", *line.split(), "--cache_path", "cache", "--data", "texts"])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return command


CASES = [
    ("", "name an SAE"),
    ("runs/a --suite dumy", "no suite 'dumy' is installed: did you mean 'dummy'?"),
    ("--suite dummy runs/a", "SAEs are named before the flags"),
    ("runs/a --preset canonicl", "did you mean 'canonical'?"),
    ("runs/a --presets quick", "there is no flag --presets: did you mean '--preset'"),
    ("runs/a --zzzzz", "`sae-plugins evaluate --help` lists all flags"),
    ("runs/a --seed x", "--seed 'x': it must be"),
    ("runs/a --seed -1", "--seed -1: it must be at least 0"),
    ("runs/a --seed 1 2 1", "--seed 1 is given twice"),
    ("runs/a --output_path", "--output_path needs a value"),
    ("runs/a --output_path file", "is a file; name a folder"),
    ("runs/a --dummy.sise 4", "there is no option --dummy.sise: did you mean '--dummy.size'"),
    ("runs/a --dummy.size big", "--dummy.size 'big': it must be a whole number"),
    ("runs/a --dummy.size 0", "--dummy.size 0: it must be at least 1"),
    ("runs/a --suite dummy --fussy.size 4", "the suite 'fussy' is not chosen: add --suite fussy"),
    ("runs/a --dumy.size 4", "--dumy.size: no suite 'dumy' is installed: did you mean 'dummy'"),
]


@pytest.mark.parametrize(("line", "words"), CASES)
def test_what_is_wrong_is_said_with_the_cure(run, line, words):
    Path("file").touch()
    done = run(line)
    assert done.code == 2
    assert words in done.err
    assert done.err.startswith("sae-plugins evaluate: error:")
    assert not Path("evaluations").exists()


def test_an_evaluation_prints_its_plan_tables_and_files(run):
    done = run("runs/a runs/b --suite dummy --seed 42 43 --dummy.k_values 2 10")
    assert done.code == 0
    assert "gpt2, blocks.1.hook_resid_post" in done.out
    assert "4, one per suite, SAE and seed" in done.out
    assert "mean ± sd of 2 seeds" in done.out
    assert "score 2 ↑" in done.out
    assert "0.9250 ± 0.0071" in done.out
    assert "results.csv" in done.out
    said = [line.partition(" (")[0] for line in done.err.splitlines()]
    assert said[:2] == ["0/4 loading gpt2", "0/4 dummy, seed 42: preparing"]
    assert "1/4 dummy, a, seed 42: ok" in said
    assert Path("evaluations/manifest.json").exists()
    again = run("runs/a runs/b --suite dummy --seed 42,43 --dummy.k_values 2 10")
    assert "ok, was there" in again.err
    assert "0.9250 ± 0.0071" in again.out


def test_what_is_sent_is_said_before_it_is(run):
    said = "sends to http://there up to 14 requests, about 3,000 tokens in and up to 60 out"
    line = "runs/a runs/b --suite sending dummy --sending.skip 7"
    looked = run(f"{line} --dry_run")
    assert looked.code == 0
    assert f"{said}\n" in looked.out
    assert Dummy.seen == []
    done = run(line)
    assert done.err.startswith(f"0/4 {said}")
    assert len(Dummy.seen) == 4
    assert "sends to" not in run(line).err  # all is there
    assert "sends to" not in run(f"{line} --dry_run").out
    assert "up to 7 requests" in run(line.replace("runs/b", "runs/c")).err


def test_a_suite_that_lacks_something_does_not_apply_or_fails(run):
    without = run("runs/a --suite sending")
    assert without.code == 0
    assert "not applicable: sending of a: name an address" in without.out
    assert "sends to" not in without.err
    failed = run("runs/a --suite sending --sending.skip 0")
    assert failed.code == 1
    assert "FAILED: sending of a, seed 42: there is no key" in failed.out
    assert Dummy.seen == []


def test_l0_stands_beside_scores_in_the_order_given(run):
    done = run("runs/z12 runs/a31 --suite dummy --output_path OUT")
    assert done.out.index("z12, L0 12") < done.out.index("a31, L0 31")
    assert "note: L0 differs by more than 15%" in done.out
    assert ": z12 12, a31 31; sae-plugins study compares" in done.out
    rows = csv.DictReader(Path("OUT/results.csv").read_text().splitlines())
    assert {(row["sae"], row["l0"]) for row in rows} == {("z12", "12.0"), ("a31", "31.0")}
    assert "note:" not in run("runs/z12 runs/b13 --suite dummy --output_path OUT2").out
    unknown = run("runs/z12 runs/b --suite dummy --output_path OUT3").out
    assert "note: the L0 of b is not known; add --suite core" in unknown


def test_failures_and_what_does_not_apply_come_last_with_reasons(run):
    done = run("runs/a runs/bad runs/damaged --suite dummy --suite fussy --output_path out")
    assert done.code == 1
    last = done.out.splitlines()[-5:]
    assert "not applicable: fussy of a, bad: nothing pleases it" in last
    assert "FAILED: dummy of bad, seed 42: it is bad" in last
    assert "FAILED: dummy, fussy of runs/damaged, seed 42: runs/damaged is damaged" in last
    assert run("runs/a --suite fussy").code == 0


def test_settings_are_read_by_their_types(run):
    run("runs/a --suite dummy --dummy.k_values 7 --dummy.skip none --dummy.masked false")
    run("runs/a --suite dummy --dummy.k_values 1,2 --dummy.skip 3 --preset quick --dummy.fast")
    first, second = Dummy.seen
    assert (first.k_values, first.skip, first.masked, first.size) == ((7,), None, False, 4)
    assert (second.k_values, second.skip, second.fast, second.size) == ((1, 2), 3, True, 2)


def test_exact_switches_off_shortcuts_and_nothing_else(run):
    run("runs/a --suite dummy --exact")
    run("runs/a --suite dummy --exact --dummy.fast true --output_path other")
    assert [(s.fast, s.masked) for s in Dummy.seen] == [(False, True), (True, True)]


def test_a_dry_run_says_what_is_left_and_changes_nothing(run):
    run("runs/a --suite dummy")
    before = sorted(Path().rglob("*"))
    done = run("runs/a runs/b --dry_run --seed 42 43")
    assert done.code == 0
    assert "done           dummy, a, seed 42" in done.out
    assert "to do          dummy, b, seed 42" in done.out
    assert "to do: 3 rows of 12" in done.out
    assert "language-model tokens: 2,000" in done.out  # shared by both SAEs of a seed
    assert "2.0 MB" in done.out
    assert "tokens through SAEs: 300\n" in done.out
    assert sorted(Path().rglob("*")) == before


def test_list_explains_metrics_and_settings(run):
    done = run("--list --suite dummy")
    assert done.code == 0
    for words in ("score_{k}", "the score", "↑", "of nothing", "--dummy.size int", "default 4"):
        assert words in done.out
    assert "--preset quick: size 2" in done.out


def test_one_error_of_the_folder_ends_it_all(run):
    run("runs/a --suite dummy")
    Path("evaluations/manifest.json").write_text("{")
    done = run("runs/a --suite dummy")
    assert done.code == 2
    assert "manifest.json cannot be read" in done.err


@pytest.mark.parametrize("line", ["--help", "runs/a --suite cor", "runs/a --lis"])
def test_help_and_misspelt_names_are_cheap(line):
    """They import nothing but what is ours and Python's own."""
    code = (
        "import json, sys\n"
        "before = {*sys.modules}\n"
        "from sae_plugins.entrypoints.main import main\n"
        "code = main(['evaluate', *sys.argv[1:]])\n"
        "print(json.dumps([code, sorted({*sys.modules} - before)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True
    )
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == (0 if line == "--help" else 2)
    assert {name.partition(".")[0] for name in modules} <= {"sae_plugins", *sys.stdlib_module_names}
    if line == "--help":
        for words in ("examples:", "absorption", "sparse-probing", "--seed N...", "minutes"):
            assert words in done.stdout
        assert max(map(len, done.stdout.splitlines()[:-1])) <= 120


def test_the_examples_of_the_help_are_valid():
    lines = [
        line.strip().split("   ")[0].split()
        for line in help_text(COMMAND, 100).splitlines()
        if line.startswith("  sae-plugins evaluate ")
    ]
    assert len(lines) >= 5
    for line in lines:
        problems = Problems()
        chosen_suites(parse(line[2:], FLAGS, problems, operands=True), problems)
        problems.stop()
