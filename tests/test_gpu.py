"""What the Triton kernels ask of a GPU that is not here."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsefill import gpu
from sparsefill.kernels import choose_backend


def queries(d: int = 128, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(1, 2, 64, d, dtype=dtype, device="cuda")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that there is an H100, and Triton 3.6."""
    monkeypatch.setattr(gpu, "triton_version", lambda: (3, 6))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    properties = SimpleNamespace(shared_memory_per_block_optin=232448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return monkeypatch


def test_a_hopper_gpu_is_served_by_every_variant(hopper: pytest.MonkeyPatch):
    for variant in (None, "pointers", "descriptors", "hopper"):
        assert gpu.refusal(queries(), variant) is None
    assert choose_backend("auto", queries()) == "triton"


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "is not installed"), ((3, 5), r"3.6 or newer .* got 3.5")]
)
def test_other_versions_of_triton_are_refused(
    hopper: pytest.MonkeyPatch, version: tuple[int, int] | None, reason: str
):
    hopper.setattr(gpu, "triton_version", lambda: version)
    assert re.search(reason, str(gpu.refusal(queries())))
    assert choose_backend("auto", queries()) == "torch"


@pytest.mark.parametrize(
    ("capability", "variant", "served"),
    [
        ((7, 5), None, False),
        ((8, 0), None, True),
        ((8, 9), "descriptors", False),
        ((10, 0), "descriptors", True),
        ((10, 0), "hopper", False),
    ],
)
def test_capabilities(
    hopper: pytest.MonkeyPatch,
    capability: tuple[int, int],
    variant: gpu.Variant | None,
    served: bool,
):
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (gpu.refusal(queries(), variant) is None) == served


def test_head_dims_and_dtypes(hopper: pytest.MonkeyPatch):
    assert "multiple of 16" in str(gpu.refusal(queries(d=72)))
    assert "up to 128" in str(gpu.refusal(queries(d=256), "descriptors"))
    assert "(64, 128)" in str(gpu.refusal(queries(d=96), "hopper"))
    assert "float32" in str(gpu.refusal(queries(dtype=torch.float32)))
    assert gpu.refusal(queries(d=256)) is None


def test_what_is_misaligned_is_copied():
    memory = torch.zeros(1 + 2 * 64 * 16, dtype=torch.bfloat16)
    shifted = memory[1:].view(1, 2, 64, 16)
    assert shifted.is_contiguous()
    assert gpu.readable(shifted).data_ptr() % 16 == 0
    aligned = torch.zeros(1, 2, 64, 16)
    assert gpu.readable(aligned) is aligned
    assert gpu.readable(aligned[:, :1].expand(-1, 2, -1, -1), descriptors=True).stride(1) > 0
