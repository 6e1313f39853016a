"""Tasks that ask no question: how a model goes on with a text, and what it expects of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from sparsefill.errors import InputError
from sparsefill.evals.fidelity import compare_rows, first_divergence, summarise
from sparsefill.evals.filler import opening, read_filler, rotation
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.task import Making, Outcome
from sparsefill.evals.tasks.copying import make_copying, mean_score, score_continuation
from sparsefill.evals.tasks.perplexity import by_position, cut_window, read_out
from sparsefill.reader import Heads, Method, Predicted, Reader

Measure = Callable[[Reader, Method], Outcome]
POSITIONS = 256  # last positions whose predictions are compared
DIGITS = 6  # decimals of a head's figures, of which a row holds thousands
GREEDY = 32  # tokens of the answers that are compared
EDGES = tuple(1024 << step for step in range(11))  # positions between which losses are averaged


@dataclass(frozen=True, kw_only=True)
class CopyingTask:
    """Lists of words hidden in a text, gone on with: the score is the share of right words."""

    decodes: ClassVar[bool] = True
    name: str

    def prepare(self, making: Making) -> Measure:
        """Make a text with lists; one prefill of it serves all of them."""
        sample = make_copying(making)
        asked = [([*own.cue, *own.expected], len(own.expected)) for own in sample.continuations]

        def measure(reader: Reader, method: Method) -> Outcome:
            followed, prefill = reader.follow(method, sample.context, asked)
            scores = [
                score_continuation(own, told.losses, told.right)
                for own, told in zip(sample.continuations, followed, strict=True)
            ]
            mean = mean_score(scores)
            values = {"nll_of_words": mean.nll, "right_tokens": mean.tokens}
            for own, score in zip(sample.continuations, scores, strict=True):
                values[f"nll_of_words_at_{own.depth_percent}"] = score.nll
            return Outcome(
                tokens=len(sample.context),
                prefill=prefill,
                score=mean.words,
                values=values,
                recipe=sample.recipe,
            )

        return measure


@dataclass(frozen=True, kw_only=True)
class PerplexityTask:
    """Windows of a text, every token of which is predicted from those before it."""

    decodes: ClassVar[bool] = False
    name: str

    def prepare(self, making: Making) -> Measure:
        """Take the window of the sample's number."""
        window = cut_window(making.haystack, making.prompter, making.length, making.index)

        def measure(reader: Reader, method: Method) -> Outcome:
            losses, prefill = reader.losses(method, window.ids)
            told = read_out(losses)
            edges = [0, *(edge for edge in EDGES if edge < told.tokens), told.tokens]
            parts = zip(edges[1:], by_position(losses, edges), strict=True)
            values = {
                "nll": told.nll,
                "nll_tokens": float(told.tokens),
                "perplexity": told.perplexity,
                "nll_of_last_4096": told.last,
                **{f"nll_to_{end}": part for end, part in parts},
            }
            return Outcome(
                tokens=len(window.ids),
                prefill=prefill,
                values=values,
                recipe={
                    "text": window.text,
                    "start": window.start,
                    "shared_tokens": window.shared,
                },
            )

        return measure


@dataclass(frozen=True, kw_only=True)
class FidelityTask:
    """A text read by full attention and by a method: what both predict at its end."""

    decodes: ClassVar[bool] = False
    name: str

    def prepare(self, making: Making) -> Measure:
        """Take tokens of the haystack, and those that follow the ones compared.

        Raises:
            InputError: the length is of too few tokens.
        """
        prompter = Prompter(tokenizer=making.prompter.tokenizer)
        marker = opening(prompter)
        # of the last two positions one has a true next token
        least = max(3, len(marker) + 1)
        if making.length < least:
            raise InputError(
                f"{self.name} compares predictions of true next tokens, and needs {least} tokens"
                f" for that, got {making.length}; pass a larger length"
            )
        offset = rotation(making.haystack, making.index, making.seed)
        filler = read_filler(prompter, making.haystack, offset, making.length - len(marker))
        ids = [*marker, *filler.ids]
        positions = min(POSITIONS, len(ids) - 1)
        # the last position's token is not known: the text ends there
        following = torch.tensor([*ids[len(ids) - positions + 1 :], -1])

        full: Predicted | None = None  # read once for all methods of the sample

        def measure(reader: Reader, method: Method) -> Outcome:
            nonlocal full
            told = reader.compare(method, ids, positions=positions, new_tokens=GREEDY, full=full)
            full, own = told.full, told.own
            whole = summarise(compare_rows(full.logits, own.logits))
            known = summarise(compare_rows(full.logits[:-1], own.logits[:-1], following[:-1]))
            apart = first_divergence(full.answer, own.answer)
            values = {
                **{name: figure for name, figure in asdict(whole).items() if figure is not None},
                "delta_p_rms": known.delta_p_rms,
                "perplexity_ratio": known.perplexity_ratio,
                "same_greedy_tokens": float(len(own.answer) if apart is None else apart),
                **_of_heads(told.heads),
            }
            return Outcome(
                tokens=len(ids),
                prefill=told.prefill,
                answer=prompter.decode(own.answer),
                references=(prompter.decode(full.answer),),
                values={
                    name: float(figure) for name, figure in values.items() if figure is not None
                },
                recipe={"offset": filler.offset, "passes": filler.passes},
                new_tokens=GREEDY,
            )

        return measure


def _of_heads(heads: Heads) -> dict[str, float]:
    """Name the figures of heads `NAME/LAYER/HEAD`, and the means of what they lost.

    A method that leaves nothing out has no figures of single heads.
    """
    means = {"recall": heads.recall, "output_error": heads.output_error}
    values = {name: float(own.mean()) for name, own in means.items()}
    if bool((heads.density < 1).any()):
        for name, own in heads._asdict().items():
            for layer, of_layer in enumerate(own.tolist()):
                for head, figure in enumerate(of_layer):
                    values[f"{name}/{layer}/{head}"] = round(figure, DIGITS)
    return values
