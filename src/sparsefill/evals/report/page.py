"""The page: one file without scripts, which asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sparsefill.evals.report import words
from sparsefill.evals.report.answers import answer_parts
from sparsefill.evals.report.checklist import (
    checklist_table,
    environment_table,
    method_table,
    several_environments,
)
from sparsefill.evals.report.figure import Figure
from sparsefill.evals.report.groups import Group, families, groups_of
from sparsefill.evals.report.markup import Child, Markup, element
from sparsefill.evals.report.pictures import (
    head_maps,
    needle_maps,
    needle_tasks,
    perplexity_curves,
    score_curves,
    task_curves,
    ttft_curves,
)
from sparsefill.evals.report.style import STYLE
from sparsefill.evals.report.summary import Summary
from sparsefill.evals.report.tables import (
    cost_table,
    difference_table,
    mean_difference_table,
    mean_table,
    score_table,
    scored_tasks,
    value_table,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is loaded, nothing runs
PERPLEXITY = {"nll", "nll_tokens"}  # values that are shown as perplexity
NOTE = (
    "Scores are from 0 to 100. Brackets hold 95 % bootstrap intervals over samples; differences"
    " are paired, sample by sample, and coloured where their interval leaves zero out. An interval"
    " without width says that all samples came out alike, not that the score is certain; a single"
    " sample, and a mean over tasks that holds one, has none."
)


@dataclass
class Page:
    """A report while it is written: its sections, and all figures in them."""

    summary: Summary
    times: bool
    answers: int
    figures: list[Figure] = field(default_factory=list)

    def write(self) -> str:
        """Return the whole page."""
        sections = list(self._sections())
        links = [
            element("li", element("a", title, href=f"#{_anchor(title)}")) for title, _ in sections
        ]
        results = self.summary.results
        title = f"sparsefill evaluation of {results.model}"
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("title", title),
            element("style", Markup(STYLE)),
        )
        body = element(
            "body",
            element("header", element("h1", title), element("p", self._subtitle())),
            element("nav", element("ul", links), aria_label="sections"),
            element("main", [_section(name, content) for name, content in sections]),
        )
        return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"

    def _subtitle(self) -> str:
        summary = self.summary
        lengths = ", ".join(map(words.length, summary.lengths(*summary.tasks)))
        return (
            f"{words.counted(len(summary.results.rows), 'reading')}:"
            f" {words.counted(len(summary.tasks), 'task')} at {lengths}"
            f" tokens by {', '.join(summary.methods)}."
        )

    def _sections(self) -> Iterator[tuple[str, Sequence[Child]]]:
        summary = self.summary
        groups = groups_of(summary)
        scored = scored_tasks(summary, summary.tasks)
        yield "Scores" if scored else "Samples", list(self._scores(groups))
        if summary.against is None:
            yield "Differences", [element("p", "Full attention was not run: nothing to compare.")]
        elif summary.others and scored:
            yield "Differences", list(self._differences(groups))
        needles = needle_tasks(summary)
        if needles:
            yield "Needles", [part for task in needles for part in self._needles(task)]
        measured = [part for task in summary.tasks for part in self._perplexity(task)]
        if measured:
            yield "Perplexity", measured
        others = list(self._values())
        if others:
            yield "Other measures", others
        yield "Cost", list(self._cost())
        answers = answer_parts(summary, limit=self.answers)
        if answers:
            yield "Answers", answers
        yield "Comparability", [checklist_table(summary, groups), method_table(summary)]
        yield "Environment", [_several(summary), environment_table(summary)]

    def _scores(self, groups: Sequence[Group]) -> Iterator[Child]:
        summary = self.summary
        yield element("p", NOTE, class_="note")
        uneven = _uneven(summary)
        if uneven:
            yield element("p", f"Methods have not read the same samples: {uneven}.", class_="note")
        if groups:
            yield mean_table(summary, groups)
            yield self._show(score_curves(summary, groups))
        for family, tasks in families(summary).items():
            scored = scored_tasks(summary, tasks)
            if scored:
                yield element("h3", family)
                yield score_table(summary, family, scored)
                yield self._fold(f"{family}: curves of each task", task_curves(summary, scored))

    def _differences(self, groups: Sequence[Group]) -> Iterator[Child]:
        summary = self.summary
        if groups:
            yield mean_difference_table(summary, groups)
        for family, tasks in families(summary).items():
            scored = scored_tasks(summary, tasks)
            if scored:
                yield difference_table(summary, family, scored)

    def _needles(self, task: str) -> Iterator[Child]:
        yield element("h3", task)
        for method, maps in needle_maps(self.summary, task):
            yield element("h4", method)
            yield self._show(maps)

    def _perplexity(self, task: str) -> Iterator[Child]:
        summary = self.summary
        if any("nll" in cell.values for cell in summary.cells.values() if cell.task == task):
            yield element("h3", task)
            yield self._show(perplexity_curves(summary, task))
            yield value_table(summary, "nll", [task])

    def _values(self) -> Iterator[Child]:
        summary = self.summary
        cells = summary.cells.values()
        for name in sorted({name for cell in cells for name in cell.values} - PERPLEXITY):
            tasks = [
                task
                for task in summary.tasks
                if any(name in cell.values for cell in cells if cell.task == task)
            ]
            yield value_table(summary, name, tasks)
        maps = list(head_maps(summary))
        if maps:
            yield self._show(maps)

    def _cost(self) -> Iterator[Child]:
        summary = self.summary
        if self.times:
            yield element(
                "p",
                "Times are the one part of this page that differs between runs of the same"
                " configuration; --no-times leaves them out.",
                class_="note",
            )
            curves = [figure for task in summary.tasks for figure in ttft_curves(summary, task)]
            yield self._fold("TTFT over length", curves)
        yield cost_table(summary, times=self.times)

    def _show(self, figures: Sequence[Figure]) -> Markup | None:
        self.figures += figures
        shown = [figure.inline() for figure in figures]
        return element("div", shown, class_="figures") if shown else None

    def _fold(self, title: str, figures: Sequence[Figure]) -> Markup | None:
        shown = self._show(figures)
        return element("details", element("summary", title), shown) if shown else None


def _section(title: str, content: Sequence[Child]) -> Markup:
    return element("section", element("h2", title), content, id=_anchor(title))


def _several(summary: Summary) -> Markup | None:
    """Say that rows of one run were measured in several environments."""
    told = several_environments(summary)
    if not told:
        return None
    warning = (
        f"Runs went on in more than one environment: {told}. Their rows may differ by rounding, and"
        " times are of several machines or versions; speed-ups compare only rows of one."
    )
    return element("p", warning, class_="note")


def _uneven(summary: Summary) -> str:
    """Name where methods have different samples; empty where none do."""
    found: list[str] = []
    for task in summary.tasks:
        uneven = []
        for length in summary.lengths(task):
            cells = [summary.cell(task, length, method) for method in summary.methods]
            read = {frozenset(row.index for row in cell.rows) if cell else None for cell in cells}
            if len(read) > 1:
                uneven.append(words.length(length))
        if uneven:
            found.append(f"{task} at {', '.join(uneven)}")
    return "; ".join(found)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
