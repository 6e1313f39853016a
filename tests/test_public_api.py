"""What is public, and that all of it says what it takes, gives and is for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsefill

SOURCE = Path(sparsefill.__file__).parent
PATTERNS = {
    "AShape",
    "BlockTopK",
    "Dense",
    "FixedSlash",
    "InfLLM",
    "Interleaved",
    "Pattern",
    "TriShape",
    "VerticalSlash",
}
ERRORS = {
    "InputError",
    "PatternError",
    "ProfileError",
    "ShapeError",
    "SparsefillError",
    "UnsupportedError",
}
STAGES = {
    "Attended",
    "SparseIndex",
    "attend",
    "engine_prefill",
    "estimate",
    "prefill",
    "sparse_attention",
}
POSITIONAL = {  # everything after the tensors and what the call is about is keyword-only
    "sparse_attention": ["q", "k", "v", "pattern"],
    "attend": ["q", "k", "v", "index"],
    "estimate": ["pattern", "q", "k"],
    "engine_prefill": ["model", "pattern"],
    "prefill": ["model", "input_ids", "pattern"],
}
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Documented]]:
    """Yield public functions, classes and their methods, with names."""
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}.{node.name}")


MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): ast.parse(
        path.read_text("utf-8")
    )
    for path in sorted(SOURCE.rglob("*.py"))
}
EVERYTHING = dict(item for name, tree in MODULES.items() for item in public(tree.body, name))


def test_exports_exactly_these_names():
    assert set(sparsefill.__all__) == PATTERNS | ERRORS | STAGES
    assert sparsefill.__all__ == sorted(sparsefill.__all__)
    assert all(hasattr(sparsefill, name) for name in sparsefill.__all__)
    assert sparsefill.__version__[0].isdigit()


def test_is_typed():
    assert (SOURCE / "py.typed").read_text() == ""


@pytest.mark.parametrize("name", POSITIONAL)
def test_options_are_keywords(name: str):
    parameters = inspect.signature(getattr(sparsefill, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONAL[name]
    others = {p.kind for p in parameters if p.name not in positional}
    assert others <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", sorted(PATTERNS - {"Pattern"} | STAGES - {"Attended"}))
def test_what_is_exported_shows_an_example(name: str):
    exported = getattr(sparsefill, name)
    example = exported.to_mask if name == "SparseIndex" else exported
    assert ">>> " in (inspect.getdoc(example) or "")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str):
    assert ast.get_docstring(MODULES[name])


def is_kernel(node: Documented) -> bool:
    """Tell whether a function is Triton's: its arguments are typed by what is launched."""
    names = ("triton.jit", "gluon.jit", "gluon.constexpr_function")
    return any(n in ast.unparse(d) for d in node.decorator_list for n in names)


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_public_has_a_docstring_and_annotations(name: str):
    node = EVERYTHING[name]
    assert ast.get_docstring(node), f"{name} has no docstring"
    if isinstance(node, ast.ClassDef) or is_kernel(node):
        return
    assert node.returns is not None, f"{name} does not say what it returns"
    own = node.args
    given = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
    bare = [a.arg for a in given if a and a.annotation is None and a.arg not in ("self", "cls")]
    assert not bare, f"{name} does not annotate {bare}"


def test_the_check_above_sees_the_package():
    assert len(EVERYTHING) > 60
    assert "sparsefill.kernels.torch.attend" in EVERYTHING
    assert "sparsefill.index.SparseIndex.to_mask" in EVERYTHING
