"""Which pattern and budget each head of a model should use, found offline on its own prompts.

space.py     candidates that cost the same in the kernel
score.py     what each costs and loses, all heads of a layer at once
choose.py    one candidate for each head
session.py   all layers and prompts; killed and resumed without loss
prompts.py   what is read meanwhile
fixed.py     diagonals of that profile, found once for all prompts
held_out.py  the check on other text

The method is Algorithm 1 of Jiang et al. 2024 (arXiv:2407.02490). Nothing here knows how a
model is run: whoever calls hands over the queries, keys and values of each layer.
"""

from sparsefill.search.choose import Choice
from sparsefill.search.fixed import fix_slashes
from sparsefill.search.held_out import HeldOut, check_held_out
from sparsefill.search.prompts import Prompt, synthetic_prompt, text_prompt
from sparsefill.search.score import Layer
from sparsefill.search.session import Session, Settings

__all__ = [
    "Choice",
    "HeldOut",
    "Layer",
    "Prompt",
    "Session",
    "Settings",
    "check_held_out",
    "fix_slashes",
    "synthetic_prompt",
    "text_prompt",
]
