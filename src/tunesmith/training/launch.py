"""From a recipe and a folder of songs to a trained model: what `tunesmith train` does.

    launch(Order(recipe=compose("small_vqvae"), data=Path("songs"), run=Path("runs/vqvae")))

builds the model, opens the data (a folder of audio, or of codes that `tunesmith data encode` made), says what the run
will take, trains, and writes the result to `run/model`.  A new kind of model needs an entry in `LESSONS`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import EncodecFeatureExtractor, PreTrainedConfig, PreTrainedTokenizerBase

from tunesmith import hub
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig, measure_bandwidth
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.errors import IncompatiblePartsError, RequestError, RunError
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor, load_tokenizer
from tunesmith.training import asked, checkpoints, encoded
from tunesmith.training.adversarial import Adversarial, train_encodec
from tunesmith.training.alignment import store_alignment
from tunesmith.training.crops import AudioCrops, Labels
from tunesmith.training.encoded import EncodedCodes, Encoding
from tunesmith.training.estimate import estimate
from tunesmith.training.folders import Songs, open_songs
from tunesmith.training.jukebox import PriorObjective, VQVAEObjective
from tunesmith.training.labels import Captions, JukeboxLabels
from tunesmith.training.metadata import Metadata
from tunesmith.training.musicgen import MusicgenObjective
from tunesmith.training.recipes import OF_THE_CODEC, Kind, Recipe, flat
from tunesmith.training.runs import train
from tunesmith.training.trainer import MetricTrainer, Objective, sharing_asked_of_accelerate
from tunesmith.training.vocabulary import sizes_of, tokenizer_of

MEASURED_SECONDS = 600.0  # of audio, for the normalisers of a VQ-VAE's losses
MUSICGEN_SECONDS, MUSICGEN_PART = 30.0, 0.8  # of a crop, and how much of it lies in its song at least
MUSICGEN_UPDATES = 2000  # that audiocraft calls an epoch
TEXT_ENCODER = "google-t5/t5-base"

M = TypeVar("M", JukeboxVQVAE, JukeboxPrior)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to train, on what, and where."""

    recipe: Recipe
    data: Path
    """Songs, or codes."""
    run: Path
    """Folder for checkpoints and figures; the model is written to its `model/`."""
    codec: str | None = None
    """Of a prior its VQ-VAE, of MusicGen its EnCodec: a run, a folder or a name."""
    text_encoder: str | None = None
    """Of MusicGen."""
    origin: str | None = None
    """A checkpoint to go on from, with its optimizer and its step, or a model whose weights are a start."""
    changed: bool = False
    """Go on with the run though its settings were others."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a run needs."""

    objective: Objective
    data: Any
    test: Any = None
    collate: Callable[[list[Any]], dict[str, Any]] | None = None
    finish: Callable[[Path], object] = field(default=lambda folder: None)
    """What is still to be done in the model's folder at the end."""


def launch(order: Order, tell: Callable[[str], object] = print) -> Path:
    """Train, or go on where the run stopped; the folder of the model.

    Raises RequestError and IncompatiblePartsError for what doesn't fit, RunError where the run can't go on.
    """
    if sharing_asked_of_accelerate():
        raise RequestError(
            "accelerate was told to share the model among processes; launch without that, and give --set fsdp=true."
        )
    order = annealed(order)
    for sentence in same_settings(order):
        tell(sentence)
    torch.manual_seed(order.recipe.schedule.seed)
    if order.recipe.kind == "encodec":
        return _encodec(order, tell)
    lesson = LESSONS[order.recipe.kind](order, tell)
    keep_settings(order)
    say_estimate(lesson, order, tell)
    trainer = train(
        lesson.objective,
        lesson.data,
        order.run,
        order.recipe.schedule,
        collate=lesson.collate,
        test=lesson.test,
        start=state_of(order),
    )
    _export(trainer, lesson, order.run / "model")
    _say_skipped(lesson.data, tell)
    return order.run / "model"


def _export(trainer: MetricTrainer, lesson: Lesson, target: Path) -> None:
    part = target.with_name(".model.part")
    if not trainer.args.should_save:
        trainer.export(part)
        return
    with checkpoints.whole_or_absent(part, target, checkpoints.last(trainer.run)):
        trainer.export(part)
        lesson.finish(part)


def say_estimate(lesson: Lesson, order: Order, tell: Callable[[str], object]) -> None:
    """Parameters, memory and time, before the start."""
    schedule, data = order.recipe.schedule, lesson.data
    if schedule.fsdp and torch.distributed.is_initialized():
        return
    collate = lesson.collate or default_collate
    batch = collate([data[i % len(data)] for i in range(schedule.batch)])
    objective = lesson.objective
    if torch.cuda.is_available():
        objective.cuda()
    tell(str(estimate(objective, batch, schedule, len(data))))


def _say_skipped(data: Any, tell: Callable[[str], object]) -> None:
    for name, times in data.skipped.items():
        tell(f"{name} is damaged: {times} of its crops could not be read and were replaced by others.")


# --------------------------------------------------------------------------------- settings of a run's folder


def keep_settings(order: Order) -> None:
    """Write down how the run was asked for."""
    others = {"codec": order.codec, "from": order.origin, "data": order.data}
    asked.keep(order.run, flat(order.recipe), **others)


def same_settings(order: Order) -> list[str]:
    """What has changed since the run began, as sentences; RunError names what must not, unless `changed` allows it."""
    changed = asked.changes(order.run, flat(order.recipe))
    if (grave := asked.grave(changed)) and not order.changed:
        raise RunError(
            f"{order.run} was begun with other settings: {'; '.join(grave)}. Give the old values to go on, --changed "
            "to go on with the new ones, or another --run."
        )
    return [f"Changed: {sentence}." for sentence in changed.values()]


def annealed(order: Order) -> Order:
    """A straight line down that begins nowhere begins where the checkpoint stands that the run goes on from."""
    schedule, state = order.recipe.schedule, state_of(order)
    if schedule.curve != "linear" or schedule.decay_start or state is None:
        return order
    step = int(json.loads((state / "trainer_state.json").read_text())["global_step"])
    return replace(order, recipe=replace(order.recipe, schedule=replace(schedule, decay_start=step)))


def state_of(order: Order) -> Path | None:
    """The checkpoint with a position that `origin` is or holds; None where it is a model."""
    if order.origin is None:
        return None
    folder = Path(order.origin)
    if (folder / "trainer_state.json").exists():
        return folder
    return checkpoints.last(folder)


def folder_of(name: str) -> Path:
    """The folder of a part: of a run its result, of a checkpoint with averages those, else what the hub finds."""
    folder = Path(name).expanduser()
    for inside in ("model", "ema"):
        if (folder / inside / "config.json").exists():
            return folder / inside
    return folder if folder.is_dir() else hub.locate(name)


# --------------------------------------------------------------------------------------------------- Jukebox


def vqvae_lesson(order: Order, tell: Callable[[str], object]) -> Lesson:
    """A VQ-VAE; the normalisers of its losses are measured once and kept in its configuration."""
    recipe = order.recipe
    config = JukeboxVQVAEConfig(**recipe.vqvae)
    length = _length(recipe)
    length = max(1, length // config.hop_lengths[-1]) * config.hop_lengths[-1]
    songs = _songs(order)
    crop = functools.partial(AudioCrops, rate=config.sampling_rate, samples=length, seed=recipe.schedule.seed)
    data = crop(songs.train, aug_shift=recipe.data.aug_shift, aug_blend=recipe.data.aug_blend)
    _say_songs(songs, length / config.sampling_rate, tell)
    if config.bandwidth is None:
        config.bandwidth = _bandwidth(order, data)
    model = _begun(JukeboxVQVAE, config, order)
    test = crop(songs.test) if len(songs.test) else None
    heard = torch.stack(
        [(test or data)[i]["audio"] for i in range(min(recipe.schedule.sample_count, len(test or data)))]
    )
    return Lesson(objective=VQVAEObjective(model, heard), data=data, test=test)


def _bandwidth(order: Order, data: AudioCrops) -> dict[str, float]:
    """Of this run's first start, else measured over the data."""
    if (last := checkpoints.last(order.run) or state_of(order)) is not None:
        return dict(JukeboxVQVAEConfig.from_pretrained(last).bandwidth or {})
    count = min(len(data), max(1, round(MEASURED_SECONDS * data.rate / data.samples)))
    chosen = [i * len(data) // count for i in range(count)]
    return measure_bandwidth(data[i]["audio"][None, :, None] for i in chosen)


def prior_lesson(order: Order, tell: Callable[[str], object]) -> Lesson:
    """A prior of any level, on audio that its VQ-VAE encodes in every step, or on codes."""
    recipe = order.recipe
    if order.codec is None:
        raise RequestError("A prior needs the VQ-VAE whose codes it learns: give its run or folder with --vqvae.")
    found = folder_of(order.codec)
    codec = JukeboxVQVAE.from_pretrained(found)
    _same_codec(recipe, codec.config)
    levels = codec.levels
    level = (0 if recipe.upsampler else levels - 1) if recipe.level is None else recipe.level
    if not 0 <= level < levels:
        raise RequestError(f"level is {level}; this VQ-VAE has 0 (finest) to {levels - 1} (top).")
    facts = {name: getattr(codec.config, name) for name in OF_THE_CODEC if hasattr(codec.config, name)}
    facts["music_vocab_size"] = codec.config.nb_discrete_codes
    settings = {**recipe.prior, **facts, "level": levels - 1 - level, "codes_hash": _codes_of(order, found)}
    reads = bool(settings.get("metadata_conditioning", True) or settings.get("nb_relevant_lyric_tokens"))
    coded = (order.data / encoded.ENCODING).exists()
    songs = None if coded else _songs(order, settings)
    known = [s.metadata for s in (encoded.read_songs(order.data) if songs is None else songs)]
    tokenizer = _tokenizer(order, known, settings) if reads else None
    if not _is_released(order):
        settings |= {"alignment_layer": None, "alignment_head": None}  # a preset's are those of the released weights
        settings |= {} if tokenizer is None else sizes_of(tokenizer)
    config = JukeboxPriorConfig(**settings)
    model = _begun(JukeboxPrior, config, order, level=config.level)
    labels = None
    if tokenizer is not None:
        place = min(config.level, len(tokenizer.version) - 1)
        labels = JukeboxLabels(tokenizer, level=place, n_tokens=config.nb_relevant_lyric_tokens)
    _same_window(recipe, config)
    data, test = _windows(order, config, level, songs, labels)
    if songs is not None:
        _say_songs(songs, config.window_length / config.sampling_rate, tell)
    shown = default_collate([(test or data)[i % len(test or data)] for i in range(recipe.schedule.sample_count)])
    shown = {name: value for name, value in shown.items() if name in ("audio", "labels", "above")}
    objective = PriorObjective(model, codec, shown)

    if tokenizer is not None:
        objective.beside = tokenizer.save_pretrained

    def finish(folder: Path) -> None:
        if config.nb_relevant_lyric_tokens:
            store_alignment(folder, objective, test or data)

    return Lesson(objective=objective, data=data, test=test, finish=finish)


def _windows(
    order: Order, config: JukeboxPriorConfig, level: int, songs: Songs | None, labels: Labels | None
) -> tuple[Any, Any]:
    """Data and test set: whole windows of the prior."""
    settings, seed = order.recipe.data, order.recipe.schedule.seed
    if songs is None:
        codes = functools.partial(EncodedCodes, order.data, steps=config.n_ctx, level=level, seed=seed, labels=labels)
        held_out = any(song.test for song in encoded.read_songs(order.data))
        return codes(split="train", aug_shift=settings.aug_shift), codes(split="test") if held_out else None
    crop = functools.partial(
        AudioCrops, rate=config.sampling_rate, samples=config.window_length, seed=seed, labels=labels
    )
    data = crop(songs.train, aug_shift=settings.aug_shift, aug_blend=settings.aug_blend)
    return data, crop(songs.test) if len(songs.test) else None


def _same_codec(recipe: Recipe, config: JukeboxVQVAEConfig) -> None:
    """A set such as small_vqvae before a prior's says which codec is meant."""
    asked = JukeboxVQVAEConfig(**recipe.vqvae) if recipe.vqvae else config
    names = ("sampling_rate", "levels", "nb_discrete_codes", "res_downs_t", "res_strides_t")
    for name in names:
        wanted, found = getattr(asked, name), getattr(config, name)
        if _plain(wanted) != _plain(found):
            raise IncompatiblePartsError(
                f"The VQ-VAE has {name} {found}, and the recipe says {wanted}; give the VQ-VAE that the recipe names, "
                "or leave its set out of the recipe."
            )


def _codes_of(order: Order, codec: Path) -> str | None:
    """What the codec's codes mean.  Raises IncompatiblePartsError where the data are codes of another one."""
    own = codes_hash(codec)
    if (order.data / encoded.ENCODING).exists():
        encoding = Encoding.read(order.data)
        if encoding.codes_hash not in (None, own):
            raise IncompatiblePartsError(
                f"{str(order.data)!r} holds codes of {encoding.codec!r}, and {str(codec)!r} is another codec; give the "
                "one that made them, or encode the songs again."
            )
    return own


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _same_window(recipe: Recipe, config: JukeboxPriorConfig) -> None:
    if recipe.data.sample_length not in (None, config.window_length):
        raise RequestError(
            f"sample_length is {recipe.data.sample_length}, but a window of this prior is {config.n_ctx} codes of "
            f"{config.hop_length} samples, {config.window_length}; leave sample_length out, or change n_ctx."
        )


def _tokenizer(order: Order, known: list[Metadata], settings: Mapping[str, Any]) -> JukeboxTokenizer:
    """Of the model to go on from, or of the run, which may have been begun with fewer songs; else of the data."""
    kept = order.run / "tokenizer"
    source = kept if kept.exists() else folder_of(order.origin) if order.origin and state_of(order) is None else None
    if source is not None:
        return JukeboxTokenizer.from_pretrained(source)
    tokens = int(settings.get("nb_relevant_lyric_tokens", 0))
    made = tokenizer_of(known, genres=int(settings.get("max_nb_genres", 1)), characters=tokens)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.mkdir()
    made.save_pretrained(kept)
    return made


def _is_released(order: Order) -> bool:
    """Whether the sizes of tables are those of a model that is there."""
    return order.origin is not None and state_of(order) is None


# -------------------------------------------------------------------------------------------------- MusicGen


def musicgen_lesson(order: Order, tell: Callable[[str], object]) -> Lesson:
    """A language model over an EnCodec's codes, with a text encoder that rests."""
    recipe, schedule = order.recipe, order.recipe.schedule
    model, words = _musicgen(order)
    made_by = _codes_of(order, folder_of(str(order.origin or order.codec)))
    model.config.decoder.codes_hash = model.decoder.config.codes_hash = made_by
    objective = MusicgenObjective(model, recipe.condition_dropout)
    rate, settings = objective.sample_rate, recipe.data
    length = settings.sample_length or round(MUSICGEN_SECONDS * rate)
    count = MUSICGEN_UPDATES * schedule.batch * schedule.accumulate
    captions = Captions(
        merge=settings.merge_text,
        keep_text=1 - settings.drop_text,
        keep_field=settings.keep_field,
        drop_words=settings.drop_words,
    )
    channels = model.config.decoder.audio_channels
    data: Any
    test: Any = None
    if (order.data / encoded.ENCODING).exists():
        steps = length // model.audio_encoder.hop_length
        codes = functools.partial(EncodedCodes, order.data, steps=steps, seed=schedule.seed)
        text = codes(count=1).encoding.text is not None
        data = codes(count=count, text_states=text, labels=None if text else captions)
        if any(song.test for song in encoded.read_songs(order.data)):
            test = codes(split="test", text_states=text, labels=None if text else Captions())
    else:
        songs = _songs(order)
        crop = functools.partial(AudioCrops, rate=rate, samples=length, channels=channels, seed=schedule.seed)
        data = crop(songs.train, count=count, least_part=MUSICGEN_PART, labels=captions)
        test = crop(songs.test, labels=Captions()) if len(songs.test) else None
        _say_songs(songs, length / rate, tell)
    texts = [data[i].get("text") or "" for i in range(schedule.sample_count)]
    objective.shown = dict(words(texts, padding=True, return_tensors="pt")) if any(texts) else {}
    extractor = EncodecFeatureExtractor(feature_size=channels, sampling_rate=rate, padding_side="left")
    objective.beside = MusicgenProcessor(extractor, words).save_pretrained
    return Lesson(objective=objective, data=data, test=test, collate=TextCollator(words))


class TextCollator:
    """Items to a batch: tensors side by side (texts' states padded), words as padded ids; no text is a mask of 0."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch for `MusicgenObjective`."""
        batch: dict[str, Tensor] = {}
        for name in items[0]:
            if name != "text":
                batch[name] = torch.nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True)
        if "text" in items[0]:
            texts = [item["text"] for item in items]
            words = self.tokenizer([text or "" for text in texts], padding=True, return_tensors="pt")
            said = torch.tensor([[text is not None] for text in texts])
            batch |= {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"] * said}
        return batch


def _musicgen(order: Order) -> tuple[MusicgenForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model to begin with: of a whole one to go on from, or a fresh decoder between the two parts."""
    if order.origin is not None:
        whole = folder_of(order.origin)
        model = MusicgenForConditionalGeneration.from_pretrained(whole)
        source = whole if order.text_encoder is None else folder_of(order.text_encoder)
        return model, load_tokenizer(source)
    if order.codec is None:
        raise RequestError(
            "MusicGen needs an EnCodec whose codes it learns: give its run, folder or name with --codec."
        )
    text = folder_of(order.text_encoder or TEXT_ENCODER)
    codec = _encodec_of(folder_of(order.codec))
    sides = int(order.recipe.musicgen.get("audio_channels", 1))
    facts = {"vocab_size": codec.cardinality, "num_codebooks": sides * codec.codebooks}
    settings = {**order.recipe.musicgen, **facts}
    decoder = MusicgenForCausalLM(MusicgenDecoderConfig(**settings))
    model = MusicgenForConditionalGeneration.from_sub_models_pretrained(
        text, audio_encoder_model=codec, decoder_model=decoder
    )
    checkpoints.forget_paths(model.config)
    return model, load_tokenizer(text)


def _encodec_of(folder: Path) -> EncodecModel:
    """A codec, or that of a whole MusicGen."""
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind == MusicgenConfig.model_type:
        return MusicgenForConditionalGeneration.from_pretrained(folder).audio_encoder
    return EncodecModel.from_pretrained(folder)


# --------------------------------------------------------------------------------------------------- EnCodec


def _encodec(order: Order, tell: Callable[[str], object]) -> Path:
    """An EnCodec, against judges."""
    recipe = order.recipe
    songs = _songs(order)
    if order.origin is None:
        codec = EncodecModel(EncodecConfig(**recipe.encodec))
    else:
        codec = EncodecModel.from_pretrained(folder_of(order.origin))
    length = _length(recipe)
    crop = functools.partial(
        AudioCrops, rate=codec.sample_rate, samples=length, channels=codec.channels, seed=recipe.schedule.seed
    )
    data = crop(songs.train, aug_shift=recipe.data.aug_shift)
    _say_songs(songs, length / codec.sample_rate, tell)
    keep_settings(order)
    tell(f"{sum(p.numel() for p in codec.parameters()):,} parameters.")
    test = crop(songs.test) if len(songs.test) else None
    train_encodec(codec, data, order.run, recipe.schedule, Adversarial(**recipe.adversarial), test=test)
    _say_skipped(data, tell)
    return order.run / "model"


# ---------------------------------------------------------------------------------------------------- shared


def _songs(order: Order, prior: Mapping[str, Any] | None = None) -> Songs:
    """The folder's songs, but for those that a prior's label embeddings or the recipe leave out."""
    settings = order.recipe.data
    songs = open_songs(order.data, test_share=1 - settings.train_test_split)
    timed = prior is not None and prior.get("metadata_conditioning", True) and not prior.get("level")
    own = prior if timed and prior is not None else {}
    shortest = max(settings.min_duration or 0.0, float(own.get("min_duration") or 0.0))
    longest = min(settings.max_duration or float("inf"), float(own.get("max_duration") or float("inf")))
    return songs.between(shortest, longest) if shortest > 0 or longest < float("inf") else songs


def _length(recipe: Recipe) -> int:
    if recipe.data.sample_length is None:
        raise RequestError("A codec needs the length of its crops: --set sample_length=SAMPLES.")
    return recipe.data.sample_length


def _say_songs(songs: Songs, seconds: float, tell: Callable[[str], object]) -> None:
    """Which are left out, and how many are shorter than a crop."""
    for name, why in songs.left_out.items():
        tell(f"{name} is left out: {why}")
    short = sum(song.seconds < seconds for song in songs)
    if short:
        tell(
            f"{short} of {len(songs)} songs are shorter than a crop of {seconds:.3g} s and are followed by silence; a "
            "smaller sample_length (codecs) or n_ctx (priors) avoids that."
        )


def _begun(kind: type[M], config: Any, order: Order, **options: Any) -> M:
    """A new model, or with the weights of the one to go on from; checkpoints bring theirs later."""
    if order.origin is None or state_of(order) is not None:
        return kind(config)
    return kind.from_pretrained(folder_of(order.origin), config=config, **options)


LESSONS: dict[Kind, Callable[[Order, Callable[[str], object]], Lesson]] = {
    "vqvae": vqvae_lesson,
    "prior": prior_lesson,
    "musicgen": musicgen_lesson,
}
"""How each kind of model is set up (EnCodec has a loop of its own)."""
