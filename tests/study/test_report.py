"""The report of a study says what the findings say, and stands alone."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import sketches

from sae_plugins.study.facts import Facts
from sae_plugins.study.findings import Detail, Findings, Score, Trained
from sae_plugins.study.report import write
from sae_plugins.study.sections import frontiers
from sae_plugins.study.spec import Unmatched
from sae_plugins.study.statistics import Comparison
from sae_plugins.study.unmatched import COLUMNS
from sae_plugins.study.words import difference, mean_interval, number

METRICS = (
    ("core", "ce_loss_score", "loss recovered", "higher", 0.8, 0.06, 0.006),
    ("scr", "scr_metric_threshold_20", "SCR", "higher", 0.2, 0.02, 0.05),
)
ARMS = {"l1": "baseline", "hybrid-order": "method", "hierarchical": "method"}
NASTY = '<script>alert("x")</script>|*`_&</script>'


class Page(HTMLParser):
    """The parts of a page that the tests are about."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.loads = [], [], []
        self.text = self.style = ""
        self.within = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.loads += [attributes[name] for name in ("src", "srcset", "data") if name in attributes]
        self.loads += [attributes["href"]] if tag == "link" else []
        if tag == "table":
            self.tables.append((attributes.get("class"), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self.within = [*self.within, tag] if tag in ("script", "style", "table") else self.within

    def handle_endtag(self, tag):
        if tag in self.within:
            self.within.remove(tag)

    def handle_data(self, data):
        if "style" in self.within:
            self.style += data
        if "script" in self.within or "style" in self.within:
            return
        self.text += data
        if "table" in self.within and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += data

    def rows(self, name):
        return [row for kind, rows in self.tables if kind == name for row in rows]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def _sketched():
    """Files of figures say in words what these show, but where a test draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches.Figure, "savefig", sketches.write)
        yield


@pytest.fixture(scope="module")
def made(make_findings, tmp_path_factory):
    """A small study's findings, folder and page."""
    folder = tmp_path_factory.mktemp("study")
    found = make_findings(folder, arms=ARMS, grid=(8, 32), metrics=METRICS)
    tests = {"hybrid-order": Unmatched(against="l1", l0=(32, 8))}
    study = found.study.model_copy(update={"unmatched": tests})
    found = found.model_copy(update={"study": study})
    assert write(found, folder) == folder / "report.html"
    return found, folder, Page((folder / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def awkward(make_findings, tmp_path_factory):
    """One seed, arms without SAEs or scores, hostile names, no run folders; findings and page."""
    folder = tmp_path_factory.mktemp("awkward")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    found = make_findings(elsewhere, arms=ARMS, seeds=1, grid=(8,), metrics=METRICS)
    facts = found.model_dump()
    for metric in facts["metrics"]["world"]:
        metric.update(paper=NASTY + " $a$", meaning=NASTY)
    facts["arms"][1].update(description=NASTY, paper=NASTY)
    facts["study"]["description"] = NASTY
    facts.update(name=NASTY, warnings=[NASTY], failures=[NASTY], provenance={NASTY: [NASTY, None]})
    facts["trained"][1].update(status="failed", l0=None, reason=NASTY)
    facts["trained"][2].update(status="missing", l0=None)
    for score in facts["scores"]:
        if score["arm"] == "hybrid-order":
            score["value"] = None
    for detail in facts["details"]:
        detail["item"] += " $_$ " + NASTY
    found = Findings.model_validate(facts)
    with pytest.MonkeyPatch.context() as patch:  # hostile names must not keep it from drawing
        patch.setattr(sketches.Figure, "savefig", sketches.draw)
        write(found, folder)
    return found, folder, Page((folder / "report.html").read_text("utf-8"))


def test_verdict_table_has_the_verdicts_of_the_findings(made):
    found, _, page = made
    cells = {row[0].strip(): row[1:] for row in page.rows("verdicts")}
    assert found.contrasts
    for contrast in found.contrasts:
        name = next(name for name in cells if name.startswith(contrast.arm))
        place = [metric[1] for metric in METRICS].index(contrast.metric)
        assert cells[name][place].split()[0] == contrast.comparison.verdict.split()[0]
        for text in difference(contrast.comparison).split(" ", 1):
            assert text in cells[name][place]
    assert {c.comparison.verdict for c in found.contrasts} == {"worse", "not distinguishable"}


def test_the_papers_own_test_says_what_it_is(made):
    _, folder, page = made
    for text in (page.text, (folder / "report.md").read_text("utf-8")):
        assert "The paper's own test, at unequal L0" in text
        assert "and not that the method is better" in text
    rows = [row for row in page.rows("plain") if row[0] == "loss recovered (core)"]
    assert rows[0][COLUMNS.index("at p < 0.05")] == "better"
    assert rows[0][-1].strip() in ("not distinguishable", "underpowered")


def test_answer_counts_better_and_worse_at_equal_l0(made):
    found, _, page = made
    text = " ".join(page.text.split())
    said = "At equal L0, against l1 , over 5 seeds and 2 metrics, at L0s of "
    assert said in text.replace("l1,", "l1 ,")
    worse = {c.metric: c.comparison for c in found.contrasts if c.arm == "hierarchical"}
    loss, scr = (number(worse[metric].difference, "+") for _, metric, *_ in METRICS)
    assert f"hierarchical is worse on all 2 (loss recovered {loss}, SCR † {scr})." in text
    assert "Not distinguishable from l1 on any metric: hybrid-order." in text
    assert re.search(
        r"The true difference that is found with 80% power, after Holm's correction and as the "
        r"median over arms, is [0-9.]+ in loss recovered, [0-9.]+ in SCR\.", text
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact(make_findings, tmp_path_factory):
    """A study of exact L0s, of which one arm misses some, with tuned learning rates."""
    folder, runs = tmp_path_factory.mktemp("exact"), tmp_path_factory.mktemp("runs")
    found = make_findings(runs, arms=ARMS, grid=(8, 32), metrics=METRICS, seeds=2)
    facts = found.model_copy(update={"details": []}).model_dump()
    for one in facts["trained"]:
        wanted = float(one["sparsity"].partition("=")[2])
        one["l0"], one["tokens"] = wanted * 1.002, 65_536
        one["calibration"] = {
            "l0": wanted, "reached": wanted, "most": 99, "spread": 0.003, "tokens": 65536,
            "threshold": 0.2, "lowers": False,
        }  # fmt: skip
        where = {name: one[name] for name in ("model", "arm", "sparsity", "seed")}
        for metric, value in (("l0", wanted * 1.3), ("explained_variance", 0.625)):
            facts["scores"].append(
                {**where, "suite": "uncalibrated", "metric": metric, "value": value}
            )
    tried = [{"lr": lr, "scores": [0.5 + lr, 0.6 + lr]} for lr in (0.001, 0.002, 0.004)]
    facts["tuned"] = [
        {"model": "world", "arm": arm, "l0": 32, "tried": tried} for arm in ("l1", "hierarchical")
    ]
    facts["learning_rates"] = {"world": {"l1": 0.004, "hierarchical": 0.004, "hybrid-order": 0.1}}
    found = Findings.model_validate(facts)
    write(found, folder)
    return found, folder, Page((folder / "report.html").read_text("utf-8"))


def test_the_first_paragraphs_say_how_l0_and_learning_rates_are_made_fair(exact, made):
    for text in (exact[2].text, (exact[1] / "report.md").read_text("utf-8")):
        said = " ".join(text.split())
        assert (
            "each at the best learning rate of those that its pilots tried (but hybrid-order at "
            "0.1, untuned)"
        ) in said
        assert "Each SAE has exactly the wanted L0 on the 65,536 tokens that" in said
        assert "it is within 0.20% of that (the standard error is up to 0.15%), and SAEs of" in said
        assert "within 0.00% of each other. Arms are compared at the wanted L0s, and no" in said
    assert "L0 is interpolated: scores at equal L0 are read between" in made[2].text


def test_the_curve_of_learning_rates_is_a_figure_and_a_table(exact):
    _, folder, page = exact
    rows = [[cell.strip() for cell in row] for row in page.rows("plain")]
    assert ["l1", "32.0", "0.004, the largest tried", "0.551", "0.552", "0.554"] in rows
    assert "Learning rates" in page.text
    assert (folder / "figures/learning_rates_world.png").is_file()
    markdown = (folder / "report.md").read_text("utf-8")
    assert "figures/learning_rates_world.png" in markdown
    assert "0.004, the largest tried" in markdown


def test_scores_without_the_calibration_stand_beside(exact):
    _, folder, page = exact
    rows = [row for row in page.rows("plain") if row[:3] == ["l1", "8.00", "k=8"]]
    assert [[cell.strip() for cell in row[4::2]] for row in rows] == [["10.4", "0.625"]]
    assert "L0, its own thresholds" in (folder / "report.md").read_text("utf-8")


def test_measured_l0s_stand_with_their_standard_errors(exact):
    *_, page = exact
    rows = [[cell.strip() for cell in row] for row in page.rows("plain")]
    assert ["l1", "k=32", "32.1 ± 0.0491", "32.1 ± 0.0491"] in rows


def test_arms_are_compared_at_the_l0_that_is_wanted(exact):
    found, folder, _ = exact
    section = frontiers(Facts(found, folder), "world")
    xs = json.loads(section.pictures[0].data)["data"]
    assert {x for trace in xs if trace["mode"] == "markers" for x in trace["x"]} == {8, 32}


@pytest.fixture(scope="module")
def judged(make_findings, tmp_path_factory):
    """A study with margins and primary comparisons; its findings, folder and page."""
    folder = tmp_path_factory.mktemp("judged")
    runs = tmp_path_factory.mktemp("runs")  # elsewhere: fewer figures to draw
    found = make_findings(
        runs, arms={**ARMS, "untrained": "control"}, grid=(8, 32), metrics=METRICS,
        margins={"ce_loss_score": 0.2, "scr_metric_threshold_20": 0.001},
        primary={"hierarchical": []},
    ).model_copy(update={"details": []})  # fmt: skip
    write(found, folder)
    return found, folder, Page((folder / "report.html").read_text("utf-8"))


def test_the_report_opens_with_what_can_be_concluded_and_with_which_power(judged):
    found, folder, page = judged
    verdicts = {(c.arm, c.metric): c.comparison.verdict for c in found.contrasts}
    assert verdicts["hybrid-order", "ce_loss_score"] == "equivalent"
    assert verdicts["hybrid-order", "scr_metric_threshold_20"] == "underpowered"
    for text in (page.text, (folder / "report.md").read_text("utf-8").replace("**", "")):
        opening = " ".join(text.split()).partition("How to read this")[0]
        primary, exploratory = opening.partition("exploratory comparisons.")[::2]
        assert "primary comparisons." in primary
        assert "hierarchical is worse on all 2" in primary
        assert "hybrid-order" not in primary
        said = r"hybrid-order is equivalent on 1 of 2 \(loss recovered [+-][0-9.]+\); "
        said += r"underpowered on 1 of 2 \(SCR † [+-][0-9.]+\)\."
        assert re.search(said, exploratory)
        assert "(margin 0.2)" in exploratory


def test_better_and_worse_look_different_and_exploratory_verdicts_say_so(judged):
    _, folder, page = judged
    assert "td.worse b::before" in page.style
    text = (folder / "report.md").read_text("utf-8").partition("## Verdicts")[2]
    text = text.partition("### Metrics")[0]
    (row,) = (line for line in text.splitlines() if line.startswith("| hierarchical |"))
    assert row.count("**▼ worse**") == 2
    assert "exploratory" not in row
    (row,) = (line for line in text.splitlines() if line.startswith("| hybrid-order |"))
    assert row.count("; exploratory") == 2
    assert "≈ equivalent" in row
    assert "within ±0.2;" in row
    assert "margin 0.001;" in row
    families = {line["arm"]: line["family"] for line in read(folder / "verdicts.csv")}
    assert families["hierarchical"] == "primary"
    assert families["hybrid-order"] == "exploratory"


def test_verdicts_are_a_latex_table(judged):
    found, folder, _ = judged
    lines = (folder / "verdicts.tex").read_text("utf-8").splitlines()
    cells = {line.split(" & ")[0]: line.removesuffix(r" \\").split(" & ")[1:] for line in lines}
    places = [metric[1] for metric in METRICS]
    around = {"worse": r"\underline{%s}", "equivalent": r"\textit{%s}", "underpowered": "(%s)"}
    for contrast in found.contrasts:
        shown = around[contrast.comparison.verdict] % difference(contrast.comparison)
        assert cells[contrast.arm][places.index(contrast.metric)] == shown
    assert [line for line in lines if line.startswith(r"\begin")] == [
        r"\begin{table}", r"\begin{tabular}{lll}",
    ]  # fmt: skip


def test_intervals_are_of_pseudo_values_and_dots_of_the_values(make_findings, tmp_path):
    metrics = (("seeds", "stability", "stability", "higher", 0.5, 0.0, 0.01),)
    found = make_findings(tmp_path, arms={"l1": "baseline"}, grid=(8,), metrics=metrics)
    values = [s for s in found.scores if s.metric == "stability"]
    mean = sum(s.value for s in values) / len(values)
    for score in values:
        score.pseudo_value = mean + 10 * (score.value - mean)
    page = write(found, tmp_path).read_text("utf-8")
    assert mean_interval([s.pseudo_value for s in values]) in page
    (panel,) = frontiers(Facts(found, tmp_path), "world").pictures
    (dots,) = (t for t in json.loads(panel.data)["data"] if len(t["x"]) == len(values))
    assert sorted(dots["y"]) == pytest.approx(sorted(s.value for s in values), rel=1e-4)
    assert {row["pseudo_value"] for row in read(tmp_path / "scores.csv")} > {""}


def test_bands_of_shares_end_where_shares_end(make_findings, tmp_path):
    metrics = (("heldout", "never_fired", "never fired", "lower", 0.01, 0.0, 0.03),)
    found = make_findings(tmp_path, arms={"l1": "baseline"}, grid=(8, 32), metrics=metrics)
    (tmp_path / "figures").mkdir()
    (panel,) = frontiers(Facts(found, tmp_path), "world").pictures
    bands = [trace for trace in json.loads(panel.data)["data"] if trace.get("fill") == "toself"]
    assert bands
    assert all(0 <= y <= 1 for band in bands for y in band["y"])
    assert any(y == 0 for band in bands for y in band["y"]), "the interval goes below"


def test_unreliable_metric_is_marked_and_says_why(made):
    _, folder, page = made
    heads = page.rows("verdicts")[0]
    assert ["†" in head for head in heads] == [False, False, True]
    for text in (page.text, (folder / "report.md").read_text("utf-8")):
        assert "arXiv 2605.18229" in text


@pytest.mark.parametrize("study", ["made", "awkward"])
def test_page_loads_nothing_and_markdown_loads_what_there_is(study, request):
    _, folder, page = request.getfixturevalue(study)
    assert [load for load in page.loads if not load.startswith("data:")] == []
    assert page.style
    assert not re.search(r"@import|url\(", page.style)
    images = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "report.md").read_text("utf-8"))
    assert images
    assert sorted(images) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())


def test_every_kind_of_figure_is_there(made):
    _, folder, _ = made
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        "verdicts_world", "frontiers_world", "curves_world", "order_world", "redundancy_world",
        "items_world_absorption", "items_world_scr", "items_world_sparse-probing",
    }  # fmt: skip


@pytest.mark.ci
def test_figures_of_every_kind_are_drawn_and_come_in_other_formats_on_demand(drawn, made, tmp_path):
    found, folder, _ = made
    shutil.copytree(folder / "saes", tmp_path / "saes")
    write(found, tmp_path, ("pdf", "svg"))
    figures = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    stems = {path.stem for path in (folder / "figures").iterdir()}
    assert set(figures) == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf", "svg")}
    for stem in stems:
        assert figures[f"{stem}.png"].startswith(b"\x89PNG")
        assert figures[f"{stem}.pdf"].startswith(b"%PDF")
        assert b"<svg" in figures[f"{stem}.svg"]


def test_csv_files_say_what_the_findings_say(made):
    found, folder, _ = made
    rows = read(folder / "verdicts.csv")
    assert [float(row["p_holm"]) for row in rows] == [c.comparison.p_holm for c in found.contrasts]
    assert [(float(row["low"]), float(row["high"])) for row in rows] == [
        c.comparison.interval for c in found.contrasts
    ]
    for name, kind, said in (
        ("scores.csv", Score, found.scores),
        ("details.csv", Detail, found.details),
    ):
        read_back = [{k: v or None for k, v in row.items()} for row in read(folder / name)]
        for row in read_back:
            row["sparsity"] = row["sparsity"] or ""
        assert [kind.model_validate(row) for row in read_back] == said


def test_hostile_names_stay_text(awkward):
    _, folder, page = awkward
    assert r"\$a\$" in (folder / "verdicts.tex").read_text("utf-8")
    assert "alert" in page.text
    assert not any("alert" in name for tag in page.tags for name in tag[1])
    html = (folder / "report.html").read_text("utf-8")
    assert '<script>alert("x")' not in html
    markdown = (folder / "report.md").read_text("utf-8")
    assert "<script>" not in markdown.split("~~~~yaml")[0]
    (table,) = (line for line in markdown.splitlines() if line.startswith("| arm | kind | ["))
    heads = re.split(r"(?<!\\)\|", table.strip("| "))
    assert len(heads) == 2 + len(METRICS)


def test_what_failed_or_is_missing_is_said(awkward):
    found, _, page = awkward
    text = " ".join(page.text.split())
    assert "over 1 seed and 2 metrics, there is no verdict." in text
    assert "better or worse" not in text.split("Verdicts")[0]
    assert "1 failed" in text
    assert "no verdict" in text
    assert all(c.comparison.reason and c.comparison.reason in text for c in found.contrasts)
    assert "No training curve to show of l1" in text
    assert "No decoder to show of l1" in text
    cells = [row[-1].strip() for row in page.rows("plain")]
    assert "failed" in cells
    assert "missing" in cells


def test_a_study_that_has_not_run_has_a_report(made, tmp_path):
    found, _, _ = made
    facts = found.model_dump()
    facts.update(scores=[], details=[], contrasts=[], metrics={"world": []})
    facts["trained"] = [
        {**one, "status": "missing", "l0": None, "reason": None} for one in facts["trained"]
    ]
    write(Findings.model_validate(facts), tmp_path)
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "No metric of world is compared yet" in " ".join(text.split())


def test_page_of_many_arms_draws_the_telling_ones_first(make_findings, tmp_path, tmp_path_factory):
    arms = {**{f"row-{i}": "method" for i in range(12)}, "hierarchical": "method"}
    runs = tmp_path_factory.mktemp("runs")  # elsewhere: fewer figures to draw
    found = make_findings(runs, arms={"l1": "baseline", **arms}, grid=(8, 32), metrics=METRICS[:1])
    bare = found.model_copy(update={"details": []})
    write(bare, tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    boxes = [attributes for tag, attributes in page.tags if tag == "input"]
    drawn = [box["value"] for box in boxes if "checked" in box]
    assert len(boxes) == 14
    assert len(drawn) == 10
    assert {"l1", "hierarchical"} <= set(drawn)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (3.2e-6, "3.20e-06"),
        (None, "n/a"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_differences_have_signs_and_one_number_of_decimals():
    found = Comparison("better", 5, difference=0.0123, interval=(-0.001, 0.1234))
    assert difference(found) == "+0.012 [-0.001, +0.123]"
    assert difference(Comparison("no verdict", 0)) == ""


def test_means_have_half_of_their_t_interval():
    assert mean_interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert mean_interval([2.0]) == "2.00"
    assert mean_interval([]) == "n/a"


def test_status_of_an_sae_needs_no_l0(make_findings, tmp_path):
    found = make_findings(tmp_path, arms=ARMS, seeds=2, grid=(8,), metrics=METRICS[:1])
    trained = [Trained(**{**one.model_dump(), "l0": None}) for one in found.trained]
    write(found.model_copy(update={"trained": trained, "details": []}), tmp_path)
    assert "n/a" in (tmp_path / "report.md").read_text("utf-8")


def test_what_a_paper_prints_stands_beside_it_without_a_verdict(made, tmp_path):
    found, *_ = made
    losses = [
        Score(model=t.model, arm=t.arm, sparsity=t.sparsity, seed=t.seed, suite="training",
              metric="loss", value=6910.25 + t.seed)
        for t in found.trained
    ]  # fmt: skip
    scores = [*found.scores, *losses]
    write(found.model_copy(update={"scores": scores, "details": []}), tmp_path)
    said = (tmp_path / "report.md").read_text("utf-8")
    (head,) = (line for line in said.splitlines() if "the paper prints" in line)
    assert "training loss, last batch" in head
    assert "KL with the SAE" not in head, "nobody measured it"
    (row,) = (line for line in said.splitlines() if line.startswith("| hybrid-order | loss 6910"))
    assert "6,912.2" in row, "the mean over five seeds"
