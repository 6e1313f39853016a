"""Which pattern each query head of a rank uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sparsefill.cost import dense_where_cheaper
from sparsefill.integrations.vllm.options import Options
from sparsefill.patterns import Dense, Pattern, parse_pattern
from sparsefill.profile import Architecture, Profile, profile_for
from sparsefill.tile import TILE


@functools.lru_cache(maxsize=1)  # asked for each layer when a server starts
def profile_of(options: Options, architecture: Architecture) -> Profile:
    """Load the profile that the options ask for.

    Raises:
        ProfileError: it is broken, or for another architecture.
        InputError: there is no such pattern or file.
    """
    if options.pattern is not None:
        return profile_for(architecture, parse_pattern(options.pattern))
    given = None if options.profile is None else Profile.load(options.profile)
    return profile_for(architecture, given)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankHeads:
    """The heads that one rank of tensor parallelism holds.

    Args:
        profile: of the whole model.
        first: the rank's first query head.
        count: how many it has.
        min_length: as of the options.
        backend: which of our backends attends, resolved.
    """

    profile: Profile
    first: int
    count: int
    min_length: int | None
    backend: str

    def patterns(self, layer: int, n: int, m: int) -> tuple[Pattern, ...]:
        """Return the patterns of a layer's heads for `n` queries after `m - n` keys."""
        own = self.profile[layer][self.first : self.first + self.count]
        if self.min_length is not None:
            return own if m >= self.min_length else (Dense(),) * len(own)
        return dense_where_cheaper(own, n, m, self.backend)

    def pays(self, layers: Sequence[int], n: int, m: int) -> bool:
        """Tell whether any head of these layers is sparse at these lengths."""
        if n < TILE:
            return False
        if self.min_length is not None:
            return m >= self.min_length
        return any(p != Dense() for i in layers for p in self.patterns(i, n, m))
