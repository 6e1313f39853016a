"""Which module may import which: the dependency direction of DESIGN.md, as code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsefill

SOURCE = Path(sparsefill.__file__).parent

MAY_IMPORT = {  # arrows are transitive
    "": {"attention"},  # the package itself only re-exports
    "cli": {
        "evals",
        "engine",
        "search",
        "integrations",
        "draw",
        "heatmap",
        "minference",
        "environment",
        "atomic",
        "data",
    },
    "evals": {"attention", "profile", "metrics", "reader", "data", "atomic", "strict_json"},
    "engine": {"integrations", "strict_json", "atomic"},
    "search": {"attention", "profile", "metrics", "static"},
    "integrations": {"attention", "profile", "metrics", "cost", "static", "reader"},
    "integrations.lm_eval": {"integrations", "evals"},
    "reader": {"profile"},
    "attention": {"estimate", "kernels", "_checks"},
    "estimate": {"index", "patterns", "density", "abi", "gpu"},
    "kernels": {"index", "abi", "memory", "gpu"},
    "kernels.__init__": {"kernels", "_checks"},
    "cost": {"patterns"},
    "static": {"index"},
    "metrics": {"index", "density"},
    "draw": {"index"},
    "heatmap": {"draw", "profile"},
    "minference": {"profile"},
    "profile": {"patterns", "atomic", "architecture", "strict_json"},
    "architecture": {"errors"},
    "strict_json": {"errors"},
    "density": {"index", "abi"},
    "from_mask": {"index"},
    "index": {"errors", "from_mask"},  # from_mask inside the method of that name only
    "patterns": {"errors"},
    "_checks": {"abi"},
    "errors": set(),
    "abi": {"native", "errors"},
    "native": {"errors"},
    "gpu": set(),
    "environment": set(),
    "atomic": set(),
    "memory": set(),
    "profiles": set(),  # data files
    "data": set(),  # texts
    "tile": set(),  # a constant: everyone may import it
}
LATE = {"": {"engine"}}  # shown by __getattr__ alone, and nothing beyond it
ONLY_IN = {  # optional packages, and the modules named after them
    "triton": ("gpu.scores", "estimate.triton", "kernels.triton"),
    "transformers": ("integrations.transformers", "engine.cache", "engine.inside"),
    "greenlet": ("engine.lockstep",),
    "vllm": ("integrations.vllm",),
    "prometheus_client": ("integrations.vllm.metrics",),
    "lm_eval": ("integrations.lm_eval",),
    "matplotlib": ("draw", "heatmap", "cli"),
    "typer": ("cli",),
    "rich": ("cli",),
}
STANDARD_LIBRARY_ONLY = (
    "patterns",
    "errors",
    "tile",
    "atomic",
    "native",
    "profile",
    "architecture",
    "strict_json",
    "minference",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {module_name(path): path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def imports(module: str, source: str) -> Iterator[str]:
    """Yield every imported module by full name, wherever in the file the import stands."""
    package = ["sparsefill", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix("sparsefill.")
                known = {inside, f"{inside}.__init__"} & set(MODULES)
                yield f"{base}.{alias.name}" if known else base


def reachable(row: str) -> set[str]:
    found, ahead = set(), {row}
    while ahead:
        found |= ahead
        ahead = {to for name in ahead for to in MAY_IMPORT[name]} - found
    return found


def row_of(module: str) -> str:
    """Return the row of the table that a module, named without `sparsefill.`, belongs to."""
    return module if module in MAY_IMPORT else module.split(".")[0].removeprefix("__init__")


def violations(module: str, source: str) -> list[str]:
    """List the imports of a module that the rules above forbid."""
    row, found = row_of(module), []
    for name in imports(module, source):
        top, _, inside = name.partition(".")
        to = row_of(inside)
        if top != "sparsefill":
            places = ONLY_IN.get(top, ("",))
            allowed = any(f"{module}.".startswith(f"{p}." if p else "") for p in places)
            if row in STANDARD_LIBRARY_ONLY:
                allowed = top in sys.stdlib_module_names
        elif row == "kernels":  # a backend: its own folder, never another one or the oracle
            own = ".".join(module.split(".")[:2])
            same_folder = f"{inside}.".startswith(f"{own}.")
            allowed = same_folder or to in (reachable("kernels") | {"tile"}) - {"kernels"}
        else:
            allowed = to in reachable(row) | LATE.get(row, set()) | {"tile"}
        if not allowed:
            found.append(f"{module} imports {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str):
    assert row_of(module) in MAY_IMPORT, f"{module} needs a row in MAY_IMPORT"
    assert not violations(module, MODULES[module])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("estimate.a_shape", "from sparsefill.kernels import attend"),
        ("estimate.a_shape", "from ..kernels import attend"),
        ("kernels.torch", "from sparsefill.estimate import estimate"),
        ("kernels.torch", "from sparsefill.kernels import reference"),
        ("kernels.torch", "import sparsefill.kernels.dense"),
        ("kernels.torch", "from . import reference"),
        ("kernels.reference", "from sparsefill._checks import check_qkv"),
        ("index", "from sparsefill.patterns import Dense"),
        ("tile", "from sparsefill.errors import ShapeError"),
        ("patterns", "import torch"),
        ("attention", "def late():\n    import sparsefill.profile"),
        ("metrics", "from sparsefill.attention import sparse_attention"),
        ("integrations.transformers.hook", "from sparsefill.cli import main"),
        ("attention", "import transformers"),
        ("attention", "from sparsefill.engine import prefill"),
        ("integrations.transformers.hook", "from sparsefill.engine.whole import SideBySide"),
        ("engine.store", "from transformers import Cache"),
        ("engine.reading", "from greenlet import greenlet"),
        ("integrations.vllm.heads", "from transformers import AutoConfig"),
        ("integrations.vllm.heads", "from prometheus_client import REGISTRY"),
        ("integrations.transformers.hook", "from vllm.config import VllmConfig"),
        ("kernels.cpu", "from sparsefill.integrations.vllm.plan import Chunk"),
        ("integrations.transformers.hook", "import lm_eval"),
        ("integrations.transformers.hook", "from sparsefill.evals.task import Task"),
        ("evals.task", "from lm_eval.api.task import ConfigurableTask"),
        ("evals.task", "from sparsefill.integrations.lm_eval import write_tasks"),
        ("kernels.torch", "import triton.language as tl"),
        ("metrics", "from rich.console import Console"),
        ("metrics", "import matplotlib.pyplot"),
        ("__init__", "from sparsefill.profile import Profile"),
    ],
)
def test_a_wrong_import_is_seen(module: str, line: str):
    assert violations(module, line)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kernels.triton.block_sparse", "from sparsefill.kernels.triton.tiles import load_tile"),
        ("kernels.triton.block_sparse", "import triton"),
        ("kernels.__init__", "from sparsefill._checks import check_qkv"),
        ("integrations.transformers.hook", "from sparsefill.kernels.dense import dense_attention"),
        ("cli.info", "from sparsefill.kernels import BACKENDS"),
        ("index", "from sparsefill.tile import TILE"),
        ("integrations.lm_eval", "from sparsefill.evals.tasks import tasks_of"),
        ("integrations.vllm.cpu", "from vllm.config import get_current_vllm_config"),
        ("integrations.lm_eval", "def late():\n    from lm_eval.models.huggingface import HFLM"),
    ],
)
def test_a_right_import_is_let_through(module: str, line: str):
    assert not violations(module, line)


def test_the_index_imports_its_companion_only_where_it_is_used():
    top = ast.Module(ast.parse(MODULES["index"]).body, [])
    direct = [ast.unparse(node) for node in top.body if isinstance(node, ast.ImportFrom)]
    assert not any("from_mask" in line for line in direct)


def test_the_package_imports_the_engine_only_when_it_is_asked_for():
    late = ("if TYPE_CHECKING:", "def __getattr__")
    for node in ast.parse(MODULES["__init__"]).body:
        if "sparsefill.engine" in ast.unparse(node):
            assert ast.unparse(node).startswith(late)
