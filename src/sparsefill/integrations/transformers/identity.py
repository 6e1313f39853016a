"""What tells one model from another: its weights, whatever it is called.

Work that is kept on disk goes on only with the very model that it was begun with.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """Hash every weight and buffer of a model.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> weights_sha256(one) == weights_sha256(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> weights_sha256(one) == weights_sha256(other)
        True
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole = tensor.detach().contiguous().flatten().view(torch.uint8)
        for part in whole.split(2**28):
            digest.update(part.cpu().numpy().data)
    return digest.hexdigest()
