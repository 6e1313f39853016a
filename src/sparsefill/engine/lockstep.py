"""Chunks of a prompt that a model reads side by side, layer by layer.

Each chunk is one forward pass of the whole model, in a greenlet of its own. It stops where a
decoder layer begins and where a layer attends, so that all chunks can be brought to the same
place: the attention of a layer then sees the whole prompt, while everything else only ever
sees a chunk. The model's own code runs as it is; nothing of it is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor, nn

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.transformers.run import layer_of


@dataclass(frozen=True, kw_only=True, eq=False)
class AtLayer:
    """A chunk stands before a decoder layer.

    Args:
        layer: its number.
        hidden: what goes into it.
    """

    layer: int
    hidden: Float[Tensor, "b n hidden"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AtAttention:
    """A chunk stands before the attention of a layer; it goes on with the output."""

    call: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A chunk has been read."""

    logits: Float[Tensor, "b positions vocabulary"]


Stop = AtLayer | AtAttention | Finished


class Chunk:
    """A chunk of the prompt, and how far the model has read it.

    Args:
        first, last: its tokens, last exclusive.
        read: the forward pass; returns the logits.
    """

    def __init__(self, first: int, last: int, read: Callable[[], Tensor]) -> None:
        self.first, self.last = first, last
        self._reader = greenlet(lambda _: Finished(logits=read()))

    def go_on(self, value: Any = None) -> Stop:
        """Read to the next stop."""
        return self._reader.switch(value)

    def close(self) -> None:
        """Stop reading for good, and let go of what the forward pass holds."""
        self._reader.throw()


def stop(at: Stop) -> Any:
    """Stop the chunk that runs, and return what it is given to go on with."""
    reader = getcurrent().parent
    assert reader is not None, "only a chunk can stop"
    return reader.switch(at)


@contextmanager
def stops_before(layers: Sequence[nn.Module], *, skipped: int = 0) -> Iterator[None]:
    """Stop chunks before each of the decoder layers, in order.

    Args:
        skipped: do not stop before so many first layers.
    """

    def hook_of(number: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = stop(AtLayer(layer=number, hidden=hidden))
            if changed is None:
                return None
            if args:
                return (changed, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": changed}

        return before

    handles = [
        layer.register_forward_pre_hook(hook_of(number), with_kwargs=True)
        for number, layer in enumerate(layers)
        if number >= skipped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(layers: Sequence[nn.Module], *, returns_tuple: bool) -> Iterator[None]:
    """Let decoder layers hand on what they get: their work was done by an earlier run."""

    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if returns_tuple else hidden_states

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, hand_on))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module do something else; another library's `forward` is put back, if it had one."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def decoder_layers(model: nn.Module, attention: Sequence[nn.Module]) -> list[nn.Module]:
    """Find the modules that hold the attention layers, by layer number.

    Raises:
        UnsupportedError: the model has layers of another kind between them.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found = {
        layer_of(module): model.get_submodule(names[id(module)].rpartition(".")[0])
        for module in attention
    }
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    if sorted(found) != list(range(layers)):
        raise UnsupportedError(
            f"the prefill engine needs causal attention in every layer, got {len(found)} of"
            f" {layers} in {type(model).__name__}; use sparse_prefill instead"
        )
    return [found[number] for number in range(layers)]


def returns_tuple(model: nn.Module, layer: nn.Module) -> bool:
    """Tell whether decoder layers return a tuple, as older releases' do."""
    seen = []
    handle = layer.register_forward_hook(lambda m, args, out: seen.append(isinstance(out, tuple)))
    call: Any = model
    try:
        with torch.inference_mode():
            one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
            call(one, use_cache=False)
    finally:
        handle.remove()
    return seen[0]
