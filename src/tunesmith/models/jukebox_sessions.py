"""A prior's window in the making, fast (with caches) and obvious (without): what generation/decode.py drives."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.models.jukebox_config import JukeboxPriorConfig
from tunesmith.models.jukebox_layers import Autoregressive, Condition
from tunesmith.nn.cache import Room


class PriorSession:
    """A window in the making: caches of the smallest size, lyrics and known codes fed in pieces within a row."""

    def __init__(
        self,
        model: Autoregressive,
        config: JukeboxPriorConfig,
        condition: Condition,
        samples: int,
        steps: int,
        chunk_size: int | None,
    ) -> None:
        self.model, self.condition = model, condition
        self.prefix = _prefix(config, condition)
        stack = model.transformer
        self.chunk = min(chunk_size or stack.row, stack.row)
        head_width = int(config.attention_multiplier * config.hidden_size) // config.n_heads
        room = Room(samples, config.n_heads, head_width, stack.dtype, condition.lyrics.device)
        self.caches = stack.caches(room, self.prefix.shape[1] + steps)
        self.position = 0

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

    def _hidden(self, x: Tensor) -> Tensor:
        hidden = self.model.hidden(x, self.condition, self.caches, self.position)
        self.position += x.shape[1]
        return hidden

    def _next(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden[:, -1:], self.condition, self.position - 1)
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


def _prefix(config: JukeboxPriorConfig, condition: Condition) -> Int[Tensor, "B L"]:
    """Lyric tokens that stand before the codes in the same sequence."""
    return condition.lyrics if config.joined else condition.lyrics[:, :0]
