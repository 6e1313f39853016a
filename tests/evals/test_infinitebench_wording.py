"""Prompts are the benchmark's own, to the letter (quoted from InfiniteBench, MIT licence)."""

from __future__ import annotations

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.tasks.infinitebench.official import ROWS
from sparsefill.evals.tasks.infinitebench.row import Row
from sparsefill.evals.tasks.infinitebench.wording import render

ASKED = {  # the row's own question, where the prompt shows it
    "passkey": "What is the pass key?",
    "number_string": "What is the sequence of digits?",
    "kv_retrieval": '\nKey: "a1"\nThe value associated with the specified key is: ',
    "math_find": "You should answer with only one number, no other words."
    " The second largest number of the list is: ",
    "code_run": "Please give me the exact number of the return value of func_17(-4). Your response"
    " should end with the sentence 'The return value is:'.",
    "longbook_qa_chn": "谁\N{FULLWIDTH QUESTION MARK}",
}
PROMPTS = {
    "passkey": "There is an important info hidden inside a lot of irrelevant text. Find it and"
    " memorize it. I will quiz you about the important information.\n\n{{x}}\n\nWhat is the pass"
    " key?\n\n|The pass key is",
    "number_string": "There is an important info hidden inside a lot of irrelevant text. Find it."
    " I will quiz you about the important information there.\n\n{{x}}\n\nWhat is the sequence of"
    " digits?\n\n|The sequence of digits is",
    "kv_retrieval": "Extract the value corresponding to the specified key in the JSON object"
    ' below.\n\n{{x}}\n\n\nKey: "a1"\n|The value associated with the specified key is: ',
    "math_find": "What is the second largest number in the following list?\n\n{{x}}\n\nYou should"
    " answer with only one number, no other words. |The second largest number of the list is: ",
    "math_calc": "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3"
    " + 4\nValues: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression:"
    " {{x}}\n|Values:",
    "code_run": "There is a function called func_17 in the following Python code.\n\n{{x}}\n\n"
    "Please compute the exact value of func_17(-4). |The value of func_17(-4) is",
    "code_debug": "Following is a Python code where exactly one of the functions/methods has a"
    " deliberate error that makes it crash.\n\n{{x}}\n\nOptions:\nA. o1\nB. o2\nC. o3\nD. o4\n\n"
    "|The correct option is:",
    "longdialogue_qa_eng": "Below is a dialogue script where one random occurrence of a character"
    ' name is replaced with "$$MASK$$", and you should try to guess who that character is.\n\n'
    "{{x}}\n\n|The name that has been replaced with $$MASK$$ is likely",
    "longbook_qa_eng": "Read the book and answer the question. Be very concise in your answer.\n\n"
    "{{x}}\n\nQuestion: Who?\n|Answer:",
    "longbook_choice_eng": "Read the book and answer the question.\n\n{{x}}\n\nQuestion: Who?\n"
    "A. o1\nB. o2\nC. o3\nD. o4\n\n|The letter of the correct answer is",
    "longbook_sum_eng": "Summarize the book below.\n\n{{x}}\n\n|Summary:",
    "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n{{x}}\n\n"
    "问题\N{FULLWIDTH COLON}谁\N{FULLWIDTH QUESTION MARK}\n|答案\N{FULLWIDTH COLON}",
}


@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_quoted(name: str):
    """A context with braces is left alone."""
    question = ASKED.get(name, "Who?")
    row = Row(context="{{x}}", input=question, answer=("?",), options=("o1", "o2", "o3", "o4"))
    assert "|".join(render(name, row)) == PROMPTS[name]


@pytest.mark.parametrize("name", ["math_find", "code_run"])
def test_a_question_that_asks_for_nothing_is_refused(name: str):
    with pytest.raises(InputError, match="the question must contain"):
        render(name, Row(context="x", input="The what?", answer=("?",)))
