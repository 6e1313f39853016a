"""Variable tracking, common words, frequent words, and the words they are made of."""

from __future__ import annotations

import random
import re
from collections import Counter
from importlib import metadata
from itertools import islice, pairwise

import pytest

from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.noise import NOISE
from sparsefill.evals.tasks.ruler import RULER, cwe, words
from sparsefill.evals.tasks.ruler.fwe import times
from sparsefill.evals.tasks.ruler.words import Endless, distinct, word_list
from tests.evals.support import make, prompter

VT, CWE, FWE = (RULER[f"ruler/{name}"] for name in ("vt", "cwe", "fwe"))


def counted(context: str) -> Counter[str]:
    """Count the words of a numbered list, whose numbers must be in order."""
    found = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", context)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return Counter(word for _, word in found)


@pytest.mark.parametrize("index", range(3))
def test_variables_are_tracked_through_one_chain(index: int):
    sample = make(VT, 4096, index)
    example, text = sample.prompt.split("\n\nMemorize")
    lines = text.split("\n")
    chain = [line for line in lines if line.startswith("VAR")]
    names = sample.references
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"[A-Z]{5}", name) for name in names)
    value = chain[0].removeprefix(f"VAR {names[0]} = ")
    assert 10_000 <= int(value) <= 99_998
    assert chain[1:] == [f"VAR {to} = VAR {name} " for name, to in pairwise(names)]
    assert set(lines[2:-1]) - set(chain) == {NOISE}
    assert lines[-1].endswith(f"are assigned the value {value} in the text above.")
    assert f"value {value}, they are: " in sample.prefix
    assert "assigned" in sample.prefix
    assert "assgined" not in sample.prefix
    assert sample.recipe["prefix"] == "assigned"
    assert value not in example


def test_variable_tracking_has_an_example_in_the_same_turn():
    sample = make(VT)
    example = sample.prompt.split("\n\nMemorize")[0]
    assert sample.turns == ()
    value, *_ = re.findall(r"VAR [A-Z]{3} = (\d+)", example)
    names = re.findall(r"VAR ([A-Z]{3}) =", example)
    assert example.endswith(f"value {value}, they are:  {' '.join(names)}")
    assert len(set(names)) == 5
    assert 450 < len(prompter().encode(example)) <= 500
    other = make(VT, index=1).prompt.split("\n\nMemorize")[0]
    assert names != re.findall(r"VAR ([A-Z]{3}) =", other)
    assert value not in other  # fresh ones in every sample


@pytest.mark.parametrize(
    ("length", "often", "seldom", "example"),
    [(2048, 6, 1, (20, 3, 1)), (4095, 6, 1, (20, 3, 1)), (4096, 30, 3, (40, 10, 3))],
)
def test_ten_words_are_common(length: int, often: int, seldom: int, example: tuple[int, int, int]):
    sample = make(CWE, length)
    counts = counted(sample.prompt.split("\n")[1])
    assert len(counts) == sample.recipe["units"]
    assert Counter(counts.values()) == {often: 10, seldom: len(counts) - 10}
    assert {word for word, count in counts.items() if count == often} == set(sample.references)
    ((question, answer),) = sample.turns
    of_example = counted(question.split("\n")[1])
    size, example_often, example_seldom = example
    assert Counter(of_example.values()) == {example_often: 10, example_seldom: size - 10}
    common = [word for word, count in of_example.items() if count == example_often]
    assert answer.startswith(" Answer: The top 10 words that appear most often in the list are: 1.")
    assert sorted(counted(answer.split(": ", 2)[2])) == sorted(common)


def test_the_example_of_common_words_is_an_earlier_turn():
    sample = make(CWE, 2048)
    ((question, answer),) = sample.turns
    base, chat = prompter().text(sample), prompter("chat").text(sample)
    assert base == f"{question}{answer}\n{sample.prompt}{sample.prefix}"
    turns = f"<user>{question}</user><assistant>{answer}</assistant><user>{sample.prompt}</user>"
    assert chat == f"<s>{turns}<assistant>{sample.prefix}"


def test_more_words_than_the_list_has_are_invented(monkeypatch: pytest.MonkeyPatch):
    """As at 128K tokens and more, where upstream stops unless a large file is there."""
    few = words.WordList("few", (), (), tuple(f"word{number}" for number in range(50)))
    monkeypatch.setattr(cwe, "word_list", lambda: few)
    sample = make(CWE, 8192)
    counts = counted(sample.prompt.split("\n")[1])
    assert len(counts) == sample.recipe["units"] == 50 + sample.recipe["pseudo_words"]
    assert sample.recipe["pseudo_words"] > 50
    assert set(few.words) < set(counts)
    assert sample.recipe["fill"] > 0.98


@pytest.mark.parametrize("length", [2048, 8192])
def test_the_most_frequent_coded_word_is_dots(length: int):
    sample = make(FWE, length)
    context = sample.prompt.split("coded words. ", 1)[1].split("\nQuestion")[0]
    counts = Counter(context.split(" "))
    ranked = [word for word, _ in counts.most_common(4)]
    assert ranked == ["...", *sample.references]
    units = sample.recipe["units"]
    assert list(counts.values()) != sorted(counts.values())  # shuffled
    assert [counts[word] for word in ranked] == [times(rank, units) for rank in (1, 2, 3, 4)]
    assert sample.recipe["vocabulary"] == (length - 50) // 50
    assert all(re.fullmatch(r"[a-z]{6}", word) for word in counts if word != "...")
    assert sum(counts.values()) == sample.recipe["words"]


@pytest.mark.parametrize(("task", "what"), [(CWE, "list"), (FWE, "text")])
def test_shuffles_are_alike_only_on_request(task, what: str):
    def places(sample: Sample) -> list[int]:
        asked = sample.references[0]
        context = sample.prompt.split("\nQuestion")[0]
        return [place for place, word in enumerate(context.split(" ")) if word == asked]

    alike = [make(task, 2048, index, one_layout=True) for index in range(2)]
    apart = [make(task, 2048, index) for index in range(2)]
    if alike[0].recipe["units"] == alike[1].recipe["units"]:
        assert places(alike[0]) == places(alike[1])
    assert places(apart[0]) != places(apart[1])
    assert alike[0].references != alike[1].references


def test_the_list_of_words_is_recorded():
    assert make(CWE, 2048).recipe["words"] == word_list().provenance()
    asked = make(RULER["ruler/niah_single_1"], 2048).recipe
    assert asked["words"]["name"] == word_list().name


def test_without_upstreams_words_those_of_novels_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(words.metadata, "version", missing)
    word_list.cache_clear()
    try:
        found = word_list()
        sample = make(RULER["ruler/niah_multikey_1"], 2048)
    finally:
        word_list.cache_clear()
    assert "two novels" in caplog.text  # never silently
    assert sample.recipe["words"] == {"name": found.name, "words": len(found.words)}
    assert len(found.words) == 7784
    assert all(re.fullmatch("[a-z]{3,}", word) for word in found.words)


def test_upstreams_words_are_all_there():
    assert word_list().name.startswith("wonderwords 3.")
    assert [len(kind) for kind in (word_list().adjectives, word_list().nouns)] == [912, 6782]
    assert len(word_list().words) == 8166


def test_nothing_is_drawn_twice():
    draw = random.Random(3)
    found = list(islice(distinct(lambda: str(draw.randrange(12)), but={"7"}), 11))
    assert sorted(map(int, found)) == [n for n in range(12) if n != 7]


def test_a_list_that_grows_keeps_its_beginning():
    endless = Endless(map(str, range(100)))
    assert endless.first(5) == ["0", "1", "2", "3", "4"]
    assert endless.first(2) == ["0", "1"]
    assert endless.first(7) == [str(number) for number in range(7)]
