"""The official questions of RULER: SQuAD 2 and HotpotQA, from files that the user has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.qa import Question, make_qa


@dataclass(frozen=True)
class Asked:
    """A question of a file, its documents by number."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()  # other paragraphs of the same article


@dataclass(frozen=True)
class Questions:
    """What a file holds: all its documents, and questions about them."""

    documents: tuple[str, ...]
    asked: tuple[Asked, ...]


def squad(data: Any) -> Questions:
    """Read SQuAD 2: those of its questions that have an answer."""
    articles = [[paragraph["context"] for paragraph in a["paragraphs"]] for a in data["data"]]
    documents, number = _numbered([text for article in articles for text in article])
    asked = []
    for article, texts in zip(data["data"], articles, strict=True):
        numbers = tuple(dict.fromkeys(number[text] for text in texts))
        for paragraph in article["paragraphs"]:
            gold = number[paragraph["context"]]
            near = tuple(other for other in numbers if other != gold)
            for item in paragraph["qas"]:
                if not item["is_impossible"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in item["answers"]))
                    asked.append(Asked(item["question"], answers, (gold,), near))
    return Questions(documents, tuple(asked))


def hotpotqa(data: Any) -> Questions:
    """Read HotpotQA with distractors: all paragraphs that come with a question are its own."""
    own = [[f"{title}\n{''.join(lines)}" for title, lines in item["context"]] for item in data]
    documents, number = _numbered([text for texts in own for text in texts])
    asked = [
        Asked(item["question"], (item["answer"],), tuple(dict.fromkeys(number[t] for t in texts)))
        for item, texts in zip(data, own, strict=True)
    ]
    return Questions(documents, tuple(asked))


def _numbered(texts: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    documents = tuple(sorted(set(texts)))
    return documents, {text: number for number, text in enumerate(documents)}


@dataclass(frozen=True)
class FileQA:
    """Makes samples of a task from an official file.

    Args:
        title: of the data.
        names: that the file may have.
        read: reads what is in it.
    """

    title: str
    names: tuple[str, ...]
    read: Callable[[Any], Questions]

    def __call__(self, making: Making) -> Sample:
        """Make a sample: the question of the sample's index."""
        questions = _load(self, making.data, making.task)
        if making.index >= len(questions.asked):
            raise InputError(
                f"{making.task} has {len(questions.asked)} questions, so no sample"
                f" {making.index}; pass fewer samples"
            )
        asked = questions.asked[making.index]
        others = _others(making, questions, asked)

        def first(count: int) -> list[str]:
            rounds, rest = divmod(count, max(len(others), 1))
            return [questions.documents[i] for i in others * rounds + others[:rest]]

        question = Question(
            text=asked.text,
            answers=asked.answers,
            gold=tuple(questions.documents[i] for i in asked.gold),
            others=first,
            recipe={"data": self.title, "documents": len(questions.documents)},
        )
        return make_qa(making, question)


def _others(making: Making, questions: Questions, asked: Asked) -> list[int]:
    """Order all other documents: those of the same article, then the rest; all over again."""
    near = list(asked.near)
    own = {*asked.gold, *near}
    far = [number for number in range(len(questions.documents)) if number not in own]
    draw = making.draw("documents")
    draw.shuffle(near)
    draw.shuffle(far)
    return near + far


@lru_cache(maxsize=2)
def _load(source: FileQA, folder: Path | None, task: str) -> Questions:
    paths = [folder / name for name in source.names] if folder else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        where = f"there is none in {folder}" if folder else "no folder of data was given"
        raise InputError(
            f"{task} needs {source.title} ({' or '.join(source.names)}), but {where}; pass its"
            " folder with --data, or take ruler/qa_synthetic, which needs no file"
        )
    try:
        return source.read(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not {source.title} as it is published: {error!r}") from error


qa_1 = FileQA("SQuAD 2.0, development set", ("dev-v2.0.json", "squad.json"), squad)
qa_2 = FileQA(
    "HotpotQA, development set with distractors",
    ("hotpot_dev_distractor_v1.json", "hotpotqa.json"),
    hotpotqa,
)
