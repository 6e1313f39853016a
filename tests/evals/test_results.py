"""Run folders are read strictly, and put together whatever their order."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.manifest import MANIFEST, Manifest
from sparsefill.evals.results import load_results, load_run
from sparsefill.evals.rows import SAMPLES, TIMES, Row, whole_lines
from tests.support.runs import BAD, MANIFEST_OF_ALL, row, times_of, write_run

HUGE = 10**400  # whole, and no float
ROW = row("ruler/vt", 4096, 0, "full")
ROWS = [
    row("ruler/vt", 4096, index, method) for index in range(3) for method in ("full", "a-shape")
]


def as_line(**changes: Any) -> str:
    return json.dumps({**json.loads(ROW.line()), **changes}) + "\n"


def test_rows_survive_the_file(tmp_path: Path):
    rows = [replace(ROW, answer=BAD, values={"nll": 2.5}), row("ruler/vt", 4096, 1, "full")]
    run = load_run(write_run(tmp_path / "run", rows))
    assert list(run.rows.values()) == rows
    assert run.manifest == MANIFEST_OF_ALL
    assert run.times[rows[1].key] == times_of(rows[1])


def test_a_line_is_one_line():
    assert replace(ROW, answer="a\nb\r\u2028c").line().count("\n") == 1


def test_a_torn_last_line_is_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", ROWS)
    whole = (folder / SAMPLES).read_bytes()
    for cut in range(1, len(ROWS[-1].line()), 7):
        (folder / SAMPLES).write_bytes(whole[:-cut])
        assert list(load_run(folder).rows.values()) == ROWS[:-1]
        assert whole_lines(whole[:-cut]) == whole[: -len(ROWS[-1].line())]


def test_a_line_torn_inside_a_character_is_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", ROWS)
    with (folder / SAMPLES).open("ab") as file:
        file.write('{"answer": "é'.encode()[:-1])
    assert len(load_run(folder).rows) == len(ROWS)


def test_a_torn_line_before_the_last_is_refused(tmp_path: Path):
    folder = write_run(tmp_path / "run", ROWS)
    lines = (folder / SAMPLES).read_text("utf-8").splitlines(keepends=True)
    lines[2] = lines[2][:40] + "\n"
    (folder / SAMPLES).write_text("".join(lines), "utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 3 is not valid JSON"):
        load_run(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": 1.5}, "score must be a number from 0 to 1, or null, got 1.5"),
        ({"score": True}, "score must be a number"),
        ({"length": 0}, "length must be a whole number from 1, got 0"),
        ({"index": "0"}, "index must be a whole number from 0, got '0'"),
        ({"answer": None}, "answer must be text, got None"),
        ({"references": "one"}, "references must be a list of texts"),
        ({"recipe": []}, "recipe must be an object"),
        ({"values": {"nll": None}}, "values must be an object of numbers"),
        ({"density": "all"}, "density must be a number from 0 to 1.001, or null, got 'all'"),
        ({"ttft_s": 1.0}, "unknown field 'ttft_s'"),
        ({"method": "other"}, "the method 'other' is not in manifest.json"),
        ({"task": "ruler/other"}, "the task 'ruler/other' is not in manifest.json"),
        ({"length": 5000}, "the length 5000 is not in manifest.json"),
        ({"tokens": HUGE}, "tokens must be a whole number up to 9007199254740992, got 1000"),
        ({"index": HUGE}, "index must be a whole number up to"),
        ({"score": HUGE}, "score must be a number from 0 to 1, or null, got 1000"),
        ({"density": -0.5}, "density must be a number from 0 to 1.001, or null, got -0.5"),
        ({"recall": 7}, "recall must be a number from 0 to 1.001, or null, got 7"),
        ({"values": {"nll": 1000}}, "values['nll'] must be a number from 0 to 690, got 1000"),
        ({"values": {"nll": -1}}, "values['nll'] must be a number from 0 to 690, got -1"),
        ({"values": {"nll_tokens": 0}}, "values['nll_tokens'] must be a number from 1 to"),
        ({"values": {"kl": HUGE}}, "values['kl'] must be a number from -1e+300 to 1e+300, got"),
        ({"values": {"kl": -1e301}}, "values['kl'] must be a number from -1e+300"),
        ({"recipe": {"depth_percent": HUGE}}, "depth_percent must be a number from 0 to 100"),
        ({"recipe": {"depth_percent": "low"}}, "depth_percent must be a number from 0 to 100"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_broken_row_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = write_run(tmp_path / "run", ROWS)
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(as_line(**changes))
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert f"{SAMPLES}, line {len(ROWS) + 1}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttft_s": 0}, "ttft_s must be a number from 1e-09 to 1e+09, or null, got 0"),
        ({"ttft_s": -1.0}, "ttft_s must be a number from 1e-09 to 1e+09, or null, got -1.0"),
        ({"ttft_s": HUGE}, "ttft_s must be a number from 1e-09 to 1e+09, or null, got 1000"),
        ({"decode_s": -1e-3}, "decode_s must be a number from 0 to 1e+09, or null"),
        ({"attention_s": 1e300}, "attention_s must be a number from 0 to 1e+09, or null"),
        ({"environment": 1}, "environment 1 is not in manifest.json"),
        ({"environment": -1}, "environment must be a whole number from 0, got -1"),
        ({"length": 5000}, "the length 5000 is not in manifest.json"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_times_that_nothing_takes_are_refused_with_their_line(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = write_run(tmp_path / "run", ROWS)
    with (folder / TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**json.loads(times_of(ROW).line()), **changes}) + "\n")
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert f"{TIMES}, line {len(ROWS) + 1}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    "line", ["[]\n", '{"method": "full"}\n', "\n", '{"score": NaN}\n', '"\\\n']
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path: Path, line: str):
    folder = write_run(tmp_path / "run", ROWS)
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(InputError, match=f"line {len(ROWS) + 1}"):
        load_run(folder)


def test_other_bytes_are_refused_with_their_line(tmp_path: Path):
    folder = write_run(tmp_path / "run", ROWS)
    (folder / SAMPLES).write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"line 1 must be UTF-8"):
        load_run(folder)


def test_the_same_row_twice_is_one_row_and_another_is_refused(tmp_path: Path):
    folder = write_run(tmp_path / "run", [*ROWS, ROWS[0]])
    assert len(load_run(folder).rows) == len(ROWS)
    other = write_run(tmp_path / "other", [*ROWS, replace(ROWS[0], answer="other")])
    with pytest.raises(InputError, match=r"line 7: sample 0 of ruler/vt .* twice.*line 1"):
        load_run(other)


def test_of_times_the_last_counts(tmp_path: Path):
    """A sample whose row was lost when the run was killed is timed again."""
    times = [times_of(ROW), times_of(ROW, slower=2)]
    run = load_run(write_run(tmp_path / "run", [ROW], times=times))
    assert run.times == {ROW.key: times[1]}


def test_a_run_may_have_no_times(tmp_path: Path):
    folder = write_run(tmp_path / "run", ROWS)
    (folder / TIMES).unlink()
    assert load_run(folder).times == {}


def test_a_folder_without_manifest_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="at least one run folder"):
        load_results([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema must be 2, got 1; go on with it, and report it, by the version"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"lengths": [4096, "8K"]}, "lengths must be a list of whole numbers"),
        ({"methods": {"full": "dense"}}, "methods must be an object of objects"),
        ({"min_length": "auto"}, "min_length must be a whole number"),
        ({"more": 1}, "unknown field 'more'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    folder = write_run(tmp_path / "run", ROWS)
    (folder / MANIFEST).write_text(json.dumps(MANIFEST_OF_ALL.as_data() | changes), "utf-8")
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert str(caught.value).startswith(f"{folder / MANIFEST}: {message}")


@pytest.mark.parametrize("name", MANIFEST_OF_ALL.as_data())
def test_every_field_of_a_manifest_must_be_there(name: str):
    data = MANIFEST_OF_ALL.as_data()
    del data[name]
    with pytest.raises(InputError, match=f"there must be a field '{name}'"):
        Manifest.parse(data, source="here")


def test_runs_are_put_together_in_any_order(tmp_path: Path):
    one = write_run(tmp_path / "one", ROWS[:4])
    two = write_run(
        tmp_path / "two",
        ROWS[3:],
        manifest=replace(MANIFEST_OF_ALL, samples=5),
        times=[times_of(row, slower=9) for row in ROWS[3:]],
    )
    for folders in ([one, two], [two, one], [two, one, two]):
        found = load_results(folders)
        assert [run.name for run in found.runs] == ["one", "two"]
        assert list(found.rows) == sorted(row.key for row in ROWS)
        assert found.times(ROWS[3].key) == times_of(ROWS[3])  # of the run that the row is from
        assert found.times(ROWS[4].key) == times_of(ROWS[4], slower=9)


@pytest.mark.parametrize(
    ("manifest", "rows", "message"),
    [
        ({"model": "other"}, [], "a report is of one model, got 'made-up/model' and 'other'"),
        ({"seed": 1}, ROWS[4:], "both hold ruler/vt, but seed is 42 in one and 1 in the other"),
        ({"methods": {"full": {"x": 1}}}, [], "the method 'full' is set otherwise in one and two"),
        ({}, [replace(ROWS[0], score=0.5)], "differs between one and two; report them apart"),
    ],
    ids=["model", "seed", "method", "row"],
)
def test_runs_that_contradict_each_other_are_refused(
    tmp_path: Path, manifest: dict[str, Any], rows: list[Row], message: str
):
    one = write_run(tmp_path / "one", ROWS)
    other = replace(MANIFEST_OF_ALL, **{"samples": 5, **manifest})
    two = write_run(tmp_path / "two", rows, manifest=other)
    for folders in ([one, two], [two, one]):
        with pytest.raises(InputError) as caught:
            load_results(folders)
        assert message in str(caught.value)


def test_methods_that_are_set_otherwise_are_called_by_their_runs_too(tmp_path: Path):
    folders = []
    for place, name in enumerate(("one", "two")):
        own = [replace(row, score=place / 2) if row.method == "a-shape" else row for row in ROWS]
        how = {**MANIFEST_OF_ALL.methods, "a-shape": {"window": place}}
        times = [times_of(row, slower=1 + place) for row in own]
        manifest = replace(MANIFEST_OF_ALL, methods=how)
        folders.append(write_run(tmp_path / name, own, manifest=manifest, times=times))
    for order in (folders, folders[::-1]):
        found = load_results(order)
        for place, method in enumerate(("a-shape (one)", "a-shape (two)")):
            assert found.methods[method] == {"window": place}
            rows = [row for row in found.rows.values() if row.method == method]
            assert [row.score for row in rows] == [place / 2] * 3
            read = times_of(ROWS[1], slower=1 + place)
            assert found.times(rows[0].key) == replace(read, method=method)
        for run, folder in zip(found.runs, folders, strict=True):
            assert run.manifest == load_run(folder).manifest
        assert "a-shape" not in {key.method for key in found.rows} | found.methods.keys()
        assert sum(row.method == "full" for row in found.rows.values()) == 3


def test_runs_that_are_set_alike_share_a_name(tmp_path: Path):
    unlike = {**MANIFEST_OF_ALL.methods, "a-shape": {"window": 1}}
    folders = [
        write_run(tmp_path / "one", ROWS[:2]),
        write_run(tmp_path / "three", ROWS[2:]),
        write_run(tmp_path / "two", ROWS, manifest=replace(MANIFEST_OF_ALL, methods=unlike)),
    ]
    found = load_results(folders)
    counts = Counter(row.method for row in found.rows.values())
    assert counts == {"full": 3, "a-shape (one)": 3, "a-shape (two)": 3}


def test_such_runs_need_names_of_their_own(tmp_path: Path):
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    write_run(one, ROWS)
    how = {**MANIFEST_OF_ALL.methods, "a-shape": {"window": 1}}
    write_run(two, ROWS, manifest=replace(MANIFEST_OF_ALL, methods=how))
    with pytest.raises(InputError, match=r"'a-shape \(run\)' is set otherwise .*, or rename one"):
        load_results([one, two])
    three = write_run(tmp_path / "three" / "run", ROWS, manifest=replace(MANIFEST_OF_ALL, seed=1))
    with pytest.raises(InputError, match=r"report them apart$"):
        load_results([one, three])


def test_a_name_that_is_taken_is_refused(tmp_path: Path):
    taken = {**MANIFEST_OF_ALL.methods, "a-shape (one)": {}}
    one = write_run(tmp_path / "one", ROWS, manifest=replace(MANIFEST_OF_ALL, methods=taken))
    how = {**MANIFEST_OF_ALL.methods, "a-shape": {"window": 1}}
    two = write_run(tmp_path / "two", ROWS, manifest=replace(MANIFEST_OF_ALL, methods=how))
    with pytest.raises(InputError, match=r"'a-shape \(one\)' would be the name of two methods"):
        load_results([one, two])


def test_a_folder_is_read_once_and_called_the_same_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = write_run(tmp_path / "one", ROWS)
    monkeypatch.chdir(one)
    found = load_results([Path(), Path("../one"), one])
    assert [run.name for run in found.runs] == ["one"]


def test_runs_of_other_tasks_may_have_other_settings(tmp_path: Path):
    one = write_run(tmp_path / "one", ROWS)
    other = replace(MANIFEST_OF_ALL, seed=1, haystack={}, samples=5)
    two = write_run(tmp_path / "two", [row("ruler/cwe", 4096, 0, "full")], manifest=other)
    assert len(load_results([one, two]).rows) == len(ROWS) + 1
