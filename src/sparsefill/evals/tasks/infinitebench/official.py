"""What InfiniteBench fixes: how many rows a task has, how large they are, how long an answer is."""

from __future__ import annotations

from math import gcd

from sparsefill.errors import InputError

GOLDEN = (5**0.5 - 1) / 2

ROWS = {
    "passkey": 590,
    "number_string": 590,
    "kv_retrieval": 500,
    "math_find": 350,
    "math_calc": 50,
    "code_run": 400,
    "code_debug": 394,
    "longdialogue_qa_eng": 200,
    "longbook_qa_eng": 351,
    "longbook_choice_eng": 229,
    "longbook_sum_eng": 103,
    "longbook_qa_chn": 175,
}
PAPER_TASKS = tuple(name for name in ROWS if name not in ("math_calc", "code_run"))

# Lines of noise, pairs, numbers, terms, functions. `script` is what the benchmark's public script
# says. `released` is what its files hold: 41 MB of 350 lists and 6 MB of 50 expressions are half of
# the script's, and 87.9 Ki and 43.9 Ki tokens, three a number, say the same; 83 MB of 400 programs
# and names up to 8741 (of 1 to twice the functions) are eight times the script's.
UNITS = {
    "released": {
        "passkey": 5220,
        "number_string": 5220,
        "kv_retrieval": 2500,
        "math_find": 30_000,
        "math_calc": 15_000,
        "code_run": 4400,
    },
    "script": {
        "passkey": 5220,
        "number_string": 5220,
        "kv_retrieval": 2500,
        "math_find": 60_000,
        "math_calc": 30_000,
        "code_run": 550,
    },
}
SIZES = ("fitted", *UNITS)

RULES = ("official", "minference")
ORDERS = ("file", "spread")
_ANSWERS = {  # tokens
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "math_find": 3,
    "math_calc": 30_000,
    "code_run": 5,
    "code_debug": 5,
    "longdialogue_qa_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_choice_eng": 40,
    "longbook_sum_eng": 1200,
    "longbook_qa_chn": 40,
}
LIMITS = {
    "official": _ANSWERS,
    "minference": _ANSWERS | {"passkey": 15, "number_string": 20, "kv_retrieval": 80},
}
SHORT_ANSWER = 500  # MInference's limit where the task's own would take the whole length


def choose(what: str, chosen: str, known: tuple[str, ...]) -> str:
    """Return a choice, or say which there are."""
    if chosen not in known:
        raise InputError(f"{what} must be one of {', '.join(known)}, got {chosen!r}")
    return chosen


def answer_limit(name: str, limits: str, length: int) -> int:
    """Return the most tokens of an answer, in a prompt and answer of `length` tokens.

    The official limits were made for 128K tokens. Where one would leave less than half of the
    length to the prompt, half is the limit: 30,000 tokens of Math.Calc at 4096, say.

    Example:
        >>> answer_limit("passkey", "minference", 131_072)
        15
        >>> answer_limit("math_calc", "official", 131_072)
        30000
        >>> answer_limit("math_calc", "official", 4096)
        2048
        >>> answer_limit("math_calc", "minference", 4096)
        500
    """
    limit = LIMITS[limits][name]
    if limits == "minference" and limit >= length:
        limit = SHORT_ANSWER
    return min(limit, length // 2)


def row_of(name: str, index: int) -> int:
    """Return which row of a task a sample asks for: any few of them lie all over its rows.

    Depths, targets and layers follow one another in a file, whose first 25 rows of PassKey are
    of three depths. Steps of the golden ratio of the rows visit every row once, however many
    samples there are; beyond all rows, generated tasks go on with new ones.

    Example:
        >>> [row_of("passkey", index) for index in range(5)]
        [0, 367, 144, 511, 288]
    """
    rows = ROWS[name]
    step = next(step for step in range(round(GOLDEN * rows), rows) if gcd(step, rows) == 1)
    return index // rows * rows + index * step % rows
