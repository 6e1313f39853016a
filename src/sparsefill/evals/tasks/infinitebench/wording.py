"""The benchmark's prompts, those of its yarn-mistral family, which MInference uses for all models.

The texts define the benchmark and are quoted from InfiniteBench (OpenBMB, MIT licence). What ends a
prompt and begins the answer is apart: with a chat template it belongs to the assistant's turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsefill.errors import InputError
from sparsefill.evals.tasks.infinitebench.row import Row

_OPTIONS = "A. {a}\nB. {b}\nC. {c}\nD. {d}"


@dataclass(frozen=True)
class Wording:
    """What stands around a context.

    Args:
        before: up to the context.
        after: from the context to the lead-in.
        lead: what an answer begins with.
    """

    before: str
    after: str
    lead: str


WORDING = {
    "passkey": Wording(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize"
        " it. I will quiz you about the important information.\n\n",
        "\n\n{input}\n\n",
        "The pass key is",
    ),
    "number_string": Wording(
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz"
        " you about the important information there.\n\n",
        "\n\n{input}\n\n",
        "The sequence of digits is",
    ),
    "kv_retrieval": Wording(
        "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        "\n\n{question}",
        "{lead}",
    ),
    "math_find": Wording("What is {target} in the following list?\n\n", "\n\n{question}", "{lead}"),
    "math_calc": Wording(
        "Let us calculate the intermediate values of an expression.\n\n"
        "Expression: 1 + 3 + 4\nValues: [1, 4, 8]\n\n"
        "Expression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: ",
        "\n",
        "Values:",
    ),
    "code_run": Wording(
        "There is a function called {function} in the following Python code.\n\n",
        "\n\nPlease compute the exact value of {call}. ",
        "The value of {call} is",
    ),
    "code_debug": Wording(
        "Following is a Python code where exactly one of the functions/methods has a deliberate"
        " error that makes it crash.\n\n",
        f"\n\nOptions:\n{_OPTIONS}\n\n",
        "The correct option is:",
    ),
    "longdialogue_qa_eng": Wording(
        "Below is a dialogue script where one random occurrence of a character name is replaced"
        ' with "$$MASK$$", and you should try to guess who that character is.\n\n',
        "\n\n",
        "The name that has been replaced with $$MASK$$ is likely",
    ),
    "longbook_qa_eng": Wording(
        "Read the book and answer the question. Be very concise in your answer.\n\n",
        "\n\nQuestion: {input}\n",
        "Answer:",
    ),
    "longbook_choice_eng": Wording(
        "Read the book and answer the question.\n\n",
        f"\n\nQuestion: {{input}}\n{_OPTIONS}\n\n",
        "The letter of the correct answer is",
    ),
    "longbook_sum_eng": Wording("Summarize the book below.\n\n", "\n\n", "Summary:"),
    "longbook_qa_chn": Wording(
        "阅读以下书籍然后回答问题。\n\n",
        "\n\n问题\N{FULLWIDTH COLON}{input}\n",
        "答案\N{FULLWIDTH COLON}",
    ),
}


def render(name: str, row: Row) -> tuple[str, str]:
    r"""Return the prompt of a row, and how its answer begins.

    Example:
        >>> row = Row(context="Once upon a time", input="", answer=("There",))
        >>> render("longbook_sum_eng", row)
        ('Summarize the book below.\n\nOnce upon a time\n\n', 'Summary:')
    """
    wording, fields = WORDING[name], _fields(name, row)
    before, after = wording.before.format(**fields), wording.after.format(**fields)
    return before + row.context + after, wording.lead.format(**fields)


def _fields(name: str, row: Row) -> dict[str, str]:
    """Name what the wording of a task asks for."""
    fields = {"input": row.input} | dict(zip("abcd", row.options, strict=False))
    if name in ("kv_retrieval", "math_find"):  # the row's own question ends with the lead-in
        begins = row.input.rindex("The ")
        fields |= {"question": row.input[:begins], "lead": row.input[begins:]}
    if name == "math_find":
        fields["target"] = _found(r"The .+ of", row.input).lower()[: -len(" of")]
    if name == "code_run":
        fields["call"] = _found(r"func_[0-9]+\(-?[0-9]+\)", row.input)
        fields["function"] = fields["call"].partition("(")[0]
    return fields


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise InputError(f"the question must contain {pattern!r}, got {text!r}")
    return match[0]
