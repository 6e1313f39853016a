"""Diagonals found once, offline: a profile whose vertical-slash heads estimate only columns."""

from __future__ import annotations

from dataclasses import replace

from sparsefill.patterns import FixedSlash, Pattern, VerticalSlash
from sparsefill.profile import Profile
from sparsefill.static import StaticIndices


def fix_slashes(profile: Profile, static: StaticIndices) -> Profile:
    """Give every vertical-slash head the diagonals that it kept on one prompt.

    Args:
        static: indices of this profile.
    """
    return replace(
        profile,
        layers=tuple(
            tuple(_fixed(pattern, static, layer, head) for head, pattern in enumerate(patterns))
            for layer, patterns in enumerate(profile.layers)
        ),
        provenance={
            **profile.provenance,
            "slashes": "fixed",
            "calibration_and_scores": "with slashes found on each prompt",
        },
    )


def _fixed(pattern: Pattern, static: StaticIndices, layer: int, head: int) -> Pattern:
    if not isinstance(pattern, VerticalSlash):
        return pattern
    index = static.layers[layer]
    kept = index.slash_tiles[0, head, : int(index.slash_counts[0, head])].tolist()
    return FixedSlash(
        offsets=tuple(sorted({0, *kept})),
        verticals=pattern.verticals,
        probe=pattern.probe,
        sink=pattern.sink,
    )
