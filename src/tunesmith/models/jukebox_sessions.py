"""A prior's window in the making: with caches, on a GPU by recorded steps, and obvious (without); what
generation/decode.py drives.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.generation.capture import Capture, addresses, bucket, plain_tensors
from tunesmith.models.jukebox_config import JukeboxPriorConfig
from tunesmith.models.jukebox_layers import Autoregressive, Condition
from tunesmith.nn.cache import Room, SpotCache, View
from tunesmith.nn.factored import LayerMemory, Pattern


class Window(ABC):
    """A window in the making (generation/decode.py) that remembers: lyrics and known codes are fed in pieces within a
    row.  What remembers, and how, is left to those below.
    """

    def __init__(
        self,
        model: Autoregressive,
        config: JukeboxPriorConfig,
        condition: Condition,
        samples: int,
        steps: int,
        chunk_size: int | None,
    ) -> None:
        self.model, self.config, self.condition = model, config, condition
        self.position, self.samples = 0, samples
        self.prefix = _prefix(config, condition)
        self.chunk = min(chunk_size or model.transformer.row, model.transformer.row)
        self.at_once = False
        """Is all that is known at first one piece?"""
        self._begin(self.prefix.shape[1] + steps, chunk_size)

    def prefill(self, ids: Int[Tensor, "B 1 P"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py.  The first column is the start, which labels or a learned vector stand for."""
        tokens = torch.cat([self.prefix, ids[:, 0, 1:]], 1)
        *_, last = self.feed(self.model.shifted(tokens, self.condition.start))
        return self._next(last)

    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        return self._next(self._hidden(self.model.embed_tokens(ids)))

    def feed(self, x: Float[Tensor, "B S D"]) -> Iterator[Float[Tensor, "B P D"]]:
        """Inputs of the next positions, piece by piece: the output of the stack for each piece."""
        row = self.model.transformer.row
        while x.shape[1]:
            count = x.shape[1] if self.at_once and not self.position else min(self.chunk, row - self.position % row)
            yield self._hidden(x[:, :count])
            x = x[:, count:]

    @abstractmethod
    def _begin(self, positions: int, chunk_size: int | None) -> None:
        """Make room for so many positions."""

    @abstractmethod
    def _hidden(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """Go on by one piece, `position` too: the output of the stack."""

    @abstractmethod
    def _next(self, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "1 B 1 V"]:
        """Logits of what follows the last position."""


class PriorSession(Window):
    """Through torch, with caches of the smallest size."""

    def _begin(self, positions: int, chunk_size: int | None) -> None:
        self.caches = _caches(self.model, self.config, self.samples, positions)

    def _hidden(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        hidden = self.model.hidden(x, self.condition, self.caches, self.position)
        self.position += x.shape[1]
        return hidden

    def _next(self, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "1 B 1 V"]:
        return self.model.logits(hidden[:, -1:], self.condition, self.position - 1)[None]


class WindowMemory:
    """All that a step reads and writes, for so many samples, window after window."""

    def __init__(self, model: Autoregressive, config: JukeboxPriorConfig, condition: Condition, samples: int) -> None:
        device = condition.lyrics.device
        self.samples, self.weights = samples, addresses(model)
        self.positions = len(model.pos_emb.pos_emb)
        self.is_dense = any(type(layer.attn.pattern) is Pattern for layer in model.transformer.layers)
        self.caches = _caches(model, config, samples, self.positions)
        added = None if condition.added is None else torch.empty_like(condition.added)
        self.condition = Condition(None, added, None, condition.lyrics[:, :0])
        self.ids = torch.zeros(samples, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.logits = torch.zeros(samples, 1, model.fc_proj_out.out_features, device=device)
        self.steps: dict[int, Capture] = {}

    @plain_tensors()
    def begin(self, model: Autoregressive, condition: Condition) -> None:
        """A new window: nothing is remembered but what it is conditioned on."""
        for layer, cache in zip(model.transformer.layers, self.caches, strict=True):
            assert not isinstance(cache.own, SpotCache)
            cache.own.keys.zero_()  # what patterns see before the beginning
            cache.own.values.zero_()
            if layer.attn.crosses:
                assert condition.memory is not None, "cross-attention needs a memory"
                self._look_at(cache, layer.attn.remember(condition.memory.to(model.transformer.dtype)))
        if self.condition.added is not None and condition.added is not None:
            self.condition.added.copy_(condition.added)

    def _look_at(self, cache: LayerMemory, view: View) -> None:
        if cache.cross is None:
            cache.cross = view
        else:
            cache.cross.keys.copy_(view.keys)
            cache.cross.values.copy_(view.values)

    def step(self, model: Autoregressive, ids: Int[Tensor, "B 1"], position: int) -> Float[Tensor, "B 1 V"]:
        """Feed a code; the logits hold until the next step."""
        self.ids.copy_(ids)
        self.position.fill_(position)
        seen = bucket(position + 1, self.positions) if self.is_dense else self.positions
        if seen not in self.steps:
            self.steps[seen] = Capture(partial(self._work, model, seen), self.ids.device, model.fuse)
        self.steps[seen]()
        return self.logits

    def _work(self, model: Autoregressive, seen: int) -> None:
        caches = model.transformer.at(self.caches, self.position, self.positions, seen)
        hidden = model.hidden(model.embed_tokens(self.ids), self.condition, caches, self.position)
        self.logits.copy_(model.logits(hidden, self.condition, self.position))


class RecordedSession(PriorSession):
    """Through torch by steps that are recorded (generation/capture.py), in memory that outlives the window."""

    def _begin(self, positions: int, chunk_size: int | None) -> None:
        model, config, condition, samples = self.model, self.config, self.condition, self.samples
        self.at_once = chunk_size is None
        weights = addresses(model)
        self.memory = model.kept.take(
            self,
            lambda memory: memory.samples == samples and memory.weights == weights,
            lambda: WindowMemory(model, config, condition, samples),
        )
        self.memory.begin(model, condition)
        self.caches = self.memory.caches

    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        logits = self.memory.step(self.model, ids, self.position)
        self.position += 1
        return logits[None]


class ReferenceSession:
    """The obvious version: no cache, everything anew for every code.  What `use_cache=False` means."""

    def __init__(self, model: Autoregressive, config: JukeboxPriorConfig, condition: Condition) -> None:
        self.model, self.condition = model, condition
        self.prefix = _prefix(config, condition)

    def prefill(self, ids: Int[Tensor, "B 1 P"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        self.ids = ids
        x = self.model.shifted(torch.cat([self.prefix, ids[:, 0, 1:]], 1), self.condition.start)
        hidden = self.model.hidden(x, self.condition)
        return self.model.logits(hidden[:, -1:], self.condition, x.shape[1] - 1)[None]

    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        return self.prefill(torch.cat([self.ids, ids[:, :, None]], 2))


def _caches(model: Autoregressive, config: JukeboxPriorConfig, samples: int, positions: int) -> list[LayerMemory]:
    stack, width = model.transformer, int(config.attention_multiplier * config.hidden_size)
    device = model.pos_emb.pos_emb.device
    return stack.caches(Room(samples, config.n_heads, width // config.n_heads, stack.dtype, device), positions)


def _prefix(config: JukeboxPriorConfig, condition: Condition) -> Int[Tensor, "B L"]:
    """Lyric tokens that stand before the codes in the same sequence."""
    return condition.lyrics if config.joined else condition.lyrics[:, :0]
