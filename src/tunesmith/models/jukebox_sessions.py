"""A prior's window in the making, fast (with caches) and obvious (without): what generation/decode.py drives."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.models.jukebox_config import JukeboxPriorConfig
from tunesmith.models.jukebox_layers import Autoregressive, Condition
from tunesmith.nn.cache import Room


class Window(ABC):
    """A window in the making (generation/decode.py) that remembers: lyrics and known codes are fed in pieces within a
    row.  What remembers, and how, is left to those below.
    """

    def __init__(
        self, model: Autoregressive, config: JukeboxPriorConfig, condition: Condition, chunk_size: int | None
    ) -> None:
        self.model, self.condition, self.position = model, condition, 0
        self.prefix = _prefix(config, condition)
        self.chunk = min(chunk_size or model.transformer.row, model.transformer.row)

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
            count = min(self.chunk, row - self.position % row)
            yield self._hidden(x[:, :count])
            x = x[:, count:]

    @abstractmethod
    def _hidden(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """Go on by one piece, `position` too: the output of the stack."""

    @abstractmethod
    def _next(self, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "1 B 1 V"]:
        """Logits of what follows the last position."""


class PriorSession(Window):
    """Through torch, with caches of the smallest size."""

    def __init__(
        self,
        model: Autoregressive,
        config: JukeboxPriorConfig,
        condition: Condition,
        samples: int,
        steps: int,
        chunk_size: int | None,
    ) -> None:
        super().__init__(model, config, condition, chunk_size)
        stack = model.transformer
        head_width = int(config.attention_multiplier * config.hidden_size) // config.n_heads
        room = Room(samples, config.n_heads, head_width, stack.dtype, condition.lyrics.device)
        self.caches = stack.caches(room, self.prefix.shape[1] + steps)

    def _hidden(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        hidden = self.model.hidden(x, self.condition, self.caches, self.position)
        self.position += x.shape[1]
        return hidden

    def _next(self, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "1 B 1 V"]:
        return self.model.logits(hidden[:, -1:], self.condition, self.position - 1)[None]


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


def _prefix(config: JukeboxPriorConfig, condition: Condition) -> Int[Tensor, "B L"]:
    """Lyric tokens that stand before the codes in the same sequence."""
    return condition.lyrics if config.joined else condition.lyrics[:, :0]
