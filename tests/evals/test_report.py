"""The report: right numbers, the same bytes, and a page that is whole and harmless."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.report import folder, write_report
from sparsefill.evals.report.colours import PAPER, SAFE, ink, shade
from sparsefill.evals.report.figure import SVG
from sparsefill.evals.report.groups import groups_of
from sparsefill.evals.report.markup import VOID, element
from sparsefill.evals.report.pictures import needle_tasks, perplexity
from sparsefill.evals.report.summary import Summary, summarise
from sparsefill.evals.results import load_results
from sparsefill.evals.rows import Row
from sparsefill.evals.tasks.ruler import RULER, SYNTHETIC
from tests.support.runs import (
    BAD,
    ENVIRONMENT,
    LENGTHS,
    MANIFEST_OF_ALL,
    METHODS,
    all_rows,
    row,
    times_of,
    write_run,
)
from tests.support.tiny import assert_refused, run_cli

ROWS = all_rows()
FEW = [row for row in ROWS if "niah" not in row.task and "qa" not in row.task]


class Balanced(HTMLParser):
    """Walks a page, and holds what it is made of."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def walk(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of all made-up rows once."""
    folder = tmp_path_factory.mktemp("report")
    write_report(load_results([write_run(folder / "run", ROWS)]), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "report.html").read_text("utf-8")


def report(folder: Path, rows: list[Row], *, times: bool = False) -> dict[str, bytes]:
    """Write a run and its report; return all its files."""
    run = write_run(folder / "run", rows)
    write_report(load_results([run]), folder / "out", times=times)
    return {
        str(path.relative_to(folder / "out")): path.read_bytes()
        for path in sorted((folder / "out").rglob("*"))
        if path.is_file()
    }


def summary_of(folder: Path, rows: list[Row], against: str | None = None) -> Summary:
    return summarise(load_results([write_run(folder, rows)]), against=against)


def test_every_element_is_closed_and_every_id_is_one(page: str):
    found = walk(page)
    assert len(found.ids) == len(set(found.ids))
    links = {attrs["href"] for tag, attrs in found.tags if tag == "a"}
    assert links == {f"#{name}" for name in SECTIONS}
    assert set(SECTIONS) <= set(found.ids)


SECTIONS = (
    "scores",
    "differences",
    "needles",
    "perplexity",
    "other-measures",
    "cost",
    "answers",
    "comparability",
    "environment",
)


def test_nothing_is_loaded_and_nothing_runs(page: str):
    assert "http" not in page.replace("http-equiv", "")
    found = walk(page)
    for tag, attrs in found.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "image", "use", "base")
        assert not {name for name in attrs if name.startswith("on")} | attrs.keys() & {"src"}
        assert "href" not in attrs or str(attrs["href"]).startswith("#")
    style = "".join(found.text["style"])
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_what_a_model_says_is_only_text(page: str):
    assert "<img" not in page
    assert "</script" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    shown = BAD.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\r", "\u240d")
    assert shown in walk(page).text["pre"]


def test_names_are_only_text_too(tmp_path: Path):
    name = "<b onclick=x>'\"&"
    manifest = replace(MANIFEST_OF_ALL, model=name, methods={name: {name: name}, "full": {}})
    manifest = replace(manifest, environments=({name: name},), haystack={name: name}, tasks=(name,))
    rows = [
        row(name, length, index, method, recipe={"depth_percent": index}, values={name: 1.0})
        for length in LENGTHS
        for index in range(2)
        for method in (name, "full")
    ]
    run = write_run(tmp_path / "run", rows, manifest=manifest)
    files = write_report(load_results([run]), tmp_path / "out")
    page = files[0].read_text("utf-8")
    walk(page)
    assert "<b " not in page
    assert {path.parent for path in files} == {tmp_path / "out", tmp_path / "out" / "figures"}
    for path in files[0].parent.glob("figures/*.svg"):
        ElementTree.parse(path)


@pytest.mark.parametrize("text", ["<", '"', "'", "&amp;", "\x7f", "\ud800"])
def test_an_element_escapes(text: str):
    found = walk(element("p", text, title=text))
    said = text if text.isprintable() else "\ufffd"
    assert found.text["p"] == [said]
    assert found.tags == [("p", {"title": said})]


def test_pictures_say_what_they_show(page: str, written: Path):
    found = walk(page)
    pictures = [attrs for tag, attrs in found.tags if tag == "svg"]
    assert len(pictures) > 20
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert set((attrs["aria-labelledby"] or "").split()) <= set(found.ids)
    files = sorted((written / "figures").glob("*.svg"))
    assert len(files) == len(pictures)
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert root.tag == f"{{{SVG}}}svg"
        assert root[0].text
        assert root[1].text
        assert "nan" not in file.read_text("utf-8").lower().replace("minference", "")


def test_tables_scroll_and_have_heads(page: str):
    found = walk(page)
    tables = sum(tag == "table" for tag, _ in found.tags)
    wide = [attrs for tag, attrs in found.tags if attrs.get("class") == "wide"]
    assert len(wide) == tables > 10
    assert all(attrs["role"] == "region" and attrs["aria-label"] for attrs in wide)
    assert all(attrs.get("scope") for tag, attrs in found.tags if tag == "th")


def test_shuffled_rows_make_the_same_bytes(tmp_path: Path):
    shuffled = random.Random(1).sample(FEW, len(FEW))
    first = report(tmp_path / "one", FEW, times=True)
    assert first == report(tmp_path / "two", shuffled, times=True)
    assert {"report.html", "summary.csv", "summary.json"} < first.keys()


def test_a_resumed_run_makes_the_same_bytes_without_times(tmp_path: Path):
    """Killed inside a row, resumed, and its times are others."""
    one, two = write_run(tmp_path / "a" / "run", FEW), tmp_path / "b" / "run"
    write_run(two, FEW[:70], times=[times_of(row, slower=3) for row in FEW])
    with (two / "samples.jsonl").open("ab") as file:
        file.write(FEW[70].line().encode()[:50])
    torn = load_results([two])
    assert len(torn.rows) == 70
    (two / "samples.jsonl").write_bytes((one / "samples.jsonl").read_bytes())
    outs = []
    for name, run in (("a", one), ("b", two)):
        for times in (False, True):
            out = tmp_path / name / f"out-{times}"
            files = write_report(load_results([run]), out, times=times)
            outs.append({path.relative_to(out): path.read_bytes() for path in files})
    assert outs[0] == outs[2]
    different = {str(path) for path in outs[1] if outs[1][path] != outs[3][path]}
    assert {path.split("-")[0] for path in different if path.startswith("figures/ttft")} == {
        "figures/ttft"
    }
    assert different - {p for p in different if p.startswith("figures/ttft")} == {
        "report.html",
        "summary.csv",
        "summary.json",
    }


def test_without_times_none_are_told(tmp_path: Path):
    files = report(tmp_path, FEW, times=False)
    assert not any(b"TTFT" in text or b"ttft" in text for text in files.values())


def test_one_run_in_two_folders_reports_as_one(tmp_path: Path):
    whole = write_run(tmp_path / "whole", FEW)
    parts = [write_run(tmp_path / f"part{n}", FEW[n::2]) for n in range(2)]
    outs = [
        [path.read_text("utf-8") for path in write_report(load_results(folders), tmp_path / name)]
        for name, folders in (("a", [whole]), ("b", parts))
    ]
    assert json.loads(outs[0][2])["means"] == json.loads(outs[1][2])["means"]
    assert "part0" in outs[1][0]


def test_summary(written: Path):
    text = (written / "summary.csv").read_text("utf-8")
    found = list(csv.DictReader(text.splitlines()))
    assert len(found) == len(METHODS) * (13 * 2 + 3 + 2)
    first = next(r for r in found if r["task"] == "ruler/cwe" and r["method"] == "a-shape")
    own = [r for r in ROWS if (r.task, r.length, r.method) == ("ruler/cwe", 4096, "a-shape")]
    full = [r for r in ROWS if (r.task, r.length, r.method) == ("ruler/cwe", 4096, "full")]
    mean = sum(r.score or 0 for r in own) / 3
    assert first["n"] == first["pairs"] == "3"
    assert float(first["score"]) == pytest.approx(mean)
    assert float(first["low"]) <= mean <= float(first["high"])
    change = mean - sum(r.score or 0 for r in full) / 3
    assert float(first["difference"]) == pytest.approx(change)
    assert float(first["density"]) == pytest.approx(0.26)
    assert float(first["ttft"]) == pytest.approx(0.25 * 4.096 * 1.01)
    prose = next(r for r in found if r["task"] == "perplexity" and r["method"] == "full")
    assert prose["score"] == prose["difference"] == ""
    assert prose["recall"] == "1.0"


def test_values_and_means_are_tables_too(written: Path):
    def read(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((written / name).read_text("utf-8").splitlines()))

    def prose(method: str) -> list[Row]:
        return [r for r in ROWS if (r.task, r.length, r.method) == ("perplexity", 4096, method)]

    values = {
        (line["task"], line["length"], line["method"], line["value"]): line
        for line in read("values.csv")
    }
    kl = values["perplexity", "4096", "minference", "kl"]
    mean = sum(r.values["kl"] for r in prose("minference")) / 3
    assert kl["n"] == "3"
    assert float(kl["mean"]) == pytest.approx(mean)
    assert float(kl["low"]) <= mean <= float(kl["high"])
    assert kl["pairs"] == ""  # full attention has none
    nll = values["perplexity", "4096", "minference", "nll"]
    assert float(nll["difference"]) == pytest.approx(0.01)
    assert nll["pairs"] == "3"
    whole = values["perplexity", "4096", "full", "perplexity_of_all_tokens"]
    told = sum(r.values["nll"] for r in prose("full")) / 3
    assert float(whole["mean"]) == pytest.approx(math.exp(told))
    assert not any("/" in name for *_, name in values)  # maps of heads are figures
    means = read("means.csv")
    assert len(means) == 2 * len(LENGTHS) * len(METHODS)  # thirteen tasks, and eleven
    summary = json.loads((written / "summary.json").read_text("utf-8"))
    for line in means:
        own = next(
            mean["lengths"][line["length"]]
            for mean in summary["means"]
            if (mean["mean"], mean["method"]) == (line["mean"], line["method"])
        )
        assert float(line["score"]) == own["score"]["mean"]
        assert line["n"] == str(own["score"]["n"])
        assert (line["difference"] == "") == (line["method"] == "full")


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path: Path):
    report(tmp_path / "both", FEW)
    out = tmp_path / "both" / "out"
    mine = out / "figures" / "mine.svg"
    mine.write_text("<svg/>", "utf-8")
    few = [row("ruler/vt", 4096, index, "full") for index in range(2)]
    write_report(load_results([write_run(tmp_path / "few", few)]), out)
    assert [path.name for path in (out / "figures").iterdir()] == ["mine.svg"]
    (out / "figures.json").write_text('{"figures": ["figures/../../x.svg"]}', "utf-8")
    with pytest.raises(InputError, match=r"'figures/../../x.svg' is no figure of a report"):
        write_report(load_results([tmp_path / "few"]), out)


def test_a_report_that_was_stopped_leaves_no_figure_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, out = load_results([write_run(tmp_path / "run", FEW)]), tmp_path / "out"
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        if len(written) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        write_atomically(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_atomically", write)
        with pytest.raises(InputError, match=r"cannot write .*svg: No space left.*report again"):
            write_report(run, out)
    assert len(list(out.glob("figures/*.svg"))) > 3
    few = [row("ruler/vt", 4096, index, "full") for index in range(2)]
    write_report(load_results([write_run(tmp_path / "few", few)]), out)
    assert list(out.glob("figures/*.svg")) == []


def test_all_environments_are_told(tmp_path: Path):
    there = {"cpu": "another <one>", "versions": {"torch": "2.14"}}
    manifest = replace(MANIFEST_OF_ALL, environments=(ENVIRONMENT, there))
    run = write_run(tmp_path / "run", FEW, manifest=manifest)
    page = write_report(load_results([run]), tmp_path / "out")[0].read_text("utf-8")
    found = walk(page)
    assert {"run (1 of 2)", "run (2 of 2)"} <= set(found.text["th"])
    assert {"2.13", "2.14", "made-up", "another <one>"} <= set(found.text["td"])
    assert "more than one environment: run in 2." in page
    assert "more than one environment" not in report(tmp_path / "b", FEW)["report.html"].decode()


def test_a_speed_up_is_of_one_environment(tmp_path: Path):
    rows = [row("ruler/vt", 4096, 0, method) for method in ("full", "minference")]
    times = [replace(times_of(own), environment=place) for place, own in enumerate(rows)]
    manifest = replace(MANIFEST_OF_ALL, environments=(ENVIRONMENT, {"cpu": "another"}))
    run = write_run(tmp_path / "run", rows, manifest=manifest, times=times)
    speed = summarise(load_results([run])).cells["ruler/vt", 4096, "minference"].speed
    assert speed is not None
    assert speed.ratio is None


@pytest.mark.parametrize(
    "values",
    [
        {"recall/\N{SUPERSCRIPT TWO}/1": 0.5},
        {"recall/99999999999/1": 0.5},
        {"recall/0/" + "1" * 5000: 0.5},
        {"nll": 690.0, "nll_tokens": 1.0, "kl": 1e300, "recall/9999/9999": -1e300},
    ],
    ids=["superscript", "far", "long", "largest"],
)
def test_values_at_the_edge_make_a_report(tmp_path: Path, values: dict[str, float]):
    rows = [
        row("perplexity", length, index, method, values=values if index else {}, score=None)
        for length in LENGTHS
        for index in range(3)
        for method in ("full", "minference")
    ]
    times = [replace(times_of(own), ttft_s=1e-9 if own.index else 1e9) for own in rows]
    run = write_run(tmp_path / "run", rows, times=times)
    for path in write_report(load_results([run]), tmp_path / "out"):
        assert not re.search(r"\b(nan|inf|Infinity)\b", path.read_text("utf-8"))


def test_one_method_may_be_at_the_edge_and_another_not(tmp_path: Path):
    nll = {"full": 0.5, "minference": 690.0}
    rows = [
        row("perplexity", length, 0, method, values={"nll": nll[method]}, score=None)
        for length in LENGTHS
        for method in nll
    ]
    assert "report.html" in report(tmp_path, rows)


def test_pictures_have_the_axes_that_they_say(tmp_path: Path):
    nll = {"full": math.log(40), "a-shape": math.log(300), "minference": math.log(40.1)}
    rows = [
        row("perplexity", length, 0, method, values={"nll": nll[method]}, score=None)
        for length in LENGTHS
        for method in nll
    ]
    pictures = {
        name: re.findall(r">([\d.,\N{MINUS SIGN}]+)</text>", text.decode())
        for name, text in report(tmp_path, rows).items()
        if name.endswith(".svg")
    }
    whole, change = (
        pictures[f"figures/perplexity{which}-perplexity.svg"] for which in ("", "-change")
    )
    assert whole == ["50", "100", "200"]
    assert {"0.2", "0.5", "1", "10", "100"} <= {*change}


def test_each_of_two_profiles_has_the_speed_of_its_own_run(tmp_path: Path):
    rows = [row("ruler/vt", 4096, index, m) for index in range(3) for m in ("full", "minference")]
    folders = []
    for place, name in enumerate(("one", "two")):
        how = {"full": {}, "minference": {"profile": name}}
        times = [
            times_of(own, slower=1 if own.method == "full" else 0.5 / (1 + place)) for own in rows
        ]
        manifest = replace(MANIFEST_OF_ALL, methods=how)
        folders.append(write_run(tmp_path / name, rows, manifest=manifest, times=times))
    cells = summarise(load_results(folders)).cells
    speeds = {method: cell.speed for (_, _, method), cell in cells.items()}
    ratios = {method: speed and speed.ratio for method, speed in speeds.items()}
    assert ratios["minference (two)"] == pytest.approx(2 * (ratios["minference (one)"] or 0))


def test_nothing_said_is_counted_beside_the_score(tmp_path: Path):
    rows = [
        row("ruler/vt", 4096, 0, "full", answer=" \n\t\x00"),
        row("ruler/vt", 4096, 1, "full", answer="x"),
        row("ruler/vt", 8192, 0, "full", answer="", score=None),
        row("copying/word_lists", 4096, 0, "full", answer="", new_tokens=0),
    ]
    cells = summary_of(tmp_path / "read", rows).cells
    nulls = {where[:2]: cell.nulls for where, cell in cells.items()}
    assert nulls == {("ruler/vt", 4096): 1, ("ruler/vt", 8192): 0, ("copying/word_lists", 4096): 0}
    written = report(tmp_path, rows)["report.html"].decode()
    assert "n 2, null 1" in written


def test_full_attention_comes_first_and_is_compared_with(tmp_path: Path):
    summary = summary_of(tmp_path / "run", ROWS)
    assert summary.methods == ("full", "minference", "a-shape")
    assert summary.against == "full"
    assert all((cell.difference is None) == (cell.score is None or cell.method == "full")
               for cell in summary.cells.values())  # fmt: skip
    again = summarise(summary.results, against="a-shape")
    assert again.methods[0] == again.against == "a-shape"
    with pytest.raises(InputError, match="--against must be one of a-shape, full, minference"):
        summarise(summary.results, against="dense")


def test_pairs_are_samples_that_both_read(tmp_path: Path):
    rows = [row("ruler/vt", 4096, index, "full", score=0.5) for index in range(4)]
    rows += [row("ruler/vt", 4096, index, "a-shape", score=0.25) for index in (2, 3, 4)]
    summary = summary_of(tmp_path / "read", rows)
    change = summary.cells["ruler/vt", 4096, "a-shape"].difference
    assert change == (-0.25, -0.25, -0.25, 2)
    page = report(tmp_path, rows)["report.html"].decode()
    assert "Methods have not read the same samples: ruler/vt at 4K" in page


def test_a_speed_up_is_of_one_run(tmp_path: Path):
    """Times of two runs are those of two machines, for all that is known."""
    full = [row("ruler/vt", 4096, index, "full") for index in range(3)]
    ours = [row("ruler/vt", 4096, index, "minference") for index in range(3)]
    together = summary_of(tmp_path / "both", full + ours)
    speed = together.cells["ruler/vt", 4096, "minference"].speed
    assert speed is not None
    assert speed.ratio == pytest.approx(2)
    assert speed.ttft == pytest.approx(0.5 * 4.096 * 1.01)
    apart = [write_run(tmp_path / "one", full), write_run(tmp_path / "two", ours)]
    speed = summarise(load_results(apart)).cells["ruler/vt", 4096, "minference"].speed
    assert speed is not None
    assert speed.ratio is None


def test_a_mean_of_the_benchmark_needs_all_its_tasks(tmp_path: Path):
    def titles(tasks: Iterable[str]) -> list[str]:
        rows = [row(task, 4096, index, "full") for task in tasks for index in range(2)]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return [group.title for group in groups_of(summary_of(folder, rows))]

    thirteen, eleven = "RULER, mean of 13 tasks", "RULER, mean of 11 tasks (without QA)"
    assert titles(RULER) == [thirteen, eleven]
    assert titles((*RULER, "ruler/qa_synthetic")) == [thirteen, eleven]  # a stand-in is told apart
    assert titles(SYNTHETIC) == [eleven]
    assert titles((*SYNTHETIC, "ruler/qa_1"))[0] == eleven
    assert titles(SYNTHETIC[:3]) == ["ruler, mean of the 3 tasks run, not a mean of the benchmark"]
    assert titles(SYNTHETIC[:1]) == []


def test_each_task_counts_once_in_a_mean(tmp_path: Path):
    rows = [row("ruler/vt", 4096, index, "full", score=1.0) for index in range(9)]
    rows += [row("ruler/cwe", 4096, 0, "full", score=0.0)]
    data = json.loads(report(tmp_path, rows)["summary.json"])
    assert data["means"][0]["lengths"]["4096"]["score"]["mean"] == 0.5


def test_effective_length(tmp_path: Path):
    def score(length: int) -> float:
        return {4096: 0.9, 8192: 0.856, 16384: 0.855}[length]

    rows = [
        row(task, length, 0, "full", score=score(length))
        for task in RULER
        for length in (4096, 8192, 16384)
    ]
    means = json.loads(report(tmp_path, rows)["summary.json"])["means"]
    assert [mean["effective_length"] for mean in means] == [8192, 8192]


def test_perplexity_counts_each_token_once(tmp_path: Path):
    def prose(index: int, nll: float, tokens: float) -> Row:
        values = {"nll": nll, "nll_tokens": tokens}
        return row("perplexity", 4096, index, "full", score=None, values=values)

    summary = summary_of(tmp_path / "run", [prose(0, 2.0, 100), prose(1, 3.0, 300)])
    cell = summary.cells["perplexity", 4096, "full"]
    assert perplexity(cell) == pytest.approx(math.exp(2.75))
    assert cell.values["nll"].mean == 2.5


def test_needles_are_mapped_by_length_and_depth(tmp_path: Path, page: str):
    summary = summary_of(tmp_path / "run", ROWS)
    assert needle_tasks(summary) == ["needle/minference"]
    names = {name for name in walk(page).ids if name.startswith("needle-")}
    for kind in ("needle", "needle-paper", "needle-change"):
        assert f"{kind}-needle-minference-a-shape-title" in names
    assert "needle-change-needle-minference-full-title" not in names
    own = [
        r for r in ROWS if (r.task, r.length, r.method) == ("needle/minference", 8192, "a-shape")
    ]
    score = sum(100 * (r.score or 0) for r in own if r.recipe["depth_percent"] == 50) / 2
    assert f"8K, 50 %: {score:.0f}" in walk(page).text["title"]


def test_a_method_without_needles_has_no_map(tmp_path: Path):
    depth = {"recipe": {"depth_percent": 50}}
    rows = [row("needle/classic", 4096, index, "full", **depth) for index in range(2)]
    rows.append(row("ruler/vt", 4096, 0, "a-shape"))
    figures = [name for name in report(tmp_path, rows) if name.startswith("figures/")]
    assert figures == [
        "figures/needle-needle-classic-full.svg",
        "figures/needle-paper-needle-classic-full.svg",
    ]


def test_colours_are_the_papers_and_can_be_told_by_lightness():
    assert [shade(value, 0, 100, PAPER) for value in (0, 50, 100)] == [
        "#f0496e",
        "#ebb839",
        "#0cd79f",
    ]
    assert shade(7, 7, 7, SAFE) == "#21918c"
    assert shade(-1, 0, 1, SAFE) == SAFE[0]
    assert ink("#ffffff") == "#000000"

    def lightness(colour: str) -> float:
        parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    levels = [lightness(shade(step, 0, 20, SAFE)) for step in range(21)]
    assert levels == sorted(levels)


def test_the_samples_that_methods_differ_on_come_first(tmp_path: Path):
    rows = [
        row("ruler/vt", 4096, index, method, score=1.0) for index in range(4) for method in METHODS
    ]
    lost = rows.index(row("ruler/vt", 4096, 2, "a-shape", score=1.0))
    rows[lost] = replace(rows[lost], score=0.0, answer="lost it")
    run = load_results([write_run(tmp_path / "run", rows)])
    written = write_report(run, tmp_path / "out", answers=2)[0].read_text("utf-8")
    found = walk(written)
    assert "ruler/vt, 4K: 2 of 4 samples" in found.text["summary"]
    assert [text.split(",")[0] for text in found.text["h4"]] == ["Sample 2", "Sample 0"]
    assert "lost it" in found.text["pre"]


def test_one_sample_has_no_interval(tmp_path: Path):
    page = report(tmp_path, [row("ruler/vt", 4096, 0, method) for method in METHODS])["report.html"]
    assert b"[" not in re.sub(rb"<style>.*</style>", b"", page, flags=re.S).split(b"Answers")[0]


def test_what_decides_comparisons_is_told(page: str):
    said = "\n".join(text for texts in walk(page).text.values() for text in texts)
    for fact in ("seed", "42", "official", "bfloat16", "cpu on cpu", "ab" * 32, "torch", "2.13"):
        assert fact in said
    for fact in ("weights", "cd" * 32, "made-up words"):
        assert fact in said
    assert "the answer prefix stands where the model's answer begins" in said
    assert "minference: dense" in said  # decode


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", FEW)
    result = run_cli("report", "run", "--out", "out", "--no-times", "--answers", "1")
    assert result.exit_code == 0, result.stderr
    assert f"{len(FEW)} rows of 1 runs of made-up/model" in result.stdout
    assert "wrote out/report.html" in result.stdout
    assert {path.name for path in Path("out").iterdir()} == {
        "report.html",
        "summary.csv",
        "summary.json",
        "values.csv",
        "means.csv",
        "figures",
        "figures.json",
    }


def test_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [])
    write_run(tmp_path / "other", FEW[:9])
    Path("file").write_text("", "utf-8")
    for arguments, message in (
        (("nowhere", "--out", "out"), "there is no manifest.json in nowhere"),
        (("run", "--out", "out"), "hold no samples yet"),
        (("run", "--out", "file"), "--out must be a folder"),
        (("other", "--out", "out", "--against", "x"), "--against must be one of"),
    ):
        assert_refused(run_cli("report", *arguments), message)
    assert not Path("out").exists()
