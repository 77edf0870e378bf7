"""Pieces by MusicGen in the making, through torch: one batch (fast, and obvious), and pieces that come and go.

musicgen_engine.py has the same for the CPU's kernels.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.generation.capture import BUCKET, Capture, Pool, addresses, bucket, numbers, recordable
from tunesmith.models.musicgen_layers import Text, bias_of
from tunesmith.nn.cache import DecoderCache, DenseCache, LayerCache, ManyCache, Places, Room, View

if TYPE_CHECKING:
    from tunesmith.models.musicgen import MusicgenForCausalLM

TEXT = 32
"""Room for text grows by so many tokens, where recordings are to be used again."""


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


class SlotMemory:
    """All that a step of several pieces reads and writes: slot s has the sequences s · branches and following."""

    def __init__(
        self,
        model: "MusicgenForCausalLM",
        count: int,
        capacity: int,
        text_places: int,
        branches: int,
        recorded: bool,
    ) -> None:
        """recorded: are steps recorded (generation/capture.py)?"""
        config, sequences = model.config, count * branches
        self.count, self.capacity, self.text_places, self.branches = count, capacity, text_places, branches
        self.weights, self.recorded = addresses(model), recorded
        room = Room(
            sequences,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            model.dtype,
            model.device,
        )
        self.own = [room.allocate(capacity) for _ in range(config.num_hidden_layers)]
        seen = [room.allocate(text_places) if text_places else None for _ in range(config.num_hidden_layers)]
        self.memories = [None if pair is None else View(*pair) for pair in seen]
        states = torch.zeros(sequences, text_places, config.hidden_size, dtype=model.dtype, device=model.device)
        self.text = Text(states, states.new_zeros(states.shape[:2])) if text_places else None
        self.ids = torch.zeros(count, config.num_codebooks, 1, dtype=torch.long, device=model.device)
        self.position = torch.zeros(count, dtype=torch.long, device=model.device)
        self.logits = torch.zeros(sequences, config.num_codebooks, config.vocab_size, device=model.device)
        self.steps: dict[int, Capture] = {}

    @torch.no_grad()
    def begin(self, model: "MusicgenForCausalLM", conditions: Mapping[int, Text | None]) -> None:
        """New texts in these slots; what nobody may see any more is zero."""
        if self.text is None:
            assert not any(conditions.values()), "there is room for text"
            return
        rows = [slot * self.branches + branch for slot in conditions for branch in range(self.branches)]
        fresh = Text(*(x.new_zeros(len(rows), *x.shape[1:]) for x in self.text))
        for i, text in enumerate(conditions.values()):
            for whole, given in zip(fresh, text or (), strict=text is not None):
                whole[i * self.branches :][: len(given), : given.shape[1]] = given
        here = numbers(rows, self.ids.device)
        for whole, given in zip(self.text, fresh, strict=True):
            whole[here] = given
        for memory, layer in zip(self.memories, model.model.decoder.layers, strict=True):
            assert memory is not None
            memory.keys[here], memory.values[here] = layer.encoder_attn.keys_values(fresh.states)

    def step(
        self, model: "MusicgenForCausalLM", ids: Int[Tensor, "B K 1"], position: Sequence[int], end: int
    ) -> Float[Tensor, "GB K V"]:
        """Feed a column to each slot, at its position; none of those that matter reaches beyond `end`.  The logits hold
        until the next step.
        """
        self.ids.copy_(ids)
        self.position.copy_(numbers(position, self.ids.device))
        seen = bucket(end, self.capacity)
        if not self.recorded:
            self._work(model, seen)
            return self.logits
        if seen not in self.steps:
            self.steps[seen] = Capture(partial(self._work, model, seen), self.ids.device, model.fuse)
        self.steps[seen]()
        return self.logits

    def _work(self, model: "MusicgenForCausalLM", seen: int) -> None:
        self.logits.copy_(self.run(model, self.ids, slice(None), self.position, seen))

    def run(
        self,
        model: "MusicgenForCausalLM",
        ids: Int[Tensor, "B K P"],
        here: slice,
        position: Int[Tensor, " B"],
        seen: int,
    ) -> Float[Tensor, "GB K V"]:
        """Logits of what follows, of the sequences `here`."""
        decoder = model.model.decoder
        where = position.repeat_interleave(self.branches)[:, None]
        places = Places.of(where, ids.shape[2], seen, model.dtype)
        layers = [
            LayerCache(ManyCache(keys[here], values[here], places), m and View(m.keys[here], m.values[here]))
            for (keys, values), m in zip(self.own, self.memories, strict=True)
        ]
        text = None if self.text is None else Text(self.text.states[here], self.text.mask[here])
        x = decoder.embed(ids.repeat_interleave(self.branches, 0))
        states, bias = (None, None) if text is None else (text.states, bias_of(text.mask, x.dtype))
        hidden = decoder(x, None, states, bias, DecoderCache(layers, where)).hidden[:, -1:]
        return torch.cat(model.heads(hidden), 1)


class MusicgenSlots:
    """Several pieces in the making, each at a place of its own, through torch (generation/batching.py).

    A step is one call for all slots, those without a piece included, so that a piece's numbers don't depend on how many
    there are; on a GPU it is recorded where it may be (generation/capture.py).  Longer prompts are fed slot by slot.
    """

    def __init__(
        self, model: "MusicgenForCausalLM", count: int, capacity: int, text_places: int, branches: int
    ) -> None:
        """text_places: tokens of the longest text; 0 where none will come."""
        self.model, self.count, self.capacity, self.branches = model, count, capacity, branches
        self.fed, self.used = [0] * count, [1] * count
        weights, recorded = addresses(model), recordable(model)
        pool = model.kept if recorded else Pool[SlotMemory]()
        room = math.ceil(capacity / BUCKET) * BUCKET if recorded else capacity
        places = math.ceil(text_places / TEXT) * TEXT if recorded else text_places

        def fits(memory: SlotMemory) -> bool:
            same = (memory.count, memory.branches, bool(memory.text_places), memory.weights)
            wanted = (count, branches, bool(places), weights)
            return same == wanted and memory.capacity >= room and memory.text_places >= places

        self.memory = pool.take(self, fits, lambda: SlotMemory(model, count, room, places, branches, recorded))
        if recorded:
            self._forget()

    def _forget(self) -> None:
        """What was left is hidden by masks, but nothing hides a NaN."""
        for keys, values in self.memory.own:
            keys.zero_()
            values.zero_()
        self.memory.begin(self.model, dict.fromkeys(range(self.count)))

    def begin(self, conditions: Mapping[int, Text | None]) -> None:
        """See generation/batching.py.  A text has a row for each guidance branch."""
        for slot, text in conditions.items():
            self.fed[slot], self.used[slot] = 0, 1 if text is None else len(text.states)
        self.memory.begin(self.model, conditions)

    @torch.no_grad()
    def feed(self, columns: Mapping[int, Int[Tensor, "K _"]]) -> dict[int, Float[Tensor, "G K V"]]:
        """See generation/batching.py.  Logits of single columns hold until the next call."""
        steps = {slot: ids for slot, ids in columns.items() if ids.shape[1] == 1}
        found = self._step(steps) if steps else {}
        for slot in columns.keys() - steps.keys():
            here = slice(slot * self.branches, (slot + 1) * self.branches)
            found[slot] = self._run(columns[slot][None], here, [self.fed[slot]])[: self.used[slot]]
        for slot, ids in columns.items():
            self.fed[slot] += ids.shape[1]
        return {slot: found[slot] for slot in columns}

    def _step(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Slots that have nothing to feed write where they will write next, or nobody reads."""
        blank = torch.zeros_like(next(iter(columns.values())))
        ids = torch.stack([columns.get(slot, blank) for slot in range(self.count)])
        end = max(self.fed[slot] for slot in columns) + 1
        logits = self.memory.step(self.model, ids, [fed % self.capacity for fed in self.fed], end)
        return {slot: logits[slot * self.branches :][: self.used[slot]] for slot in columns}

    def all(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """Feed all slots alike, which began together.  Logits of single columns hold until the next call."""
        if ids.shape[2] == 1:
            logits = self.memory.step(self.model, ids, self.fed, self.fed[0] + 1)
        else:
            logits = self._run(ids, slice(None), self.fed)
        self.fed = [fed + ids.shape[2] for fed in self.fed]
        return logits.unflatten(0, (self.count, self.branches)).transpose(0, 1)

    def _run(self, ids: Int[Tensor, "B K P"], here: slice, position: list[int]) -> Float[Tensor, "GB K V"]:
        """Logits of what follows, of the sequences `here`."""
        where, end = numbers(position, ids.device), max(position) + ids.shape[2]
        return self.memory.run(self.model, ids, here, where, end)


class RecordedSession:
    """A piece in the making on a GPU, for one or two guidance branches of the same samples: slots that are in step."""

    def __init__(
        self, model: "MusicgenForCausalLM", samples: int, capacity: int, text: Text | None, branches: int
    ) -> None:
        self.slots = MusicgenSlots(model, samples, capacity, 0 if text is None else text.states.shape[1], branches)
        self.slots.begin({i: None if text is None else text.rows(i, samples) for i in range(samples)})

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.slots.all(ids)

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.slots.all(ids[:, :, None])


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
