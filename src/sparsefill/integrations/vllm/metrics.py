"""Counts, from the processes that attend to the one that serves `/metrics`.

Each rank that counts writes a small file; the server's collector adds them up when asked. The
folder is named in the environment, which vLLM's processes inherit, and made by the first count.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsefill.atomic import write_atomically

FOLDER = "SPARSEFILL_VLLM_METRICS"  # environment variable
PROMPTS = {"sparse": "prompts_sparse", "dense": "prompts_dense"}
SUMMARIES = {
    "density": "Share of the causal cells that were computed, of prompts read sparsely",
    "recall": "Attention mass kept by queries read sparsely, of prompts that were measured",
}
log = logging.getLogger("vllm.sparsefill")
_serving = False


def serve() -> None:
    """Have this process tell what its children count, if it is asked for metrics."""
    global _serving
    if FOLDER not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"sparsefill-vllm-{secrets.token_hex(8)}"
        os.environ[FOLDER] = str(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not _serving:
        from prometheus_client import REGISTRY

        REGISTRY.register(Totals())
        _serving = True


class Counts:
    """What one process counted, kept in a file of its own."""

    def __init__(self) -> None:
        self.values: defaultdict[str, float] = defaultdict(float)
        self.warned = False

    def add(self, *, density: float | None, recall: float | None) -> None:
        """Count a prompt; `density` is None if none of it was read sparsely."""
        self.values[PROMPTS["dense" if density is None else "sparse"]] += 1
        for name, value in (("density", density), ("recall", recall)):
            if value is not None:
                self.values[f"{name}_sum"] += value
                self.values[f"{name}_count"] += 1
        try:
            self._write()
        except OSError as error:  # a full disk ends the counting, not the serving
            if not self.warned:
                log.warning("sparsefill: /metrics lacks prompts: %s", error)
            self.warned = True

    def _write(self) -> None:
        folder = Path(os.environ[FOLDER])
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / f"{os.getpid()}.json", json.dumps(self.values))


@functools.cache
def counts() -> Counts:
    """Return what this process counted."""
    return Counts()


class Totals:
    """Collects for Prometheus what all processes counted."""

    def collect(self) -> Iterator[Any]:
        """Yield the sums; nothing as long as nothing was counted."""
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        total: Counter[str] = Counter()  # 0 for what was never counted
        for path in sorted(Path(os.environ[FOLDER]).glob("*.json")):
            total.update(json.loads(path.read_text("utf-8")))
        if not total:
            return
        prompts = CounterMetricFamily(
            "sparsefill:prompts", "Prompts by how they were read", labels=["path"]
        )
        for label, name in PROMPTS.items():
            prompts.add_metric([label], total[name])
        yield prompts
        for name, about in SUMMARIES.items():
            yield SummaryMetricFamily(
                f"sparsefill:{name}", about, total[f"{name}_count"], total[f"{name}_sum"]
            )
