"""Teaching a small text encoder to read captions, before a language model listens to it.

MusicGen's text encoder has read the web before it meets music.  A small one that begins with the language model never
learns to read: a caption says little about each single code, far too little to teach the meaning of words.  So this one
is taught first, by what a corpus knows about every clip: from each token's state, in which the whole caption is to be
found, a linear layer predicts the facts that the caption was drawn from.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

from tunesmith.errors import RequestError
from tunesmith.training.corpus import Labels, describe, specify, vocabulary
from tunesmith.training.runs import Schedule, train, write_recipe


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Teach a small T5 encoder what the words of captions mean."""

    data: Path
    """Folder of shards with labels, as the corpus command writes them."""
    run: Path
    """Folder for checkpoints and history; the encoder and its tokenizer are written to its `text/`."""
    width: int = 128
    layers: int = 2
    specify: float = 0.7
    """Share of captions that name lead, drums, key and tempo; the others are as the corpus draws them."""
    keep: float = 0.8
    """Probability with which one of those others keeps each attribute."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=5000, batch=64, learning_rate=2e-3, beta1=0.9, beta2=0.98, weight_decay=0.01, warmup=100, clip=1.0
        )
    )


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    """A closed vocabulary: every word that captions can contain; numbers are spelt in tens and a last digit, so that
    neighbouring tempos share what they mean.  Case doesn't matter; other words become `<unk>`.
    """
    words = [word for word in vocabulary() if not word.isdecimal()]
    pieces = [*(f"▁{word}" for word in words), *(f"▁{tens}" for tens in range(1, 20)), *"0123456789,.;:!?-()'&", "bpm"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=[*special, ("▁", -6.0), *((piece, -3.0) for piece in pieces)], extra_ids=0)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # A T5Tokenizer is rebuilt from its pieces when it is loaded and forgets the normalizer; this class keeps all.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def pocket_text_config(words: int, width: int = 128, layers: int = 2) -> T5Config:
    """A T5 encoder with heads of 32, for a vocabulary of so many words."""
    return T5Config(
        vocab_size=words,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=width // 32,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )


def read_labels(data: Path, names: Sequence[str] | None = None) -> list[Labels]:
    """The labels of a corpus folder's clips: of all its shards, or of those named (as `train-00000.npy` is).

    Raises:
        RequestError: when the folder has none.

    """
    files = sorted(data.glob("*.jsonl")) if names is None else [(data / n).with_suffix(".jsonl") for n in names]
    lines = [line for file in files for line in file.read_text().splitlines()]
    if not lines:
        raise RequestError(f"{data} holds no labels (*.jsonl); write some with the corpus command first.")
    return [Labels.from_dict(json.loads(line)["labels"]) for line in lines]


def facts(labels: Labels) -> set[str]:
    """What a reader of captions should gather, as names such as `key D minor`, `lead piano` or `tempo 12`."""
    return {
        *(f"{name} {getattr(labels, name)}" for name in ("tonic", "mode", "key", "genre", "metre", "lead")),
        *(f"{name} {getattr(labels, name)}" for name in ("drums", "density", "energy")),
        *(f"plays {name}" for name in labels.instruments),
        *(f"mood {mood}" for mood in labels.moods),
        f"tempo {round(12 * math.log2(labels.bpm))}",  # in steps of 6 %
    }


class Captions(Dataset[dict[str, Any]]):
    """`count` captions with their facts as zeros and ones; item i depends on (seed, i) alone."""

    def __init__(self, labels: Sequence[Labels], *, count: int, recipe: TextRecipe) -> None:
        self.labels, self.count, self.recipe = labels, count, recipe
        found = [facts(item) for item in labels]
        self.names = sorted(set().union(*found))
        self.facts = torch.tensor([[name in known for name in self.names] for known in found])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"text": caption, "facts": [F]}."""
        rng = random.Random(f"{self.recipe.schedule.seed} / caption {index}")
        clip = rng.randrange(len(self.labels))
        text = caption(self.labels[clip], rng, share=self.recipe.specify, keep=self.recipe.keep)
        return {"text": text, "facts": self.facts[clip]}


def caption(labels: Labels, rng: random.Random, *, share: float, keep: float) -> str:
    """A caption that, in a `share` of cases, names lead, drums, key and tempo; see `describe` for the others."""
    return specify(labels, rng) if rng.random() < share else describe(labels, rng, keep=keep)


class Reader(T5EncoderModel):
    """A text encoder, and a linear layer that tells the facts from each of its states."""

    def __init__(self, config: T5Config, names: Sequence[str]) -> None:
        super().__init__(config)
        self.names = tuple(names)
        self.tell = nn.Linear(config.d_model, len(names))

    def alone(self) -> T5EncoderModel:
        """The encoder without that layer."""
        encoder = T5EncoderModel(self.config).eval()
        encoder.load_state_dict({name: t for name, t in self.state_dict().items() if not name.startswith("tell.")})
        return encoder

    def forward(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], facts: Float[Tensor, "B F"]
    ) -> dict[str, Tensor]:
        """Cross-entropy summed over the facts, in nats, and how often a kind's most likely value is the true one."""
        states = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        told = self.tell(states)
        truth = facts[:, None].expand_as(told)
        nats = nn.functional.binary_cross_entropy_with_logits(told, truth, reduction="none").sum(2)
        mean = (told * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        loss = ((nats * attention_mask).sum(1) / attention_mask.sum(1)).mean()
        return {"loss": loss, **dict(self._right(mean.detach(), facts))}

    def _right(self, told: Tensor, truth: Tensor) -> Iterator[tuple[str, Tensor]]:
        for kind in ("key", "tempo", "lead", "drums"):
            columns = [i for i, name in enumerate(self.names) if name.startswith(f"{kind} ")]
            yield kind, (told[:, columns].argmax(1) == truth[:, columns].argmax(1)).float().mean()


def train_text_encoder(recipe: TextRecipe) -> T5EncoderModel:
    """Run or resume the recipe; the encoder as it is at the end is also saved, with its tokenizer, to `run/text`."""
    write_recipe(recipe.run, recipe)
    torch.manual_seed(recipe.schedule.seed)
    tokenizer = pocket_tokenizer()
    data = Captions(read_labels(recipe.data), count=recipe.schedule.steps * recipe.schedule.batch, recipe=recipe)
    reader = Reader(pocket_text_config(len(tokenizer), recipe.width, recipe.layers), data.names)
    train(reader, data, recipe.run, recipe.schedule, collate=_Collator(tokenizer))
    encoder = reader.alone()
    encoder.save_pretrained(recipe.run / "text")
    tokenizer.save_pretrained(recipe.run / "text")
    return encoder


class _Collator:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        text = self.tokenizer([item["text"] for item in items], padding=True, return_tensors="pt")
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "facts": torch.stack([item["facts"] for item in items]).float(),
        }
