"""Questions about invented people: a stand-in for RULER's two, which need files."""

from __future__ import annotations

from itertools import islice

from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.qa import Question, make_qa
from sparsefill.evals.tasks.ruler.words import Endless, distinct, pseudo_word

TRADES = ("baker", "carpenter", "doctor", "painter", "printer", "sailor", "singer", "teacher")
QUESTIONS = (  # about birthplace and home
    "In which village was {name} born?",
    "To which town did {name} move?",
)


def make_qa_synthetic(making: Making) -> Sample:
    """Make a sample; no two documents share a name, so only one holds the answer."""
    draw = making.draw("people")
    proper = distinct(lambda: pseudo_word(draw).capitalize())

    def document(first: str, last: str, village: str, town: str) -> str:
        return (
            f"{first} {last} was born in the village of {village}. After some years as a"
            f" {draw.choice(TRADES)}, {first} moved to the town of {town} in"
            f" {draw.randint(1750, 1950)}."
        )

    first, last, village, town = islice(proper, 4)
    gold = document(first, last, village, town)
    asked = draw.randrange(len(QUESTIONS))
    question = Question(
        text=QUESTIONS[asked].format(name=f"{first} {last}"),
        answers=((village, town)[asked],),
        gold=(gold,),
        others=Endless(map(document, proper, proper, proper, proper)).first,
        recipe={"data": "invented people"},
    )
    return make_qa(making, question)
