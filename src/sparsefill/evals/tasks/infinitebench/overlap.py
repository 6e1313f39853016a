"""Scores of free answers: F1 of words, of Chinese characters, and ROUGE of summaries."""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence

from sparsefill.errors import UnsupportedError

# The benchmark's own list, which has the closing mark 》 without the opening one.
_CHINESE = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: E501, RUF001
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE)


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
