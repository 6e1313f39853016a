"""Every block of Python in the README runs, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.support.tiny import PROSE, save_tiny_llama

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHARACTERS = 1500  # tokens of the tiny model: enough to be read sparsely


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = save_tiny_llama(tmp_path / "tiny")
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        kind = getattr(transformers, name)

        def load(_: str, *, load: Any = kind.from_pretrained, **options: Any) -> Any:
            return load(tiny, **options)

        monkeypatch.setattr(kind, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text((PROSE * 30)[:CHARACTERS], "utf-8")

    text = README.read_text("utf-8")
    namespace: dict[str, Any] = {"__name__": "readme"}
    blocks = list(BLOCK.finditer(text))
    assert blocks
    assert len(blocks) == len(re.findall("^```py", text, re.MULTILINE))
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that a traceback names it
        exec(compile("\n" * line + block[1], str(README), "exec"), namespace)
