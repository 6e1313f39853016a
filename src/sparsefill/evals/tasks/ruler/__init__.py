"""RULER (Hsieh et al. 2024, arXiv:2404.06654): 13 tasks, by the rules of its authors.

Written anew; the wording of prompts, which defines the tasks, is that of NVIDIA/RULER
(Apache-2.0). Where this differs from theirs: every sample has randomness of its own (theirs lay
all samples out alike, as `Making.one_layout` asks for), keys and values are never drawn twice,
prompts grow by single units of filler, and sentences end where a regular expression says.
"""

from sparsefill.evals.scoring import score_all, score_part
from sparsefill.evals.task import Task
from sparsefill.evals.tasks.ruler import cwe, fwe, niah, qa, qa_files, qa_synthetic, vt

RULER = {
    task.name: task
    for task in (
        *(
            Task(name=f"ruler/{name}", new_tokens=niah.NEW_TOKENS, make=make, score=score_all)
            for name, make in niah.NIAH.items()
        ),
        Task(name="ruler/vt", new_tokens=vt.NEW_TOKENS, make=vt.make_vt, score=score_all),
        Task(name="ruler/cwe", new_tokens=cwe.NEW_TOKENS, make=cwe.make_cwe, score=score_all),
        Task(name="ruler/fwe", new_tokens=fwe.NEW_TOKENS, make=fwe.make_fwe, score=score_all),
        *(
            Task(
                name=name,
                new_tokens=qa.NEW_TOKENS,
                make=make,
                score=score_part,
                offline=False,
            )
            for name, make in (("ruler/qa_1", qa_files.qa_1), ("ruler/qa_2", qa_files.qa_2))
        ),
    )
}
SYNTHETIC = tuple(name for name, task in RULER.items() if task.offline)  # 11 of them
QA_SYNTHETIC = Task(  # none of the 13: reported apart
    name="ruler/qa_synthetic",
    new_tokens=qa.NEW_TOKENS,
    make=qa_synthetic.make_qa_synthetic,
    score=score_part,
)
