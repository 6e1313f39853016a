"""InfiniteBench (Zhang et al. 2024, arXiv:2402.13718), by its own rules or those of MInference.

Six of its tasks are drawn here, by the benchmark's recipes; six read its files.
"""

from sparsefill.evals.tasks.infinitebench.official import PAPER_TASKS, ROWS, row_of
from sparsefill.evals.tasks.infinitebench.scoring import mean_of_ten
from sparsefill.evals.tasks.infinitebench.tasks import infinitebench_tasks

__all__ = ["PAPER_TASKS", "ROWS", "infinitebench_tasks", "mean_of_ten", "row_of"]
