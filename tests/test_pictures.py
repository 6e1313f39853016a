"""Pictures of a prefill: what is drawn is what the model attends with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sparsefill import Dense, VerticalSlash, estimate
from sparsefill.cli import pictures
from sparsefill.draw import Panel
from sparsefill.integrations.transformers import Shown, architecture_of, show_layers
from sparsefill.profile import Profile
from tests.support.models import prompt, tiny_model

LINES = VerticalSlash(verticals=20, slashes=10, probe=20, sink=2, window=4)


def test_pictures_know_the_soft_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, ids = tiny_model("gemma2", "eager"), prompt(300)
    heads = model.config.num_attention_heads
    profile = Profile(
        architecture=architecture_of(model.config), layers=((Dense(),) * heads, (LINES,) * heads)
    )
    drawn: list[Panel] = []
    monkeypatch.setattr(pictures, "draw_figure", lambda panels, path: drawn.extend(panels))
    assert pictures.draw_heads(model, ids, profile, tmp_path) == [
        tmp_path / "cells-vertical-slash.png"
    ]
    assert len(drawn) == pictures.HEADS
    shown: list[Shown] = []
    show_layers(model, ids, shown.append)
    layer = shown[1]
    assert layer.softcap == 2.0
    cells = estimate(LINES, layer.q, layer.k, scale=layer.scale, softcap=layer.softcap).to_mask()
    with torch.inference_mode():
        weights = model(ids, output_attentions=True).attentions[1]
    for panel in drawn:
        found = re.match(r"layer 1, head (\d)", panel.title)
        assert found is not None
        head = int(found[1])
        assert torch.equal(panel.mask, cells[0, head])
        torch.testing.assert_close(panel.weights, weights[0, head])
