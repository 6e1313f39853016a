"""Scores of free answers: F1 of words, of Chinese characters, and ROUGE of summaries."""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence

from sparsefill.errors import UnsupportedError

# First and last code points of the benchmark's own list, which has the closing mark U+300B
# without the opening one, and no full-width full stop, U+FF0E.
_CHINESE = (
    *((0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027)),  # dashes, quotes
    *((0x3001, 0x3003), (0x300B, 0x3011), (0x3014, 0x301F)),  # commas, full stops, brackets
    *((0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F)),  # wavy lines, marks
    *((0xFF01, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20)),  # ASCII's, at full width,
    *((0xFF3B, 0xFF40), (0xFF5B, 0xFF64)),  # and four of half width
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = _NO_PUNCTUATION | {
    code: None for first, last in _CHINESE for code in range(first, last + 1)
}


def word_f1(said: str, references: Sequence[str]) -> float:
    """Score En.QA: the best F1 of words, in small letters, without punctuation and articles.

    Example:
        >>> word_f1("The old mill.", ["a mill", "barn"])
        0.6666666666666666
    """
    words = _words(said)
    return max(_f1(words, _words(reference)) for reference in references)


def character_f1(said: str, references: Sequence[str]) -> float:
    """Score Zh.QA: the best F1 of characters, without punctuation and spaces.

    Example:
        >>> character_f1("他在 上海。", ["上海"])
        0.6666666666666666
    """
    characters = _characters(said)
    return max(_f1(characters, _characters(reference)) for reference in references)


def summary_overlap(said: str, references: Sequence[str]) -> float:
    """Score En.Sum: the best F1 of rougeLsum, lines taken for sentences, words as they are.

    Raises:
        UnsupportedError: the package rouge-score is not installed.
    """
    try:
        rouge = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise UnsupportedError(
            "infinitebench/longbook_sum_eng is scored with the package rouge-score, which cannot"
            ' be imported; run pip install "sparsefill[eval]"'
        ) from error
    scorer = rouge.RougeScorer(["rougeLsum"], use_stemmer=False)
    scores = [scorer.score(reference, said)["rougeLsum"] for reference in references]
    return float(max(score.fmeasure for score in scores))


def _words(text: str) -> list[str]:
    plain = text.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _characters(text: str) -> list[str]:
    return list("".join(text.lower().translate(_NO_CHINESE_PUNCTUATION).split()))


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right)) if common else 0.0
