"""Questions about documents: official files, and invented people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.ruler import QA_SYNTHETIC, RULER
from tests.evals.support import make

QA_1, QA_2 = RULER["ruler/qa_1"], RULER["ruler/qa_2"]


def paragraph(article: int, number: int) -> dict[str, Any]:
    answers = [{"text": f"answer {article}.{number}"}, {"text": f"answer {article}.{number}"}]
    asked = {"question": f"q {article}.{number}?", "answers": answers, "is_impossible": False}
    impossible = {"question": "no?", "answers": [], "is_impossible": True}
    text = f"Paragraph {number} of article {article}. " + "It goes on for a while. " * 5
    return {"context": text.strip(), "qas": [impossible, asked]}


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    articles = [{"paragraphs": [paragraph(a, n) for n in range(4)]} for a in range(40)]
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"data": articles}))
    return tmp_path


@pytest.fixture
def hotpotqa(tmp_path: Path) -> Path:
    def item(i: int) -> dict[str, Any]:
        context = [[f"Title {i}.{p}", ["One. ", f"Two, of {i}.{p}."]] for p in range(10)]
        return {"question": f"question {i}?", "answer": f"reply {i}", "context": context}

    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(
        json.dumps([item(i) for i in range(60)])
    )
    return tmp_path


def documents(sample: Sample) -> list[str]:
    context = sample.prompt.split("documents.\n\n", 1)[1].split("\n\nAnswer the question")[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)
    assert [int(number) for number in parts[1::2]] == list(range(1, len(parts[1::2]) + 1))
    return parts[2::2]


def test_only_answerable_questions_are_asked(squad: Path):
    for index in (0, 5):
        sample = make(QA_1, 2048, index, data=squad)
        name = f"{index // 4}.{index % 4}"
        assert sample.prompt.endswith(f"\n\nQuestion: q {name}?")
        assert sample.references == (f"answer {name}",)
        assert sample.prompt.count("Answer the question based on the given documents.") == 2
        (gold,) = sample.recipe["gold"]
        article, number = name.split(".")
        assert documents(sample)[gold - 1].startswith(f"Paragraph {number} of article {article}.")


def test_other_paragraphs_of_the_article_come_first(squad: Path):
    sample = make(QA_1, 2048, data=squad)
    found = documents(sample)
    assert len(found) == sample.recipe["units"] == len(set(found))
    assert sum("of article 0." in document for document in found) == 4


@pytest.mark.parametrize(("length", "count"), [(190, 1), (230, 2), (280, 3), (340, 4), (400, 5)])
def test_paragraphs_of_other_articles_come_last(squad: Path, length: int, count: int):
    found = documents(make(QA_1, length, data=squad))
    assert len(found) == count
    assert sum("of article 0." in document for document in found) == min(count, 4)


def test_all_paragraphs_of_a_hotpotqa_question_are_its_own(hotpotqa: Path):
    sample = make(QA_2, 4096, 7, data=hotpotqa)
    found = documents(sample)
    own = [n for n, text in enumerate(found, 1) if text.startswith("Title 7.")]
    assert own == sample.recipe["gold"]
    assert len(own) == 10
    assert "Title 7.3\nOne. Two, of 7.3." in found
    assert sample.references == ("reply 7",)
    assert QA_2.score("reply 7, i think", sample.references) == 1


def test_documents_come_again_when_there_are_no_more(squad: Path):
    sample = make(QA_1, 32768, data=squad)
    found = documents(sample)
    assert len(set(found)) == sample.recipe["documents"] == 160
    assert len(found) > 160
    assert sample.recipe["fill"] > 0.98


def test_documents_are_laid_out_alike_only_on_request(squad: Path):
    alike = [make(QA_1, 2048, i, data=squad, one_layout=True).recipe["gold"] for i in range(8)]
    apart = [make(QA_1, 2048, i, data=squad).recipe["gold"] for i in range(8)]
    assert len(set(map(tuple, apart))) > len(set(map(tuple, alike)))


def test_what_is_missing_is_said(tmp_path: Path, squad: Path):
    with pytest.raises(InputError, match=r"qa_1 needs SQuAD.*no folder of data was given; pass"):
        make(QA_1)
    with pytest.raises(InputError, match=r"hotpot_dev_distractor_v1.json.*there is none in"):
        make(QA_2, data=squad)
    with pytest.raises(InputError, match="160 questions, so no sample 160"):
        make(QA_1, index=160, data=squad)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dev-v2.0.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match="not SQuAD"):
        make(QA_1, data=other)
    (other / "dev-v2.0.json").write_text("<html>")
    with pytest.raises(InputError, match="not SQuAD"):
        make(QA_1, data=other)


@pytest.mark.parametrize("index", range(4))
def test_one_document_holds_the_answer_about_an_invented_person(index: int):
    sample = make(QA_SYNTHETIC, 2048, index)
    found = documents(sample)
    (answer,) = sample.references
    (gold,) = sample.recipe["gold"]
    assert [n for n, text in enumerate(found, 1) if answer in text] == [gold]
    name = re.findall(r"(?:was|did) (\w+ \w+) (?:born|move)", sample.prompt)[-1]
    assert found[gold - 1].startswith(name)
    before = "village" if "born?" in sample.prompt else "town"
    assert f"{before} of {answer}" in found[gold - 1]
    assert len(set(found)) == len(found)
