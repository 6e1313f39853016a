"""Pictures of a prefill: what some heads kept, over their true attention."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsefill.draw import Panel, draw_figure
from sparsefill.estimate import estimate_cells
from sparsefill.integrations.transformers import Shown, show_layers
from sparsefill.patterns import Dense
from sparsefill.profile import Profile

TOKENS = 2048  # drawn length: an attention map of more would not show anything else
HEADS = 3  # heads per picture


def draw_heads(
    model: nn.Module, ids: Int[Tensor, "1 n"], profile: Profile, folder: Path
) -> list[Path]:
    """Draw the sparsest heads of every pattern in the profile, one picture per pattern.

    The prompt is cut to its first tokens, so a budget that is small at full length may
    keep much here.
    """
    panels: dict[str, list[tuple[float, Panel]]] = {}

    def look(shown: Shown) -> None:
        q, k, layer = shown.q, shown.k, shown.layer
        maths = {"scale": shown.scale, "softcap": shown.softcap}
        cells = estimate_cells(profile[layer], q, k, **maths)
        kept, masks = cells.density()[0].tolist(), cells.to_mask()[0].cpu()
        group = q.shape[1] // k.shape[1]
        for head, pattern in enumerate(profile[layer]):
            best = panels.setdefault(pattern.name, [])
            if isinstance(pattern, Dense) or (len(best) == HEADS and kept[head] >= best[-1][0]):
                continue
            weights = _attention(q[0, head], k[0, head // group], **maths).cpu()
            mask = masks[head]
            title = (
                f"layer {layer}, head {head}: {pattern.name}\n"
                f"density {kept[head]:.0%}, recall {float((weights * mask).sum(-1).mean()):.1%}"
            )
            panel = Panel(title=title, pattern=pattern.name, mask=mask, weights=weights)
            best.append((kept[head], panel))
            best.sort(key=lambda pair: pair[0])
            del best[HEADS:]

    show_layers(model, ids[:, :TOKENS], look)
    written = []
    for name, found in panels.items():
        if found:
            written.append(folder / f"cells-{name}.png")
            draw_figure([panel for _, panel in found], written[-1])
    return written


def _attention(
    q: Float[Tensor, "n d"], k: Float[Tensor, "n d"], *, scale: float, softcap: float | None
) -> Float[Tensor, "n n"]:
    """Compute one head's attention matrix."""
    scores = (q.float() * scale) @ k.float().T
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)
