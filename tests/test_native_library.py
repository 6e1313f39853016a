"""The compiled library: found or missed with a reason, needing little, sharing no symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefill import native

CHECKER = Path(__file__).parents[1] / "tools" / "check_isa_symbols.py"
LIBC = re.compile(r"(libc|libm|libpthread|ld-linux.*|ld64|libc\.musl.*)\.so\.\d+")
INSIDE = "namespace sparsefill { namespace avx2 {"
SHARES_NOTHING = {  # what a kernel may be made of
    "in its namespace": f"{INSIDE} inline int f() {{ return 1; }} int g() {{ return f(); }} }} }}",
    "a template in it": f"{INSIDE} template <int n> int f() {{ static int x = n; return x++; }}"
    " int g() { return f<1>(); } } }",
    "static": "static int f() { return 1; } int g() { return f(); }",
    "unnamed": "namespace { inline int f() { return 1; } } int g() { return f(); }",
}
SHARES = {  # code, and the symbol that must be named
    "inline": ("inline int f() { return 1; } int g() { return f(); }", "f()"),
    "template": ("template <int n> int f() { return n; } int g() { return f<1>(); }", "f<1>()"),
    "variable": ("inline int x = 1; int* g() { return &x; }", ": x is"),
    "local variable": (
        "inline int f() { static int x; return ++x; } int g() { return f(); }",
        "f()::x",
    ),
    "another set's": (
        "namespace sparsefill { namespace avx2x { inline int f() { return 1; } } }"
        " int g() { return sparsefill::avx2x::f(); }",
        "sparsefill::avx2x::f()",
    ),
    "standard library": (
        "#include <vector>\nvoid g(std::vector<int>& x) { x.push_back(1); }",
        "std::vector<int",
    ),
}


def tool(*names: str) -> str:
    """Return the path of the first program that there is, or skip the test."""
    found = next(filter(None, map(shutil.which, names)), None)
    if sys.platform != "linux" or found is None:
        pytest.skip(f"needs Linux and one of {', '.join(names)}")
    return found


def output(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def library() -> Path:
    """Return the path of the compiled library, or skip the test."""
    path = native._find()
    if path is None:
        pytest.skip(native.missing_reason() or "")
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the package look for its library in an empty folder."""

    def missing(name: str) -> str:
        raise native.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native.metadata, "distribution", missing)
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)  # the loaded one stays cached
    return tmp_path


def test_loads(library: Path):
    loaded = native.library()
    assert loaded is not None
    assert native.missing_reason() is None
    assert loaded.sparsefill_abi_version() == native.ABI_VERSION
    assert native.library() is loaded


def test_is_found_where_pip_installed_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    class Installed:
        def locate_file(self, path: str) -> Path:
            return elsewhere / "site-packages" / path

    installed = Installed().locate_file("sparsefill") / native.FILE_NAME
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(native.metadata, "distribution", lambda _: Installed())
    assert native._find() == installed


def test_nothing_is_loaded_at_import():
    if sys.platform != "linux":
        pytest.skip("needs Linux: what is loaded is read from /proc")
    code = "import sparsefill; print(open('/proc/self/maps').read())"
    assert native.FILE_NAME not in output(sys.executable, "-c", code)


def test_an_installation_without_kernels_says_what_to_do(elsewhere: Path):
    assert native.library() is None
    reason = native.missing_reason() or ""
    assert "no compiled kernels" in reason
    assert "apt install g++" in reason
    assert "--no-cache-dir" in reason


def test_a_broken_library_says_what_the_loader_said(elsewhere: Path):
    broken = elsewhere / native.FILE_NAME
    broken.write_bytes(b"not a library")
    assert native.library() is None
    reason = native.missing_reason() or ""
    assert "cannot be loaded" in reason
    assert reason.count(str(broken)) == 2  # ours, and the loader's own message
    assert "reinstall" in reason


def test_a_library_of_another_version_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch):
    came = native.ABI_VERSION
    monkeypatch.setattr(native, "ABI_VERSION", came + 1)
    found, reason = native._load.__wrapped__()
    assert found is None
    assert f"{library} must have ABI version {came + 1}, got {came}" in (reason or "")


def test_a_library_of_something_else_is_refused(elsewhere: Path):
    source = elsewhere / "other.cc"
    source.write_text('extern "C" int other() { return 1; }', "utf-8")
    compiler = tool("c++", "g++", "clang++")
    output(compiler, "-shared", "-fPIC", source, "-o", elsewhere / native.FILE_NAME)
    assert native.library() is None
    assert "got None" in (native.missing_reason() or "")


def test_needs_nothing_but_libc(library: Path):
    dynamic = output(tool("readelf"), "-d", library)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    foreign = [name for name in needed if not LIBC.fullmatch(name)]
    assert not foreign, "install the static libstdc++ and libgcc of the compiler, and reinstall"
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_exports_only_its_own_functions(library: Path):
    listing = output(tool("nm"), "-D", "--defined-only", library)
    names = [line.split()[-1] for line in listing.splitlines()]
    assert "sparsefill_abi_version" in names
    assert all(name.startswith("sparsefill_") for name in names)


def check(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Compile code, and check the object as the build does."""
    tool("nm")
    source = folder / "kernels.cc"
    source.write_text(code, "utf-8")
    built = folder / "kernels.o"
    output(tool("c++", "g++", "clang++"), "-std=c++17", "-c", source, "-o", built)
    command = [sys.executable, str(CHECKER), "avx2", str(built)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", SHARES_NOTHING.values(), ids=SHARES_NOTHING)
def test_objects_that_share_no_symbols_pass(code: str, tmp_path: Path):
    done = check(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("code", "symbol"), SHARES.values(), ids=SHARES)
def test_objects_that_share_symbols_are_refused(code: str, symbol: str, tmp_path: Path):
    done = check(tmp_path, code)
    assert done.returncode == 1
    assert symbol in done.stderr
    assert "inside sparsefill::avx2" in done.stderr
