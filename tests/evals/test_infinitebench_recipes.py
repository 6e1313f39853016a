"""Samples that are generated follow the benchmark's recipes, at any length."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.infinitebench import ROWS, infinitebench_tasks, row_of
from sparsefill.evals.tasks.infinitebench.official import answer_limit
from sparsefill.evals.tasks.infinitebench.recipes import RECIPES
from tests.evals import support
from tests.support.tokenizers import ByteTokenizer

GENERATED = pytest.mark.parametrize("name", RECIPES)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HUGE = 2_000_000  # bytes: more than any sample of the benchmark has


def prompter(template: str = "base") -> Prompter:
    return Prompter(tokenizer=ByteTokenizer(), template=template)


def make(
    name: str,
    index: int,
    length: int = 20_000,
    *,
    seed: int = 7,
    template: str = "base",
    **choices: str,
) -> Sample:
    task = infinitebench_tasks(**choices)[f"infinitebench/{name}"]
    settings = {"haystack": Haystack("none", ""), "prompter": prompter(template)}
    return support.make(task, length, index, seed=seed, **settings)


@GENERATED
@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize("index", [0, 49])
def test_the_length_is_filled(name: str, template: str, index: int):
    for length in (8_000, 30_000):
        sample = make(name, index, length, template=template)
        assert 0.98 * length < prompter(template).count(sample) + sample.new_tokens <= length
        assert (sample.task, sample.length) == (f"infinitebench/{name}", length)


def test_pairs_are_drawn_anew_where_they_leave_too_much_free():
    """A pair takes nearly 4 % of 2,048 tokens."""
    task = infinitebench_tasks()["infinitebench/kv_retrieval"]
    samples = [support.make(task, 2048, index) for index in range(8)]
    used = [support.prompter().count(sample) + sample.new_tokens for sample in samples]
    assert all(0.98 * 2048 <= tokens <= 2048 for tokens in used)
    assert any(sample.recipe.get("again", 0) for sample in samples)
    assert [support.make(task, 2048, index) for index in range(8)] == samples


@GENERATED
def test_a_seed_and_an_index_make_one_sample(name: str):
    sample = make(name, 3)
    assert make(name, 3) == sample
    assert make(name, 3, seed=8).references != sample.references or name == "math_find"
    assert make(name, 3, seed=8).prompt != sample.prompt
    assert make(name, 4).prompt != sample.prompt
    assert make(name, 3, 19_000).references != sample.references or name == "math_find"


@GENERATED
def test_too_short_a_length_is_refused(name: str):
    with pytest.raises(InputError, match="the smallest prompt of this task has"):
        make(name, 0, 150)


@pytest.mark.parametrize("index", [0, 9, 10, 294, 580, 589])
@pytest.mark.parametrize("name", ["passkey", "number_string"])
def test_a_key_stands_at_its_place_of_the_grid(name: str, index: int):
    sample = make(name, index)
    (key,) = sample.references
    thing = "pass key" if name == "passkey" else "sequence of digits"
    needle = f"The {thing} is {key}. Remember it. {key} is the {thing}."
    lines = sample.prompt.split("\n\n")[1].splitlines()
    assert lines.count(needle) == 1
    assert set(lines) == {needle, NOISE}
    share = index // 10 / 58
    assert 0 <= share * (len(lines) - 1) - lines.index(needle) < 1
    assert sample.recipe["line"] == lines.index(needle)


@pytest.mark.parametrize("name", ["passkey", "number_string"])
@pytest.mark.parametrize("size", ["released", "script"])
def test_official_needles(name: str, size: str):
    for index, before in ((0, 0), (10, 90), (585, 5220)):
        sample = make(name, index, HUGE, size=size)
        first, _, last = sample.prompt.partition(f"{sample.references[0]}. Remember")
        assert (first.count(NOISE), last.count(NOISE)) == (before, 5220 - before)


def test_keys_have_five_digits_and_sequences_repeat_theirs_in_place():
    for index in range(30):
        (key,) = make("passkey", index, 5000).references
        assert re.fullmatch("[0-9]{5}", key)
        (digits,) = make("number_string", index, 5000).references
        assert re.fullmatch("[0-9]{10}", digits)
        assert len(re.sub(r"(.)\1*", r"\1", digits)) <= 5


@pytest.mark.parametrize(
    ("size", "index", "place"),
    [("fitted", 0, 0.0), ("fitted", 250, 0.5), ("fitted", 499, 0.998), ("released", 321, 0.642)],
)
def test_one_of_the_pairs_is_asked_for(size: str, index: int, place: float):
    sample = make("kv_retrieval", index, 20_000 if size == "fitted" else HUGE, size=size)
    head, asked = sample.prompt.split("\n\n\nKey: ")
    text = head.partition("JSON data:\n")[2]
    pairs = json.loads(text)
    uuid4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(uuid4, word) for pair in pairs.items() for word in pair)
    assert text == json.dumps(pairs)
    key = asked.strip().strip('"')
    assert pairs[key] == sample.references[0]
    assert list(pairs).index(key) == int(place * len(pairs) + 1e-9)
    if size == "released":
        assert len(pairs) == 2500
        assert list(pairs).index(key) == 5 * index


@pytest.mark.parametrize("index", range(0, 350, 25))
def test_the_number_asked_for_is_found(index: int):
    sample = make("math_find", index, 6000)
    numbers = json.loads(sample.prompt.split("\n\n")[1])
    answer = float(sample.references[0])
    above = len({number for number in numbers if number > answer})
    below = len({number for number in numbers if number < answer})
    target = index // 50
    if target < 6:
        assert (above, below)[target // 3] == target % 3
        assert answer in numbers
        assert "." not in sample.references[0]
    else:
        ranked = sorted(numbers)
        middle = ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]
        assert answer == middle / 2
    assert min(numbers) >= 0
    assert max(numbers) <= 99
    word = ["largest", "second largest", "third largest", "smallest", "second smallest",
            "third smallest", "median"][target]  # fmt: skip
    assert sample.prompt.startswith(f"What is the {word} number in the following list?\n\n[")
    assert sample.prefix == f"The {word} number of the list is: "


def test_the_bound_that_is_asked_about_moves():
    largest = {make("math_find", index, 6000).references[0] for index in range(20)}
    smallest = {make("math_find", index, 6000).references[0] for index in range(150, 170)}
    assert len(largest) > 5
    assert len(smallest) > 5
    assert min(map(int, largest)) >= 79
    assert max(map(int, smallest)) <= 19


def test_all_values_of_an_expression_stay_between_0_and_99():
    for index in range(5):
        sample = make("math_calc", index)
        text = sample.prompt.rpartition("Expression: ")[2].removesuffix("\n")
        first, *rest = re.findall(r"^[0-9]+| [+-] [0-9]+", text)
        assert first + "".join(rest) == text
        value, values = int(first), []
        for part in rest:
            _, sign, term = part.split(" ")
            value += int(term) if sign == "+" else -int(term)
            values.append(value)
        assert [str(value) for value in values] == list(sample.references)
        assert 0 <= min(values) <= 10
        assert 90 <= max(values) <= 99


def interpret(code: str, call: str) -> tuple[int, int]:
    """Return the value of a call and how many functions it took, from the text alone."""
    bodies = dict(re.findall(r"def (func_\d+)\(x\):\n    return (.+)\n", code))
    ((name, argument),) = re.findall(r"^(func_\d+)\((-?\d+)\)$", call)
    added, steps = int(argument), 0
    while name != "x":
        value, _, change = bodies[name].partition(" ")
        added += int(change.replace(" ", "") or 0)
        name, steps = value.removesuffix("(x)"), steps + 1
    return added, steps


@pytest.mark.parametrize("index", [0, 79, 80, 161, 240, 319, 320, 399])
def test_what_a_function_returns(index: int):
    sample = make("code_run", index)
    call = re.search(r"func_\d+\(-?\d+\)", sample.prefix)
    assert call is not None
    value, steps = interpret(sample.prompt, call[0])
    assert str(value) == sample.references[0]
    assert steps == (index // 80 + 1) * 2
    numbers = [int(number) for number in re.findall(r"def func_(\d+)", sample.prompt)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] >= 1
    assert numbers[-1] <= 2 * len(numbers)
    added = [int(sign + digits) for sign, digits in re.findall(r" ([+-]) (\d+)\n", sample.prompt)]
    assert min(added) == -12
    assert max(added) == 17
    assert -10 <= int(call[0].partition("(")[2][:-1]) <= 10


@pytest.mark.parametrize(
    ("size", "numbers", "terms", "functions"),
    [("released", 30_000, 15_000, 4398), ("script", 60_000, 30_000, 546)],
)
def test_official_sizes(size: str, numbers: int, terms: int, functions: int):
    found = make("math_find", 0, HUGE, size=size)
    assert len(json.loads(found.prompt.split("\n\n")[1])) == numbers
    calculated = make("math_calc", 0, HUGE, size=size)
    assert len(calculated.references) == terms - 1
    run = make("code_run", 160, HUGE, size=size)  # six layers of equal size
    assert run.prompt.count("def func_") == functions


@GENERATED
def test_an_official_size_loses_its_middle_where_it_is_too_long(name: str):
    sample = make(name, 0, 5000, size="released")
    count = prompter().count(sample)
    assert count == 2 * ((5000 - sample.new_tokens) // 2)
    assert sample.recipe["kept_tokens"] == count


@pytest.mark.parametrize(
    ("name", "limits", "length", "limit"),
    [
        ("passkey", "official", 131_072, 6),
        ("passkey", "minference", 131_072, 15),
        ("number_string", "official", 131_072, 12),
        ("number_string", "minference", 131_072, 20),
        ("kv_retrieval", "official", 131_072, 50),
        ("kv_retrieval", "minference", 131_072, 80),
        ("math_find", "minference", 131_072, 3),
        ("code_run", "official", 131_072, 5),
        ("code_debug", "official", 131_072, 5),
        ("longbook_sum_eng", "official", 131_072, 1200),
        ("longbook_qa_chn", "minference", 131_072, 40),
        ("math_calc", "official", 131_072, 30_000),
        ("math_calc", "official", 20_000, 10_000),
        ("math_calc", "minference", 30_000, 500),
        ("math_calc", "minference", 131_072, 30_000),
    ],
)
def test_how_long_an_answer_may_be(name: str, limits: str, length: int, limit: int):
    assert answer_limit(name, limits, length) == limit


def test_samples_have_the_limit_of_their_length():
    assert make("math_calc", 0, 20_000).new_tokens == 10_000
    assert make("passkey", 0, limits="minference").new_tokens == 15


def test_tasks_are_named_and_six_need_no_file():
    tasks = infinitebench_tasks()
    assert list(tasks) == [f"infinitebench/{name}" for name in ROWS]
    assert all(task.name == name for name, task in tasks.items())
    offline = [name.partition("/")[2] for name, task in tasks.items() if task.offline]
    assert offline == list(RECIPES)
    assert tasks["infinitebench/kv_retrieval"].new_tokens == 50


@pytest.mark.parametrize("what", ["rules", "limits", "size"])
def test_an_unknown_choice_is_refused(what: str):
    with pytest.raises(InputError, match=f"{what} must be one of .*, got 'paper'"):
        infinitebench_tasks(**{what: "paper"})


@pytest.mark.parametrize("samples", [1, 7, 59, 590])
def test_few_samples_are_spread_over_the_grid(samples: int):
    rows = [row_of("passkey", index) for index in range(samples)]
    assert len(set(rows)) == samples
    depths = [row // 10 for row in rows]
    assert max(depths) < 59
    gaps = [high - low for low, high in pairwise([0, *sorted(depths), 58])]
    assert max(gaps) <= 2 * 59 / samples + 1
    every = [row_of("passkey", index) for index in range(1180)]
    assert sorted(every) == list(range(1180))


def test_samples_in_spread_order_are_rows_of_the_file_order():
    assert make("passkey", 2, order="spread") == make("passkey", row_of("passkey", 2))
