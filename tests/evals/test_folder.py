"""A run's folder is one process's; what a kill or a full disk leaves there is gone on from."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparsefill.atomic import scratch_of, write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.folder import LOCK, hold
from sparsefill.evals.ledger import Ledger
from sparsefill.evals.manifest import MANIFEST
from sparsefill.evals.results import load_run
from sparsefill.evals.rows import SAMPLES, Key
from sparsefill.evals.task import Outcome
from tests.evals.support import TOOK
from tests.support.runs import ENVIRONMENT, MANIFEST_OF_ALL

HOLDING = """
import sys, time
from pathlib import Path
from sparsefill.evals.folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
DYING = """
import os, sys
from pathlib import Path
from sparsefill.atomic import write_atomically
os.replace = lambda *_: os._exit(0)
write_atomically(Path(sys.argv[1]), "{")
"""
KEY = Key(task="ruler/vt", length=4096, index=0, method="full")
OUTCOME = Outcome(tokens=4000, prefill=TOOK, score=1.0, answer="yes")


def python(code: str, path: Path) -> tuple[list[str], dict[str, str]]:
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return [sys.executable, "-c", code, str(path)], there


@contextmanager
def another_process(folder: Path) -> Iterator[None]:
    """Hold a folder from another process, which is killed when this is left."""
    command, there = python(HOLDING, folder)
    with subprocess.Popen(command, env=there, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            yield
        finally:
            other.kill()


def test_a_folder_is_one_process_s(tmp_path: Path):
    folder = tmp_path / "run"
    said = f"another process is measuring into {folder}; wait"
    with another_process(folder), pytest.raises(InputError, match=said):
        hold(folder).__enter__()
    with hold(folder):  # a lock ends with its process, however that ends
        pass


def test_a_folder_is_held_until_it_is_left(tmp_path: Path):
    with hold(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        hold(tmp_path / "run").__enter__()
    with pytest.raises(KeyError), hold(tmp_path / "run"):
        raise KeyError
    with hold(tmp_path / "run"):
        pass


def killed_while_writing(path: Path) -> None:
    """Leave what `write_atomically` leaves when it is killed before it has replaced the file."""
    command, there = python(DYING, path)
    subprocess.run(command, env=there, check=True, timeout=60)


@pytest.mark.parametrize("there", [False, True], ids=["first", "later"])
def test_a_manifest_that_was_never_whole_is_removed(tmp_path: Path, there: bool):
    folder = tmp_path / "run"
    with hold(folder):
        if there:
            Ledger(folder, MANIFEST_OF_ALL, ENVIRONMENT)
        killed_while_writing(folder / MANIFEST)
        assert len(scratch_of(folder / MANIFEST)) == 1
    with hold(folder):
        Ledger(folder, MANIFEST_OF_ALL, ENVIRONMENT).add(KEY, OUTCOME)
    assert {path.name for path in folder.iterdir()} == {LOCK, MANIFEST, SAMPLES, "times.jsonl"}


@pytest.mark.parametrize("name", ["letter.txt", ".manifest.json", ".manifest.json.mine", "x"])
def test_what_is_another_s_stays(tmp_path: Path, name: str):
    (tmp_path / name).write_text("dear", "utf-8")
    with pytest.raises(InputError, match="new folder or one of a run"):
        hold(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(InputError, match="new folder or one of a run"):
        hold(tmp_path / name).__enter__()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", [SAMPLES, MANIFEST])
def test_a_full_disk_is_told_with_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    folder = tmp_path / "run"
    if name == SAMPLES:
        Ledger(folder, MANIFEST_OF_ALL, ENVIRONMENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if name == SAMPLES else "replace", full_disk)
        with pytest.raises(InputError) as caught:
            Ledger(folder, MANIFEST_OF_ALL, ENVIRONMENT).add(KEY, OUTCOME)
    said = str(caught.value)
    assert f"cannot write {folder}" in said
    assert "No space left" in said
    assert "run the same command again: it goes on" in said
    with hold(folder):
        ledger = Ledger(folder, MANIFEST_OF_ALL, ENVIRONMENT)
        if KEY not in ledger:
            ledger.add(KEY, OUTCOME)
    assert list(load_run(folder).rows) == [KEY]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_row_that_the_disk_cannot_hold(tmp_path: Path):
    ledger = Ledger(tmp_path, MANIFEST_OF_ALL, ENVIRONMENT)
    (tmp_path / SAMPLES).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write .*samples\.jsonl: No space left"):
        ledger.add(KEY, OUTCOME)


def test_a_file_that_cannot_be_written_whole_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*letter\.txt'"):
        write_atomically(tmp_path / "letter.txt", "dear")
    assert list(tmp_path.iterdir()) == []
