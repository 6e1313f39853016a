"""Bridge to EleutherAI's lm-evaluation-harness: our ways to read, and our tasks, under it.

An extra of its own (`pip install "sparsefill[lm-eval]"`): nothing else here needs the harness,
and `write_tasks` does not either. What lm-eval calls `ruler` and `infinitebench` are other
prompts and other scorers; only tasks written here are those of `sparsefill eval`.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError, UnsupportedError
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task
from sparsefill.evals.tasks import tasks_of
from sparsefill.integrations.transformers import Run, sparse_prefill
from sparsefill.kernels import BackendName
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile

log = logging.getLogger(__name__)

TAG = "sparsefill"  # all tasks written here, for `--tasks`
SCORES = "sparsefill_scores"  # the module beside the tasks that lm-eval imports
SCORES_SOURCE = '''"""What scores answers: the rules of `sparsefill eval`."""

from sparsefill.integrations.lm_eval import process_results

__all__ = ["process_results"]
'''
TASK = """\
# {what} at {length} tokens, as `sparsefill eval` makes it; {samples} samples.
# The score is 0 to 1, by that task's own rule (`scorer`), not by a rule of lm-eval: do not
# compare it with lm-eval's own tasks of a similar name.
task: {name}
tag: {tag}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
num_fewshot: 0
output_type: generate_until
doc_to_text: prompt
doc_to_target: references
process_results: !function {scores}.process_results
generation_kwargs:
  until: []  # an answer ends with the token that ends texts, or with its last token
  do_sample: false
  repetition_penalty: 1.0  # whatever the model's own settings say
  max_gen_toks: {new_tokens}
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
  scorer: {scorer}
"""


class SparseLM(NamedTuple):
    """A model as lm-eval calls it, and the record of what it reads."""

    lm: Any
    run: Run


@contextmanager
def sparse_lm(
    model: nn.Module,
    tokenizer: Any,
    pattern: Profile | Pattern | None = None,
    *,
    backend: BackendName = "auto",
    min_length: int | None = 1,
    **options: Any,
) -> Iterator[SparseLM]:
    """Make lm-eval's model of a loaded one; it reads prompts sparsely inside the `with` block.

    Decoding stays dense. Log-likelihood requests decode nothing: lm-eval reads context and
    continuation in one piece, so that the answers it judges are read sparsely too.

    Args:
        model: of transformers. On exit it is as it was.
        tokenizer: of the model. lm-eval gets a copy, for it sets a padding token.
        pattern: a profile, or one pattern for all heads; the default profile of the model's
            architecture when None. `Dense()` is the baseline through the same kernels.
        backend: which kernels attend.
        min_length: keys below which a layer stays dense; None so that heads stay dense where
            that is predicted to be faster.
        options: of lm-eval's `HFLM`. Prompts longer than its `max_length` lose their
            beginning; the default is what the model's config says. `add_bos_token=False` for
            tasks that were written with the chat template.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"sparse_lm needs lm-eval, but {error.name} is not installed;"
            " run: pip install 'sparsefill[lm-eval]'"
        ) from None
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **options)
    with sparse_prefill(model, pattern, backend=backend, min_length=min_length) as run:
        yield SparseLM(lm, run)


def write_tasks(
    folder: Path,
    names: Sequence[str],
    making: Callable[[str, int, int], Making],
    *,
    lengths: Sequence[int],
    samples: int,
    data: Path | None = None,
) -> list[str]:
    """Write tasks of `sparsefill eval` into a folder that lm-eval's `include_path` reads.

    For each task and length there is a YAML file, and a JSONL file with its prompts, rendered
    for one tokenizer and template: give lm-eval that tokenizer, no chat template and no
    few-shot examples. Answers are scored by the task's own scorer, which needs this package
    where lm-eval runs. The YAML files hold the folder's absolute path.

    Args:
        folder: made if need be; files of the same names are replaced.
        names: families or tasks, as `sparsefill eval` takes them (InfiniteBench by its official
            rules); of a family, those whose files are missing are left out with a warning.
        making: what samples are made from, by task, length and index.
        lengths: tokens of prompt and answer.
        samples: of each task and length.
        data: folder of the files that benchmarks publish, as in what `making` returns.

    Returns:
        the tasks' names for lm-eval, such as `sparsefill_ruler_vt_4096`; their tag is
        `sparsefill`.

    Raises:
        InputError: no such task, or one that is no question with an answer.
        UnsupportedError: lm-eval would not read the prompts as `sparsefill eval` does.
    """
    tasks, left_out = tasks_of(names, data=data)
    if unasked := [task.name for task in tasks if not isinstance(task, Task)]:
        raise InputError(
            f"tasks for lm-eval must have answers to score, got {', '.join(unasked)};"
            " run those with sparsefill eval"
        )
    if left_out:
        log.warning("left out, for want of the files of data=: %s", ", ".join(left_out))
    folder = folder.resolve()
    write_atomically(folder / f"{SCORES}.py", SCORES_SOURCE)
    written = []
    for task in tasks:
        for length in lengths:
            made = [making(task.name, length, index) for index in range(samples)]
            written.append(_write_task(folder, task, length, made))
    return written


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score one answer by the scorer of the task that its sample is of, 0 to 1.

    lm-eval calls this for each sample; it is no part of what users call.
    """
    (task,), _ = tasks_of([doc["task"]], data=Path())
    assert isinstance(task, Task)
    return {"score": task.score(results[0], doc["references"])}


def _write_task(folder: Path, task: Any, length: int, made: Sequence[Making]) -> str:
    """Write the samples and then the YAML of one task at one length; return its name."""
    prompts = [(own.prompter, task.sample(own)) for own in made]
    new_tokens = {sample.new_tokens for _, sample in prompts}
    if len(new_tokens) != 1:
        raise UnsupportedError(
            f"lm-eval knows one limit of answers for a task, {task.name} has {sorted(new_tokens)};"
            " run it with sparsefill eval"
        )
    name = f"{TAG}_{task.name.replace('/', '_').replace('-', '_')}_{length}"
    rows = [json.dumps(_row(*prompt), ensure_ascii=False) for prompt in prompts]
    write_atomically(folder / f"{name}.jsonl", "".join(f"{row}\n" for row in rows))
    settings = {
        "what": task.name,
        "name": name,
        "tag": TAG,
        "length": length,
        "samples": len(made),
        "data": _quoted(str(folder / f"{name}.jsonl")),
        "scores": SCORES,
        "new_tokens": new_tokens.pop(),
        "scorer": _quoted((inspect.getdoc(task.score) or task.name).partition("\n")[0]),
    }
    write_atomically(folder / f"{name}.yaml", TASK.format(**settings))
    return name


def _row(prompter: Prompter, sample: Sample) -> dict[str, Any]:
    """Return what lm-eval's task holds of a sample: plain columns, of one type in all rows."""
    text = prompter.text(sample)
    if prompter.template == "base":
        special = list(prompter.tokenizer.encode(text, add_special_tokens=True))
        if special != prompter.ids(sample):
            raise UnsupportedError(
                "the tokenizer marks the end of what it encodes, and lm-eval would leave that"
                " mark before the answer; run the task with sparsefill eval"
            )
    return {
        "task": sample.task,
        "length": sample.length,
        "index": sample.index,
        "prompt": text,
        "references": list(sample.references),
        "recipe": json.dumps(sample.recipe, sort_keys=True),
    }


def _quoted(text: str) -> str:
    """Write a text as YAML reads it: strings of JSON are some of YAML's."""
    return json.dumps(text, ensure_ascii=False)
