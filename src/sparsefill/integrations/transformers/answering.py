"""A model of transformers that reads prompts by any method, for evaluations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import freeze, sparse_prefill
from sparsefill.integrations.transformers.heads import HeadsWatched
from sparsefill.integrations.transformers.reading import (
    Prefilled,
    greedy_tokens,
    prefill_prompt,
    read_parts,
)
from sparsefill.integrations.transformers.run import Run
from sparsefill.integrations.transformers.snapkv import Keeping
from sparsefill.kernels import BackendName
from sparsefill.patterns import Dense, Pattern
from sparsefill.profile import Profile
from sparsefill.reader import Answered, Compared, Followed, Method, Predicted, Prefill
from sparsefill.static import StaticIndices

STATIC = 1024  # tokens of whose multiples the texts are that static cells are found on
ROWS = 512  # hidden states whose logits stand in memory at once
SAME = 0.02  # share by which logits differ where they are only rounded otherwise


@dataclass(kw_only=True, eq=False)
class TransformersReader:
    """Reads prompts with one model.

    Args:
        backend: whose kernels attend, whatever the method.
        min_length: keys below which a layer stays dense; 1 so that every method is itself at
            every length, None so that heads stay dense where that is predicted to be faster.
        measure_recall: also measure the attention mass kept (slow).
        other: makes so many tokens of another text, on which static cells are found.
    """

    model: nn.Module
    backend: BackendName = "auto"
    min_length: int | None = 1
    measure_recall: bool = False
    other: Callable[[int], Int[Tensor, "1 n"]] | None = None
    _frozen: dict[tuple[int, int], tuple[Any, StaticIndices]] = field(
        default_factory=dict, repr=False
    )

    def _settings(self, method: Method, tokens: int) -> dict[str, Any]:
        """Return the settings of `sparse_prefill` that read a prompt by a method."""
        return {
            "backend": self.backend,
            "min_length": self.min_length,
            "measure_recall": self.measure_recall,
            "static": self._static(method.cells, tokens) if method.static else None,
        }

    def _static(self, cells: Profile | Pattern, tokens: int) -> StaticIndices:
        """Find the cells of a method once for prompts of about one length, on another text.

        That text is as long as the prompt, up to a multiple of `STATIC`: what a prompt is read
        by depends on no other prompt.
        """
        if self.other is None:
            raise InputError("static cells are found on another text, got none")
        length = -(-tokens // STATIC) * STATIC
        if (id(cells), length) not in self._frozen:
            found = freeze(self.model, cells, self.other(length), backend=self.backend)
            # cells: so that their id stays theirs
            self._frozen[id(cells), length] = (cells, found)
        return self._frozen[id(cells), length][1]

    def _ids(self, ids: Sequence[int]) -> Int[Tensor, "1 n"]:
        if not ids:
            raise InputError("the prompt must have at least one token, got an empty prompt")
        return torch.tensor([list(ids)], device=next(self.model.parameters()).device)

    def _read(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        positions: int = 1,
        following: int = 0,
        **more: Any,
    ) -> Prefilled:
        settings = self._settings(method, len(ids)) | more
        keeping = None
        if method.keys is not None and method.keys < len(ids):
            keeping = Keeping(method.keys, len(ids) + following)
            settings["on_qkv"] = keeping.choose
        read = prefill_prompt(
            self.model,
            self._ids(ids),
            method.cells,
            positions=positions,
            chunk=method.chunk,
            **settings,
        )
        _require_finite(read.logits)
        if keeping is None:
            return read
        return read._replace(cache=keeping.keep(read.cache), position=len(ids))

    def answer(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        new_tokens: int,
        settled: Callable[[list[int]], bool] | None = None,
    ) -> Answered:
        """Read a prompt by a method, and answer greedily and densely.

        The answer ends before the first token that ends texts of the model.
        """
        read = self._read(method, ids, following=new_tokens)
        started = time.perf_counter()
        answer = self._decode(read, new_tokens, settled)
        return Answered(answer, _timed(read.run, read.ttft_s), time.perf_counter() - started)

    def _decode(
        self,
        read: Prefilled,
        count: int,
        settled: Callable[[list[int]], bool] | None = None,
    ) -> list[int]:
        ends, answer = end_tokens(self.model), list[int]()
        decoding = greedy_tokens(self.model, read.cache, read.logits, position=read.position)
        for token in islice(decoding, count):
            if token in ends:
                break
            answer.append(token)
            if settled is not None and settled(answer):
                break
        return answer

    def follow(
        self, method: Method, ids: Sequence[int], continuations: Sequence[tuple[list[int], int]]
    ) -> tuple[list[Followed], Prefill]:
        """Read a prompt once, and go on with each continuation on the same cache.

        Args:
            continuations: tokens, and how many of the last of them are judged: fewer than
                there are.
        """
        longest = max((len(tokens) for tokens, _ in continuations), default=0)
        read = self._read(method, ids, following=longest)
        call, followed = _callable(self.model), []
        for tokens, judged in continuations:
            if not 0 < judged < len(tokens):
                raise InputError(
                    f"of a continuation of {len(tokens)} tokens at least one and not all are"
                    f" judged, got {judged}"
                )
            more: dict[str, Any] = {}
            if read.position is not None:
                at = range(read.position, read.position + len(tokens))
                more = {"position_ids": self._ids(at)}
            with torch.inference_mode():
                own = copy.deepcopy(read.cache)  # some kinds of cache cannot be cut back
                result = call(self._ids(tokens), past_key_values=own, use_cache=True, **more)
            logits = result.logits[0, -judged - 1 : -1].double()
            expected = torch.tensor(tokens[-judged:], device=logits.device)
            losses = cross_entropy(logits, expected, reduction="none")
            followed.append(Followed(losses.cpu(), (logits.argmax(-1) == expected).cpu()))
        return followed, _timed(read.run, read.ttft_s)

    def losses(
        self, method: Method, ids: Sequence[int]
    ) -> tuple[Float64[Tensor, " tokens"], Prefill]:
        """Return the loss in nats of each token but the first, given those before it.

        Logits are made in float32, for `ROWS` hidden states at a time: those of a long prompt
        together would take gigabytes.
        """
        if len(ids) < 2:
            raise InputError(f"losses need at least 2 tokens, got {len(ids)}")
        _require_all_keys(method)
        prompt, model = self._ids(ids), _callable(self.model)
        head: Any = model.get_output_embeddings()
        hidden: list[Tensor] = []
        settings = self._settings(method, len(ids))  # finds static cells, by calls of its own

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(args[0])
            return (args[0][:, -1:],)

        handle = head.register_forward_pre_hook(keep)
        try:
            with (
                torch.inference_mode(),
                sparse_prefill(self.model, method.cells, **settings) as run,
            ):
                clock = run.clock(prompt.device)
                started = clock()
                last = torch.empty(0)
                more = {"use_cache": method.chunk is not None, "logits_to_keep": 0}
                for part in read_parts(self.model, prompt, method.chunk, **more):
                    last = part.logits[0]
                    del part  # and its cache, before there are logits
                took = clock() - started
        finally:
            handle.remove()
        _require_finite(last)
        states = [own[0] for own in hidden]  # of each chunk
        exact = copy.deepcopy(head).float()  # logits in bfloat16 have steps of an eighth
        with torch.inference_mode():
            own = exact(states[-1][-1:].float())
            if (own - last.float()).norm() > SAME * own.norm():
                raise UnsupportedError(
                    "this model changes its logits after the output projection; losses over a"
                    " whole prompt cannot be computed part by part"
                )
            states[-1] = states[-1][:-1]
            expected = prompt[0, 1:].split([len(own) for own in states])
            parts = [losses_of(exact, *part) for part in zip(states, expected, strict=True)]
        return torch.cat(parts).cpu(), _timed(run, took)

    def compare(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        positions: int,
        new_tokens: int,
        full: Predicted | None = None,
    ) -> Compared:
        """Read a prompt by a method, and by full attention unless that is known.

        Args:
            full: what an earlier call told of full attention on this prompt.
        """
        _require_all_keys(method)
        watched = HeadsWatched()
        read = self._read(method, ids, positions=positions, on_attended=watched)
        own = Predicted(read.logits.cpu(), self._decode(read, new_tokens))
        prefill = _timed(read.run, read.ttft_s)
        heads = watched.found(read.run.profile.architecture, read.run.calls)
        del read  # its cache, before there is another
        if full is None and method.cells == Dense() and method.chunk is None:
            full = own
        elif full is None:
            read = self._read(Method(name="full", cells=Dense()), ids, positions=positions)
            full = Predicted(read.logits.cpu(), self._decode(read, new_tokens))
        return Compared(full, own, heads, prefill)


def end_tokens(model: nn.Module) -> frozenset[int]:
    """Collect the tokens that end a model's texts."""
    any_model: Any = model
    generation = getattr(any_model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    ends = any_model.config.get_text_config().eos_token_id if ends is None else ends
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def losses_of(
    head: nn.Module, states: Float[Tensor, "n d"], expected: Int[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return the loss in nats of each token, `ROWS` rows of logits at a time.

    Args:
        head: output projection, in float32.
        states: hidden state before each token.
    """
    # written in place: small results between large ones would keep the large ones' memory apart
    losses = torch.empty(len(expected), dtype=torch.float64, device=states.device)
    parts = (tensor.split(ROWS) for tensor in (states, expected, losses))
    for rows, following, into in zip(*parts, strict=True):
        logits = head(rows.float()).double()
        into.copy_(cross_entropy(logits, following, reduction="none"))
    return losses


def _require_all_keys(method: Method) -> None:
    if method.keys is not None:
        raise InputError(
            f"predictions within a prompt know nothing of decoding, got {method.name}; use the"
            " method without +snapkv"
        )


def _require_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            "the model's logits must be finite, got NaN or infinity; use another --dtype: float16"
            " overflows in models that were trained in bfloat16"
        )


def _callable(model: nn.Module) -> Any:
    """Let a model be called with what its own class takes."""
    return model


def _timed(run: Run, took: float) -> Prefill:
    kept = run.recall()
    recall = float(kept.double().mean()) if len(kept) else None
    if run.measure_recall and run.density == 1:
        recall = 1.0  # dense calls have none of their own
    return Prefill(
        ttft_s=took - run.recall_s,
        attention_s=run.attention_s,
        estimate_s=run.estimate_s,
        density=run.density,
        recall=recall,
    )
