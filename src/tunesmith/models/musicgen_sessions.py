"""Pieces by MusicGen in the making, through torch: one batch (fast, and obvious), and pieces that come and go.

musicgen_engine.py has the same for the CPU's kernels.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.models.musicgen_layers import Text, bias_of
from tunesmith.nn.cache import DecoderCache, DenseCache, LayerCache, ManyCache, Room, View

if TYPE_CHECKING:
    from tunesmith.models.musicgen import MusicgenForCausalLM


class MusicgenSession:
    """A piece in the making: caches of fixed size, for one or two guidance branches of the same samples."""

    def __init__(
        self,
        model: "MusicgenForCausalLM",
        samples: int,
        capacity: int,
        text: Text | None,
        branches: int,
    ) -> None:
        config, decoder = model.config, model.model.decoder
        self.heads, self.decoder, self.branches = model.heads, decoder, branches
        self.memory = None if text is None else text.states
        self.memory_bias = None if text is None else bias_of(text.mask, model.dtype)
        heads = config.num_attention_heads
        self.cache = DecoderCache.build(
            config.num_hidden_layers,
            lambda: DenseCache(
                samples * branches, heads, capacity, config.hidden_size // heads, model.dtype, model.device
            ),
        )

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        x = self.decoder.embed(ids.repeat(self.branches, 1, 1))
        hidden = self.decoder(x, None, self.memory, self.memory_bias, self.cache).hidden[:, -1:]
        return torch.cat(self.heads(hidden), 1).unflatten(0, (self.branches, -1))

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(ids[:, :, None])


class MusicgenSlots:
    """Several pieces in the making, each at a place of its own, through torch (generation/batching.py).

    A step is one call for all slots, those without a piece included, so that a piece's numbers don't depend on how many
    there are; prompts are fed slot by slot.  Slot s has the sequences s · branches and following.
    """

    def __init__(
        self, model: "MusicgenForCausalLM", count: int, capacity: int, text_places: int, branches: int
    ) -> None:
        """text_places: tokens of the longest text; 0 where none will come."""
        config, sequences, heads = model.config, count * branches, model.config.num_attention_heads
        self.count, self.capacity, self.branches = count, capacity, branches
        self.heads, self.decoder = model.heads, model.model.decoder
        room = Room(sequences, heads, config.hidden_size // heads, model.dtype, model.device)
        self.own = [room.allocate(capacity) for _ in self.decoder.layers]
        self.fed, self.used = [0] * count, [1] * count
        states = torch.zeros(sequences, text_places, config.hidden_size, dtype=model.dtype, device=model.device)
        self.text = Text(states, states.new_zeros(states.shape[:2])) if text_places else None
        self.memories = [self._memory(layer, slice(None)) for layer in self.decoder.layers]

    @torch.no_grad()
    def begin(self, conditions: Mapping[int, Text | None]) -> None:
        """See generation/batching.py.  A text has a row for each guidance branch."""
        for slot, text in conditions.items():
            self.fed[slot], self.used[slot] = 0, 1 if text is None else len(text.states)
            if self.text is None:
                assert text is None, "there is room for text"
                continue
            here = self._sequences(slot)
            for whole, given in zip(self.text, text or (None, None), strict=True):
                whole[here] = 0
                if given is not None:
                    whole[here][: self.used[slot], : given.shape[1]] = given
            for memory, layer in zip(self.memories, self.decoder.layers, strict=True):
                fresh = self._memory(layer, here)
                assert memory is not None
                assert fresh is not None
                memory.keys[here], memory.values[here] = fresh.keys, fresh.values

    @torch.no_grad()
    def feed(self, columns: Mapping[int, Int[Tensor, "K _"]]) -> dict[int, Float[Tensor, "G K V"]]:
        """See generation/batching.py."""
        steps = {slot: ids for slot, ids in columns.items() if ids.shape[1] == 1}
        found = self._step(steps) if steps else {}
        for slot in columns.keys() - steps.keys():
            found[slot] = self._run(columns[slot][None], self._sequences(slot), [self.fed[slot]])[: self.used[slot]]
        for slot, ids in columns.items():
            self.fed[slot] += ids.shape[1]
        return {slot: found[slot] for slot in columns}

    def _step(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Slots that have nothing to feed write where they will write next, or nobody reads."""
        [some, *_] = columns.values()
        ids = torch.stack([columns.get(slot, torch.zeros_like(some)) for slot in range(self.count)])
        logits = self._run(ids, slice(None), [fed % self.capacity for fed in self.fed])
        return {slot: logits[self._sequences(slot)][: self.used[slot]] for slot in columns}

    def _run(self, ids: Int[Tensor, "B K P"], here: slice, position: list[int]) -> Float[Tensor, "GB K V"]:
        """Logits of what follows, of the sequences `here`."""
        end, device = max(position) + ids.shape[2], ids.device
        own = [ManyCache(keys[here, :, :end], values[here, :, :end]) for keys, values in self.own]
        memories = [None if m is None else View(m.keys[here], m.values[here]) for m in self.memories]
        layers = [LayerCache(cache, memory) for cache, memory in zip(own, memories, strict=True)]
        cache = DecoderCache(layers, torch.tensor(position, device=device).repeat_interleave(self.branches)[:, None])
        text = None if self.text is None else Text(self.text.states[here], self.text.mask[here])
        x = self.decoder.embed(ids.repeat_interleave(self.branches, 0))
        states, bias = (None, None) if text is None else (text.states, bias_of(text.mask, x.dtype))
        hidden = self.decoder(x, None, states, bias, cache).hidden[:, -1:]
        return torch.cat(self.heads(hidden), 1)

    def _memory(self, layer: Any, here: slice) -> View | None:
        return None if self.text is None else View(*layer.encoder_attn.keys_values(self.text.states[here]))

    def _sequences(self, slot: int) -> slice:
        return slice(slot * self.branches, (slot + 1) * self.branches)


class ReferenceSession:
    """The obvious version: no cache, everything anew for every column.  What `use_cache=False` means."""

    def __init__(self, model: "MusicgenForCausalLM", text: Text | None, branches: int) -> None:
        self.model, self.branches = model, branches
        self.condition = (
            {} if text is None else {"encoder_hidden_states": text.states, "encoder_attention_mask": text.mask}
        )

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        self.ids = ids
        seen = ids.repeat(self.branches, 1, 1).flatten(0, 1)  # [G·B·K, P]
        logits = self.model(seen, **self.condition, use_cache=False).logits[:, -1]
        return logits.view(self.branches, *ids.shape[:2], -1)

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(torch.cat([self.ids, ids[:, :, None]], 2))
