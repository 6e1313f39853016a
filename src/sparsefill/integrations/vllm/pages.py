"""How keys and values lie in the pages of vLLM's caches, and how to gather a request's."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def from_cpu_pages(
    kv_cache: Float[Tensor, "pages g page two_d"], own: Int[Tensor, " own"], m: int
) -> tuple[Float[Tensor, "g m d"], Float[Tensor, "g m d"]]:
    """Gather the first `m` keys and values of a request from vLLM's pages on a CPU.

    A page holds, for each KV head, first the keys of its tokens, transposed, then their values:
    what its shape says of its last two axes is not how it lies.

    Args:
        own: pages of the request, in order; more than `m` keys need are not read.

    Example:
        >>> import torch
        >>> from_cpu_pages(torch.zeros(9, 2, 128, 2 * 64), torch.tensor([5, 3]), 130)[0].shape
        torch.Size([2, 130, 64])
    """
    _, g, page, two_d = kv_cache.shape
    d = two_d // 2
    used = kv_cache[own[: -(-m // page)].long()].reshape(-1, g, 2, page * d)
    k = used[:, :, 0].reshape(-1, g, d, page).permute(1, 0, 3, 2)
    v = used[:, :, 1].reshape(-1, g, page, d).transpose(0, 1)
    return k.reshape(g, -1, d)[:, :m], v.reshape(g, -1, d)[:, :m]


def from_cuda_pages(
    kv_cache: Float[Tensor, "pages g page two_d"], own: Int[Tensor, " own"], m: int
) -> tuple[Float[Tensor, "g m d"], Float[Tensor, "g m d"]]:
    """Gather the first `m` keys and values of a request from FlashAttention's pages.

    A token's key and value stand side by side, in whatever order the axes lie in memory.

    Args:
        own: pages of the request, in order; more than `m` keys need are not read.

    Example:
        >>> import torch
        >>> from_cuda_pages(torch.zeros(9, 2, 16, 2 * 64), torch.tensor([5, 3]), 20)[0].shape
        torch.Size([2, 20, 64])
    """
    _, g, page, two_d = kv_cache.shape
    used = kv_cache[own[: -(-m // page)].long()].transpose(0, 1).reshape(g, -1, two_d)[:, :m]
    return used[..., : two_d // 2], used[..., two_d // 2 :]
