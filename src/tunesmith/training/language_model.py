"""Teaching MusicGen's language model on the codes of a rendered corpus, with a text encoder that can read (text.py)."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EncodecFeatureExtractor, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from tunesmith.codecs.encodec import EncodecModel
from tunesmith.errors import RequestError
from tunesmith.generation.patterns import musicgen
from tunesmith.models.musicgen import MusicgenDecoderConfig, shift_right
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor
from tunesmith.training.beginnings import begin_well
from tunesmith.training.checkpoints import forget_paths
from tunesmith.training.optimizers import muon_and_adamw
from tunesmith.training.runs import Schedule, train, write_recipe
from tunesmith.training.text import caption, pocket_text_config, pocket_tokenizer, read_labels

IGNORED = -100  # a label that cross-entropy doesn't count


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """Train a small MusicGen from scratch on a codec's codes of a rendered corpus."""

    data: Path
    """Folder of shards with labels, as the corpus command writes them."""
    codec: Path
    """Folder of the trained codec."""
    run: Path
    """Folder for codes, checkpoints and history; the whole model is written to its `model/`."""
    text: Path | None = None
    """Folder of a text encoder, as the text run writes it; it stays as it is, as MusicGen's does.  Without one, a new
    encoder is trained with the language model."""
    start: Path | None = None
    """Begin from the weights of this model folder (ignored when the run has a checkpoint)."""
    shards: int | None = None
    """Use the first so many shards; all by default."""
    width: int = 192
    layers: int = 6
    heads: int = 6
    seconds: float = 10.0
    """Length of the crops."""
    from_start: float = 0.75
    """Share of crops that begin where their clip begins, for that is where generation begins."""
    withhold: float = 0.15
    """Share of captions that are left out, so that guidance has something to compare with."""
    specify: float = 0.7
    """Share of captions that name lead, drums, key and tempo; the others are as the corpus draws them."""
    keep: float = 0.8
    """Probability with which one of those others keeps each attribute."""
    embedding_learning_rate: float = 1.5e-2
    """Under AdamW, as the next two; the schedule's rate is that of Muon."""
    head_learning_rate: float = 4e-3
    text_learning_rate: float = 2e-3
    """Of cross-attention, the text's projection, a text encoder that learns too, and all norms."""
    short: float = 0.35
    """Share of batches that hold, in place of each crop, as many crops of `short_seconds` as fill its length, all of
    them beginnings: words say most where nothing was heard yet, and are forgotten where much was."""
    short_seconds: float = 2.0
    hide: float = 0.4
    """Share of crops of which the model sees few of the frames (a random part, 20 % on average) while it predicts every
    code: what it can't infer from the past it has to learn from the words.  With `short`, a share of the short ones."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            batch=4, learning_rate=4e-3, beta1=0.9, beta2=0.95, weight_decay=0.05, warmup=100, clip=1.0
        )
    )


def encode_shards(codec: EncodecModel, data: Path, out: Path, limit: int | None = None, batch: int = 8) -> None:
    """Write the codes of every shard in `data` to `out` (int16 [clips, K, S]); shards that are there are kept."""
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted(data.glob("*.npy"))[:limit]:
        target = out / source.name
        if target.exists():
            continue
        clips = np.load(source, mmap_mode="r")
        with torch.inference_mode():
            codes = [
                codec.encode_codes(torch.from_numpy(clips[i : i + batch].astype(np.float32) / 32768)[:, None])
                for i in range(0, len(clips), batch)
            ]
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, torch.cat(codes).to(torch.int16).numpy())
        part.replace(target)


class CaptionedCodes(Dataset[dict[str, Any]]):
    """Crops of codes, each with a caption drawn anew; item i depends on (seed, i) alone."""

    def __init__(self, codes: Path, data: Path, *, rate: float, recipe: LanguageRecipe) -> None:
        files = sorted(codes.glob("*.npy"))
        self.codes = np.concatenate([np.load(file) for file in files])
        self.labels = read_labels(data, [file.name for file in files])
        self.frames, short = round(recipe.seconds * rate), round(recipe.short_seconds * rate)
        self.short_frames = min(short, self.frames)
        if self.frames > self.codes.shape[2]:
            raise RequestError(
                f"Crops of {recipe.seconds:g} s don't fit into clips of {self.codes.shape[2] / rate:g} s."
            )
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.schedule.steps * self.recipe.schedule.batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"long": a crop, "short": as many short ones as fill its length, "chance": 0 to 1}: a batch takes these or
        those.
        A crop is {"codes": [K S], "text": caption (None: withheld), "hidden": [S], whether the input is hidden}.
        """
        recipe, rng = self.recipe, random.Random(f"{self.recipe.schedule.seed} / {index}")
        long = self._crop(rng, self.frames, recipe.from_start, 0.0 if recipe.short else recipe.hide)
        count = self.frames // self.short_frames if recipe.short else 0
        short = [self._crop(rng, self.short_frames, 1.0, recipe.hide) for _ in range(count)]
        return {"long": long, "short": short, "chance": rng.random()}

    def _crop(self, rng: random.Random, frames: int, from_start: float, hide: float) -> dict[str, Any]:
        clip = rng.randrange(len(self.codes))
        last = self.codes.shape[2] - frames
        start = 0 if rng.random() < from_start else rng.randint(0, last)
        codes = torch.from_numpy(self.codes[clip, :, start : start + frames].astype(np.int64))
        said = rng.random() >= self.recipe.withhold
        words = {"share": self.recipe.specify, "keep": self.recipe.keep}
        text = caption(self.labels[clip], rng, **words) if said else None
        share = rng.random() ** 0.25 if rng.random() < hide else 0.0
        hidden = torch.tensor([rng.random() < share for _ in range(frames)])
        return {"codes": codes, "text": text, "hidden": hidden}


def delayed_labels(codes: Int[Tensor, "B K S"]) -> Int[Tensor, "B S K"]:
    """What the decoder predicts at each of S steps under MusicGen's delay; codebook k's first k steps don't count.

    The last steps, in which a codebook has run out of frames, are left out as in the original's training.
    """
    grid = musicgen(codes.shape[2], codes.shape[1]).build(codes, special=IGNORED, valid_only=True)
    return grid[:, :, 1:].transpose(1, 2)


class Collator:
    """Items to a batch: padded token ids, a mask that is 0 throughout where the text is withheld, delayed labels, and
    inputs in which the special token stands for hidden steps.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: int, short: float = 0.0) -> None:
        """short: share of batches that take their items' short crops."""
        self.tokenizer, self.special, self.short = tokenizer, special, short

    def __call__(self, found: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch for `MusicgenForConditionalGeneration`."""
        if found[0]["chance"] < self.short:
            items = [crop for item in found for crop in item["short"]]
        else:
            items = [item["long"] for item in found]
        text = self.tokenizer([item["text"] or "" for item in items], padding=True, return_tensors="pt")
        said = torch.tensor([[item["text"] is not None] for item in items])
        labels = delayed_labels(torch.stack([item["codes"] for item in items]))
        hidden = torch.stack([item["hidden"] for item in items])[:, None, : labels.shape[1]]
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"] * said,
            "decoder_input_ids": shift_right(labels, self.special, self.special).masked_fill(hidden, self.special),
            "labels": labels,
        }


def pocket_model(codec: EncodecModel, text: T5Config, recipe: LanguageRecipe) -> MusicgenConfig:
    """A decoder as wide and deep as the recipe says."""
    decoder = MusicgenDecoderConfig(
        vocab_size=codec.cardinality,
        num_codebooks=codec.codebooks,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        ffn_dim=4 * recipe.width,
        dropout=0.0,
    )
    return MusicgenConfig.from_sub_models_config(text, codec.config, decoder)


def train_language_model(recipe: LanguageRecipe) -> MusicgenForConditionalGeneration:
    """Run or resume the recipe; the model as it is at the end is also saved, complete, to `run/model`."""
    write_recipe(recipe.run, recipe)
    torch.manual_seed(recipe.schedule.seed)
    codec, tokenizer = EncodecModel.from_pretrained(recipe.codec), pocket_tokenizer()
    encode_shards(codec, recipe.data, recipe.run / "codes", recipe.shards)
    model = _new_model(codec, len(tokenizer), recipe)
    data = CaptionedCodes(recipe.run / "codes", recipe.data, rate=codec.frame_rate, recipe=recipe)
    schedule = recipe.schedule
    optimizer = muon_and_adamw(
        model,
        learning_rate=schedule.learning_rate,
        betas=(schedule.beta1, schedule.beta2),
        weight_decay=schedule.weight_decay,
        rates={
            "embed_tokens.": recipe.embedding_learning_rate,
            "lm_heads.": recipe.head_learning_rate,
            **dict.fromkeys(("encoder_attn.", "enc_to_dec_proj.", "text_encoder.", "norm."), recipe.text_learning_rate),
        },
    )
    collate = Collator(tokenizer, codec.cardinality, recipe.short)
    train(model, data, recipe.run, schedule, collate=collate, optimizer=optimizer)
    save_model(model, tokenizer, recipe.run / "model")
    return model


def _new_model(codec: EncodecModel, words: int, recipe: LanguageRecipe) -> MusicgenForConditionalGeneration:
    """The model as training begins, its codec (and a text encoder that was given) frozen."""
    text = T5EncoderModel.from_pretrained(recipe.text) if recipe.text else None
    config = text.config if text else pocket_text_config(words)
    if recipe.start is None:
        model = MusicgenForConditionalGeneration(pocket_model(codec, config, recipe))
        begin_well(model, codec)
    else:
        model = MusicgenForConditionalGeneration.from_pretrained(recipe.start)
    if text:
        model.text_encoder.load_state_dict(text.state_dict())
        model.freeze_text_encoder()
    model.audio_encoder = codec
    model.freeze_audio_encoder()
    return model


def save_model(
    model: MusicgenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A complete checkpoint folder; weights are stored in `dtype`, and loaded in float32 unless asked otherwise."""
    from safetensors.torch import load_file, save_file

    forget_paths(model.config)
    model.eval().save_pretrained(folder)
    if dtype != torch.float32:
        file = folder / "model.safetensors"
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(file).items()}
        part = file.with_suffix(".part")
        save_file(tensors, part, metadata={"format": "pt"})
        part.replace(file)
    extractor = EncodecFeatureExtractor(
        feature_size=1, sampling_rate=model.config.audio_encoder.sampling_rate, padding_side="left"
    )
    MusicgenProcessor(extractor, tokenizer).save_pretrained(folder)
