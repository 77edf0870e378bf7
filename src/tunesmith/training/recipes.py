"""What a training run is: frozen records, presets by name, and how several are put together.

    compose("small_vqvae,small_prior,all_fp16,cpu_ema", {"batch": "2"})

begins with the defaults, lets each named set of `SETS` change some settings, the later the stronger, and then the
single settings.  A setting's key is `record.name` (`prior.hidden_size`, `schedule.batch`) or the name alone: that of
the recipe's own model goes first, then schedule and data.  The original implementation's names of hyperparameters are
understood too (`ORIGINAL`).  Unknown keys are refused.
"""

import ast
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from tunesmith.codecs.encodec import PRESETS as ENCODEC
from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.codecs.vqvae import PRESETS as VQVAE
from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.convert.jukebox_settings import NAMES
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import PRESETS as PRIORS
from tunesmith.models.jukebox import JukeboxPriorConfig, attention_pattern
from tunesmith.models.musicgen import PRESETS as MUSICGEN
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.training.adversarial import Adversarial
from tunesmith.training.schedule import Schedule

Kind = Literal["vqvae", "prior", "musicgen", "encodec"]
Settings = Mapping[str, Any]

MODELS: dict[str, type] = {
    "vqvae": JukeboxVQVAEConfig,
    "prior": JukeboxPriorConfig,
    "musicgen": MusicgenDecoderConfig,
    "encodec": EncodecConfig,
}
"""The configuration of each kind of model."""

NOT_FOR_ENCODEC = (
    "accumulate",
    "optimizer",
    "skip_above",
    "float16",
    "checkpointing",
    "compile",
    "fsdp",
    "test_every",
    "sample_every",
)
"""Settings of a schedule that training against judges (adversarial.py) doesn't know."""

RECORDS: dict[str, type] = {**MODELS, "adversarial": Adversarial}
"""Parts of a recipe of which it holds what differs from the defaults."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is cut from the songs."""

    sample_length: int | None = None
    """Audio samples of a crop.  By default a prior's whole window; a codec needs to be told."""
    train_test_split: float = 0.9
    """Share of the songs that are learnt from; the rest is the test set."""
    aug_shift: bool = False
    """Begin crops anywhere instead of at multiples of their length."""
    aug_blend: bool = False
    """Mix stereo down with a random share of each channel instead of halves."""
    min_duration: float | None = None
    """Leave out songs that are shorter, in seconds."""
    max_duration: float | None = None
    """Leave out songs that are longer, in seconds."""
    merge_text: float = 0.25
    """Share of captions that other fields (genre, key, ...) are merged into."""
    keep_field: float = 0.5
    """Probability with which a merged caption keeps each field."""
    drop_text: float = 0.5
    """Probability with which a merged caption loses its own text."""
    drop_words: float = 0.3
    """Share of words that are left out of captions."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run, but for its data and its folder."""

    kind: Kind = "vqvae"
    """Which model learns."""
    level: int | None = None
    """Of a prior: 0 is the finest; None is the top, or the finest for a set that is an upsampler."""
    upsampler: bool = False
    """Whether a prior without `level` belongs to the finest level."""
    vqvae: Settings = field(default_factory=dict)
    """Settings of `JukeboxVQVAEConfig` that differ from its defaults; of a prior's codec they come from its folder."""
    prior: Settings = field(default_factory=dict)
    """Likewise of `JukeboxPriorConfig`; rate, codes and strides come from the codec."""
    musicgen: Settings = field(default_factory=dict)
    """Likewise of `MusicgenDecoderConfig`."""
    encodec: Settings = field(default_factory=dict)
    """Likewise of `EncodecConfig`."""
    adversarial: Settings = field(default_factory=dict)
    """Likewise of `Adversarial`: what an EnCodec is asked for."""
    condition_dropout: float = 0.3
    """Of MusicGen: share of songs whose text is withheld, so that guidance has something to compare with."""
    data: DataSettings = field(default_factory=DataSettings)
    schedule: Schedule = field(default_factory=Schedule)


class Place(NamedTuple):
    """Where a setting lives: a record of the recipe ("" is the recipe itself), and its name there."""

    record: str
    name: str

    @property
    def key(self) -> str:
        """As users write it in full."""
        return f"{self.record}.{self.name}" if self.record else self.name


def compose(names: str | Iterable[str], settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that sets (names with commas between them, or a sequence) and single settings make.

    Values may be text as users type it: numbers, true, false, none, lists.  Raises RequestError for what is unknown.
    """
    recipe = Recipe()
    for name in [word.strip() for word in names.split(",")] if isinstance(names, str) else names:
        recipe = _changed(recipe, {locate(recipe, key): value for key, value in _named(name).items()})
    for key, value in (settings or {}).items():
        place, given = _understood(recipe, key, parse(value) if isinstance(value, str) else value)
        recipe = _changed(recipe, {place: _typed(place, given)})
    check(recipe)
    return recipe


def locate(recipe: Recipe, key: str) -> Place:
    """Where a key points to.  Raises RequestError, with look-alikes, where it points to nothing."""
    known = _known()
    if key in ORIGINAL and recipe.kind in ("vqvae", "prior"):
        key = _original(recipe, key)
    record, _, name = key.rpartition(".")
    for place in (
        [Place(record, name)]
        if record
        else [Place(r, name) for r in (recipe.kind, "schedule", "data", "adversarial", "")]
    ):
        if place in known or place.record == "prior.encoder_config":
            return place
    names = {*(place.name for place in known), *(place.key for place in known), *ORIGINAL}
    near = difflib.get_close_matches(key, names, 3)
    raise RequestError(
        f"There is no setting {key!r} in a recipe for {recipe.kind}"
        + (f"; did you mean {' or '.join(near)}?" if near else "; docs/training.md lists them.")
    )


def parse(text: str) -> Any:
    """A value as it is typed: a Python literal, true, false, none, numbers with commas, or else text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def check(recipe: Recipe) -> None:
    """Raise RequestError for settings that no run can have."""
    schedule, data = recipe.schedule, recipe.data
    faults = (
        (schedule.batch >= 1, f"batch is {schedule.batch}; it is at least 1."),
        (schedule.steps >= 1, f"steps is {schedule.steps}; it is at least 1."),
        (schedule.accumulate >= 1, f"accumulate is {schedule.accumulate}; it is at least 1."),
        (schedule.learning_rate >= 0, f"learning_rate is {schedule.learning_rate}; it is at least 0."),
        (not (schedule.float16 and schedule.bfloat16), "float16 and bfloat16 are both on; choose one."),
        (0 < data.train_test_split <= 1, f"train_test_split is {data.train_test_split}; it lies above 0, up to 1."),
        (schedule.curve in CURVES, f"curve is {schedule.curve!r}; choose from {', '.join(CURVES)}."),
        (schedule.ema in ("none", "device", "cpu"), f"ema is {schedule.ema!r}; choose from none, device, cpu."),
    )
    for fits, sentence in faults:
        if not fits:
            raise RequestError(sentence)
    asked = [name for name in NOT_FOR_ENCODEC if getattr(schedule, name) != getattr(Schedule(), name)]
    if recipe.kind == "encodec" and asked:
        raise RequestError(f"An EnCodec's training has a loop of its own without {' or '.join(asked)}; leave that out.")


def flat(recipe: Recipe) -> dict[str, Any]:
    """All settings by their full keys; of models those that were set."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    own = {name: value for name, value in values.items() if not isinstance(value, Mapping | DataSettings | Schedule)}
    for record in ("data", "schedule"):
        own |= {f"{record}.{f.name}": getattr(values[record], f.name) for f in fields(values[record])}
    for record in RECORDS:
        own |= {f"{record}.{name}": value for name, value in values[record].items()}
    return own


def _changed(recipe: Recipe, changes: Mapping[Place, Any]) -> Recipe:
    for (record, name), value in changes.items():
        if not record:
            recipe = _with(recipe, name, value)
        elif record == "prior.encoder_config":
            encoder = {**(recipe.prior.get("encoder_config") or {}), name: value}
            recipe = _with(recipe, "prior", {**recipe.prior, "encoder_config": encoder})
        else:
            old = getattr(recipe, record)
            new = {**old, name: value} if record in RECORDS else replace(old, **{name: value})
            recipe = _with(recipe, record, new)
    return recipe


def _with(recipe: Recipe, name: str, value: Any) -> Recipe:
    changes: dict[str, Any] = {name: value}
    return replace(recipe, **changes)


def _named(name: str) -> Settings:
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, 3)
        raise RequestError(f"There is no recipe {name!r}; {'near are ' if near else 'there are '}"
                           f"{', '.join(near or SETS)}.")  # fmt: skip
    return SETS[name]


@functools.cache
def _known() -> frozenset[Place]:
    records = {"": Recipe, "data": DataSettings, "schedule": Schedule}
    places = {Place(record, f.name) for record, kind in records.items() for f in fields(kind)}
    models = {Place(r, name) for r, kind in RECORDS.items() for name in kind.__annotations__}
    return frozenset(places | models - {Place("prior", "level")})  # which counts from the top; the recipe's doesn't


@functools.cache
def _types() -> dict[Place, Any]:
    records = {"": Recipe, "data": DataSettings, "schedule": Schedule}
    return {Place(r, f.name): f.type for r, kind in records.items() for f in fields(kind)}


def _typed(place: Place, value: Any) -> Any:
    """The value if its type is right; whole numbers will do for fractions."""
    wanted = _types().get(place)
    options = get_args(wanted) or (wanted,)
    if wanted is None or type(value) in options or value in options or (value is None and type(None) in options):
        return value
    if value is None and "none" in options:
        return "none"  # the word itself
    if type(value) is int and float in options:
        return float(value)
    if type(value) is float and int in options and value.is_integer():
        return int(value)  # 1e6 steps
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise RequestError(f"{place.key} is {value!r}; it is of type {names}.")


# --------------------------------------------------------------------------------------- the original's names

CURVES = ("cosine", "constant", "exponential", "linear")


class Renamed(NamedTuple):
    """What a hyperparameter of the original is here."""

    key: str
    value: Callable[[Any], Any] = lambda value: value


ORIGINAL: dict[str, str | Renamed] = {
    "bs": "schedule.batch",
    "lr": "schedule.learning_rate",
    "eps": "schedule.epsilon",
    "lr_warmup": "schedule.warmup",
    "lr_decay": "schedule.decay_steps",
    "lr_gamma": "schedule.decay_factor",
    "lr_start_linear_decay": "schedule.decay_start",
    "lr_use_linear_decay": Renamed("schedule.curve", lambda value: "linear" if value else "exponential"),
    "ignore_grad_norm": "schedule.skip_above",
    "iters_before_update": "schedule.accumulate",
    "nworkers": "schedule.workers",
    "save_iters": "schedule.save_every",
    "log_steps": "schedule.log_every",
    "max_len": "schedule.sample_seconds",
    "max_log": "schedule.sample_count",
    "bucket": "schedule.bucket",
    "fp16": "schedule.float16",
    "fp16_loss_scale": "schedule.loss_scale",
    "fp16_scale_window": "schedule.scale_window",
    "ema": Renamed("schedule.ema", lambda value: "device" if value else "none"),
    "cpu_ema": Renamed("schedule.ema", lambda value: "cpu" if value else "device"),
    "cpu_ema_freq": "schedule.ema_every",
    "mu": "schedule.ema_decay",
    "c_res": Renamed("schedule.checkpointing", bool),
    "sample_length": "data.sample_length",
    "train_test_split": "data.train_test_split",
    "aug_shift": "data.aug_shift",
    "aug_blend": "data.aug_blend",
    "attn_order": Renamed("prior.attention_pattern", attention_pattern),
    "prime_attn_order": Renamed("prior.encoder_config.attention_pattern", attention_pattern),
    **{name: f"vqvae.{ours}" for ours, name in NAMES["vqvae"].items() if ours not in ("sample_length", "bandwidth")},
    **{name: f"prior.{ours}" for ours, name in NAMES["prior"].items() if ours != "sampling_rate"},
    **{name: f"prior.encoder_config.{ours}" for ours, name in NAMES["encoder"].items()},
}
"""Names of the original's hyperparameters -> our keys, for recipes of the VQ-VAE and of priors."""

SHARED = {name: f"data.{name}" for name in ("min_duration", "max_duration")}
"""Names of the original that mean the songs to learn from where no prior learns."""


def _original(recipe: Recipe, name: str) -> str:
    if name in SHARED and recipe.kind != "prior":
        return SHARED[name]
    entry = ORIGINAL[name]
    return entry.key if isinstance(entry, Renamed) else entry


def _understood(recipe: Recipe, key: str, value: Any) -> tuple[Place, Any]:
    entry = ORIGINAL.get(key)
    return locate(recipe, key), entry.value(value) if isinstance(entry, Renamed) else value


# --------------------------------------------------------------------------------------------------- presets


def _model(kind: Kind, settings: Settings) -> Settings:
    return {"kind": kind, **{f"{kind}.{name}": value for name, value in settings.items()}}


def _prior(name: str, **changes: Any) -> Settings:
    """A prior's preset, but for what its codec decides."""
    own = {key: value for key, value in PRIORS[name].keywords.items() if key not in (*OF_THE_CODEC, "level")}  # type: ignore[attr-defined]  # partials
    return {**_model("prior", own), **_JUKEBOX, "schedule.weight_decay": 0.01, "data.sample_length": None, **changes}


OF_THE_CODEC = ("sampling_rate", "music_vocab_size", "res_downs_t", "res_strides_t")
"""What a prior's configuration takes from the codec that it is trained on."""

# The defaults of the original implementation's training.
_JUKEBOX: Settings = {
    "schedule.learning_rate": 3e-4,
    "schedule.beta1": 0.9,
    "schedule.beta2": 0.999,
    "schedule.weight_decay": 0.0,
    "schedule.warmup": 100,
    "schedule.clip": 1.0,
    "schedule.curve": "exponential",
    "schedule.batch": 4,
    "schedule.steps": 100_000,
    "schedule.ema": "device",
    "schedule.save_every": 1000,
    "schedule.log_every": 100,
    "schedule.decay_all": True,
}
_LARGE: Settings = {"schedule.bfloat16": True, "schedule.checkpointing": True, "schedule.batch": 1}
_UPSAMPLER: Settings = {**_LARGE, "schedule.beta2": 0.95}
_FIVE: Settings = {
    **_LARGE,
    "schedule.learning_rate": 1.5e-4,
    "schedule.beta2": 0.925,
    "schedule.weight_decay": 0.002,
    "schedule.fsdp": True,
}
_SMALL: Settings = {"schedule.checkpointing": True}
_MUSICGEN: Settings = {
    "schedule.learning_rate": 1e-4,
    "schedule.beta1": 0.9,
    "schedule.beta2": 0.95,
    "schedule.weight_decay": 0.1,
    "schedule.warmup": 4000,
    "schedule.clip": 1.0,
    "schedule.steps": 1_000_000,
    "schedule.batch": 6,
    "schedule.ema": "device",
    "schedule.ema_decay": 0.99,
    "schedule.ema_every": 10,
    "schedule.bfloat16": True,
    "schedule.save_every": 1000,
    "schedule.decay_all": True,
}
_ENCODEC: Settings = {
    "schedule.learning_rate": 3e-4,
    "schedule.beta1": 0.5,
    "schedule.beta2": 0.9,
    "schedule.weight_decay": 0.0,
    "schedule.warmup": 0,
    "schedule.clip": 0.0,
    "schedule.steps": 400_000,
    "schedule.batch": 8,
    "schedule.ema": "device",
    "schedule.ema_decay": 0.99,
    "schedule.ema_every": 10,
    "schedule.save_every": 1000,
    "data.sample_length": 32_000,
}


def _musicgen(size: str, **changes: Any) -> Settings:
    return {**_model("musicgen", MUSICGEN[size]), **_MUSICGEN, **changes}


_CODEC = ("sampling_rate", "levels", "nb_discrete_codes", "res_downs_t", "res_strides_t")
_RELEASED_CODEC = {name: getattr(JukeboxVQVAEConfig(), name) for name in _CODEC}  # said aloud, so that priors can ask
_ONE_GENRE: dict[str, Any] = {"prior.max_nb_genres": 1}
_LYRICS_1B = _prior("prior_1b_lyrics", **_LARGE)
_5B, _5B_LYRICS = _prior("prior_5b", **_FIVE), _prior("prior_5b_lyrics", **_FIVE)

SETS: dict[str, Settings] = {
    "vqvae": {**_model("vqvae", _RELEASED_CODEC), **_JUKEBOX, "data.sample_length": 393_216},
    "small_vqvae": {**_model("vqvae", VQVAE["small_vqvae"]), **_JUKEBOX, "data.sample_length": 262_144},
    "small_prior": _prior("small_prior", **_SMALL),
    "small_labelled_prior": _prior("small_labelled_prior", **_SMALL, **_ONE_GENRE),
    "small_single_enc_dec_prior": _prior("small_single_enc_dec_prior", **_SMALL, **_ONE_GENRE),
    "small_sep_enc_dec_prior": _prior("small_sep_enc_dec_prior", **_SMALL, **_ONE_GENRE),
    "small_upsampler": _prior("small_upsampler", **_SMALL, upsampler=True),
    "upsampler_level_0": _prior("upsampler_level_0", **_UPSAMPLER, level=0),
    "upsampler_level_1": _prior("upsampler_level_1", **_UPSAMPLER, level=1),
    "prior_1b_lyrics": _LYRICS_1B,
    "1b_lyrics": _LYRICS_1B,
    "prior_5b": _5B,
    "5b": _5B,
    "prior_5b_lyrics": _5B_LYRICS,
    "5b_lyrics": _5B_LYRICS,
    "musicgen-small": _musicgen("small"),
    "musicgen-medium": _musicgen("medium", **{"schedule.checkpointing": True}),
    "musicgen-large": _musicgen(
        "large", **{"schedule.checkpointing": True, "schedule.clip": 3.0, "schedule.fsdp": True},
        **{"condition_dropout": 0.2, "data.drop_words": 0.2},
    ),
    "musicgen-stereo-small": _musicgen("stereo-small"),
    "musicgen-stereo-medium": _musicgen("stereo-medium", **{"schedule.checkpointing": True}),
    "musicgen-stereo-large": _musicgen(
        "stereo-large", **{"schedule.checkpointing": True, "schedule.clip": 3.0, "schedule.fsdp": True}
    ),
    "encodec-32khz": {**_model("encodec", ENCODEC["encodec_32khz"]), **_ENCODEC},
    "all_fp16": {"schedule.float16": True, "schedule.scale_window": 250},
    "cpu_ema": {"schedule.ema": "cpu", "schedule.ema_every": 100},
    "easy": {"vqvae.sampling_rate": 22_050},
    "teeny": {},
    "bf16": {"schedule.float16": False, "schedule.bfloat16": True},
}  # fmt: skip
"""Recipes and modifiers by name; most names are the original's."""
