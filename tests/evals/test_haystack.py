"""Texts are read from where the user says, and described once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sparsefill.data import novel
from sparsefill.errors import InputError
from sparsefill.evals import haystack
from sparsefill.evals.haystack import Haystack, load_haystack


def test_a_file_a_folder_or_the_novels(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}", "utf-8")
    (tmp_path / "c.md").write_text("no text", "utf-8")
    folder = load_haystack(tmp_path)
    assert folder == Haystack(tmp_path.name, "text a\n\ntext b", ends=(6,))
    assert folder.texts == ("text a", "text b")
    assert load_haystack(tmp_path / "b.txt") == Haystack("b.txt", "text b")
    assert load_haystack().texts == (novel(), novel("northanger-abbey"))
    assert load_haystack().text == novel() + "\n\n" + novel("northanger-abbey")


@pytest.mark.parametrize("texts", [("a",), ("", "b", ""), ("a\n\nb", "c", "d\n\n", "\n")])
def test_texts_are_told_apart_again(texts: tuple[str, ...]):
    joined = Haystack.join("some", texts)
    assert joined.texts == texts
    assert joined.text == "\n\n".join(texts)


def test_what_is_no_text_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no file or folder"):
        load_haystack(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"must hold text, got none; a folder needs files named"):
        load_haystack(tmp_path)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match="text in UTF-8"):
        load_haystack(tmp_path)


def test_a_text_is_hashed_once(monkeypatch: pytest.MonkeyPatch):
    text = Haystack("words", "A cat sat.")
    digest = hashlib.sha256(b"A cat sat.").hexdigest()
    expected = {"name": "words", "sha256": digest, "words": 3}
    assert text.provenance() == expected
    monkeypatch.setattr(haystack, "hashlib", None)
    assert text.provenance() == expected
