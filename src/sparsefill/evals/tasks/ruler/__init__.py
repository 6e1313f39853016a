"""RULER (Hsieh et al. 2024, arXiv:2404.06654): 13 tasks, by the rules of its authors.

Written anew; the wording of prompts, which defines the tasks, is that of NVIDIA/RULER
(Apache-2.0). Where this differs from theirs: every sample has randomness of its own (theirs lay
all samples out alike, as `Making.one_layout` asks for), keys and values are never drawn twice,
prompts grow by single units of filler, and sentences end where a regular expression says.
"""

from sparsefill.evals.scoring import score_all, score_part
from sparsefill.evals.task import Make, Score, Task
from sparsefill.evals.tasks.ruler import cwe, fwe, niah, qa, qa_files, qa_synthetic, vt


def _task(name: str, new_tokens: int, make: Make, score: Score = score_all, **own: bool) -> Task:
    """Describe a task; answers are scored by what they contain, and so settle."""
    return Task(
        name=f"ruler/{name}", new_tokens=new_tokens, make=make, score=score, settled=score, **own
    )


RULER = {
    task.name: task
    for task in (
        *(_task(name, niah.NEW_TOKENS, make) for name, make in niah.NIAH.items()),
        _task("vt", vt.NEW_TOKENS, vt.make_vt),
        _task("cwe", cwe.NEW_TOKENS, cwe.make_cwe),
        _task("fwe", fwe.NEW_TOKENS, fwe.make_fwe),
        _task("qa_1", qa.NEW_TOKENS, qa_files.qa_1, score_part, offline=False),
        _task("qa_2", qa.NEW_TOKENS, qa_files.qa_2, score_part, offline=False),
    )
}
SYNTHETIC = tuple(name for name, task in RULER.items() if task.offline)  # 11 of them
QA_SYNTHETIC = _task(  # none of the 13: reported apart
    "qa_synthetic", qa.NEW_TOKENS, qa_synthetic.make_qa_synthetic, score_part
)
