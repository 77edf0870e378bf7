"""From a model that is there and a folder of songs to an adapter, or to a whole model: what `tunesmith finetune` does.

    finetune(Tuning(model="tunesmith/pocket", data=Path("mine"), run=Path("tuned")))

The songs are encoded once with the model's own codec; some are held out, and the loss on them is told before and after.
The trainer sees an objective whose model is a `Learner`, so checkpoints hold what learns and nothing else.
"""

import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from tunesmith import hub
from tunesmith.conditioning.lyrics import Alphabet
from tunesmith.conditioning.merge import grown
from tunesmith.conditioning.tables import KINDS, Kind
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert.folders import TOKENIZER, copy_tokenizer
from tunesmith.errors import RequestError, RunError
from tunesmith.events import Finished
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.models.jukebox_rows import Place
from tunesmith.pipelines.adapters import FACTS, ROWS, TARGETS, Facts, import_peft, widen
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel
from tunesmith.pipelines.levels import level_name
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor
from tunesmith.training import checkpoints
from tunesmith.training.alignment import alignment_of
from tunesmith.training.callbacks import Sounds, write_wav
from tunesmith.training.encode import Job, encode_songs
from tunesmith.training.encoded import EncodedCodes
from tunesmith.training.folders import Songs, open_songs
from tunesmith.training.jukebox import PriorObjective
from tunesmith.training.labels import Captions, JukeboxLabels
from tunesmith.training.launch import HARMLESS, TextCollator
from tunesmith.training.metadata import Metadata
from tunesmith.training.musicgen import MusicgenObjective
from tunesmith.training.runs import Objective, Schedule, train

METHODS = ("lora", "dora", "full")
RATES = {"lora": 2e-4, "dora": 2e-4, "full": 2e-5}
"""Learning rates where none is given."""
HELD_OUT = 64
"""Crops of held-out songs that the loss before and after is of, at most."""
COMMON = 1e-3
"""A character that the alphabet lacks gets a row if it makes this share of the lyrics; else it is spelled in ASCII."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to fine-tune, on what, and how."""

    model: str
    data: Path
    run: Path
    method: str = "lora"
    rank: int = 16
    level: int = 0
    """Of a Jukebox, 0 is the top."""
    like: Mapping[str, str] = field(default_factory=dict)
    """New artist or genre -> the known one whose row it begins as."""
    seconds: float | None = None
    """Of a MusicGen's crops; by default as long as the songs are, up to the model's window."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1000, batch=2, warmup=20, weight_decay=0.0, clip=1.0, beta1=0.9, beta2=0.99, log_every=10
        )
    )
    """Its weight_decay must be 0 for adapters of a Jukebox: it would reach rows that aren't trained."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RequestError(f"There is no method {self.method!r}; choose from {', '.join(METHODS)}.")
        if self.rank < 1 or self.schedule.steps < 1 or self.schedule.batch < 1:
            raise RequestError(
                f"rank is {self.rank}, steps is {self.schedule.steps} and batch is {self.schedule.batch}; all are at "
                "least 1."
            )
        if self.seconds is not None and self.seconds <= 0:
            raise RequestError(f"seconds is {self.seconds:g}; it must be above 0.")


class Learner(nn.Module):
    """A model of which some parts learn; its state is that of those alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def sizes(self) -> tuple[int, int]:
        """How many parameters learn, and how many there are."""
        numbers = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(count for count, learns in numbers if learns), sum(count for count, _ in numbers)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]  # no destination
        """What learns."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        """What `state_dict` gave: the names that are missing, and those that are too many."""
        own = self.state_dict()
        self.model.load_state_dict({name: state_dict[name] for name in own if name in state_dict}, strict=False)
        return [name for name in own if name not in state_dict], [name for name in state_dict if name not in own]

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """As one safetensors file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.detach().cpu().contiguous() for name, x in (state_dict or self.state_dict()).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TunedObjective(Objective):
    """An objective of which only what learns is saved."""

    def __init__(self, objective: Objective, learner: Learner) -> None:
        super().__init__()
        self.inner, self.sample_rate = objective, objective.sample_rate
        self.model = learner  # type: ignore[assignment]  # saves and loads like a model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """The objective's."""
        scalars: dict[str, Tensor] = self.inner(**batch)
        return scalars

    def samples(self, count: int, seconds: float) -> Sounds:
        """The objective's."""
        return self.inner.samples(count, seconds)


@dataclass
class Lesson:
    """A model with what it is taught by."""

    objective: Objective
    model: Any
    """What adapters are put on."""
    data: Dataset[Any]
    test: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Any]]
    facts: Facts
    places: list[Place]
    """New rows."""
    write: Callable[[Path], object]
    """The tables that belong to an adapter."""
    export: Callable[[Path], object]
    """The whole model."""
    align: Callable[[], tuple[int, int] | None] = lambda: None


def finetune(tuning: Tuning, tell: Callable[[str], object] = print) -> dict[str, Any]:
    """Fine-tune, or go on where the run stopped; what result.json says.

    Raises RequestError for songs or names that can't be used, RunError where the run can't go on, and what
    loading does.
    """
    folder = hub.locate(tuning.model)
    family = hub.family_of(folder) if folder.is_dir() else None
    if family not in LESSONS:
        raise RequestError(f"{tuning.model!r} is of the family {family!r}; a MusicGen or a Jukebox can be fine-tuned.")
    if tuning.method != "full":
        import_peft()
    processes = PartialState(cpu=not torch.cuda.is_available())
    tell = tell if processes.is_main_process else _silently
    torch.manual_seed(tuning.schedule.seed)
    with processes.main_process_first():  # what the first has written, the others find
        _same_settings(tuning)
        lesson = LESSONS[family](tuning, folder, tell)
        learner, adapter = _learner(lesson, tuning)
        objective = TunedObjective(lesson.objective, learner).to(processes.device)
        learning, all_of_it = learner.sizes()
        tell(f"{learning:,} of {all_of_it:,} parameters learn.")
        before = _before(objective, lesson, tuning)
    tell(f"held-out loss before: {before:.4f}")
    train(objective, lesson.data, tuning.run, tuning.schedule, collate=lesson.collate)
    after = held_out_loss(objective, lesson)
    tell(f"held-out loss after: {after:.4f}")
    result = {
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "trained_parameters": learning,
        "model": tuning.model,
        "method": tuning.method,
    }
    if processes.is_main_process:
        _sound(objective, tuning.run / "after.wav")
        _write(tuning, lesson, adapter)
        checkpoints.write_json(tuning.run / "result.json", result)
    return result


def _silently(_: str) -> None:
    """One process tells."""


def held_out_loss(objective: Objective, lesson: Lesson) -> float:
    """The mean over the first crops of the held-out songs."""
    assert isinstance(lesson.test, EncodedCodes)
    device = next(objective.parameters()).device
    items = [lesson.test[i] for i in range(min(HELD_OUT, len(lesson.test)))]
    objective.eval()
    losses = []
    with torch.no_grad():
        for item in DataLoader(items, batch_size=1, collate_fn=lesson.collate):  # type: ignore[arg-type]  # a list will do
            losses.append(objective(**{name: x.to(device) for name, x in item.items()})["loss"].item())
    return sum(losses) / len(losses)


def _before(objective: Objective, lesson: Lesson, tuning: Tuning) -> float:
    """The loss and the sound without what is going to be learnt; of a run that goes on, as they were then."""
    note = tuning.run / "before.json"
    if note.exists():
        return float(json.loads(note.read_text())["loss"])
    loss = held_out_loss(objective, lesson)
    _sound(objective, tuning.run / "before.wav")
    checkpoints.write_json(note, {"loss": loss})
    return loss


def _sound(objective: Objective, path: Path) -> None:
    """The same words and the same seed each time."""
    objective.eval()
    with torch.no_grad(), torch.random.fork_rng():
        sounds = objective.samples(1, 10.0)
    for sound in list(sounds.values())[:1]:
        write_wav(path, sound.detach().float().cpu(), objective.sample_rate)


def _same_settings(tuning: Tuning) -> None:
    """Write down what was asked for.  Raises RunError where a run that is there was asked for something else."""
    tuning.run.mkdir(parents=True, exist_ok=True)
    file = tuning.run / "recipe.json"
    values = asdict(tuning)
    schedule = values.pop("schedule")
    asked = json.loads(json.dumps({**values, **schedule}, default=lambda value: value.name))
    if file.exists() and checkpoints.last(tuning.run) is not None:
        old = json.loads(file.read_text())
        changed = [
            f"{k} was {old.get(k)} and is {v}" for k, v in asked.items() if k not in HARMLESS and old.get(k) != v
        ]
        if changed:
            raise RunError(
                f"{str(tuning.run)!r} was begun with other settings: {'; '.join(changed)}. Give the old ones, or "
                "another --out."
            )
    checkpoints.write_json(file, asked)


# -------------------------------------------------------------------------------------------------- what learns


def _learner(lesson: Lesson, tuning: Tuning) -> tuple[Learner, Any]:
    """The model, and peft's view of it where there is an adapter."""
    if tuning.schedule.checkpointing:
        model = lesson.model  # older versions of transformers know one name, newer ones warn of it
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    if tuning.method == "full":
        return Learner(lesson.model), None
    peft = import_peft()
    config = peft.LoraConfig(
        r=tuning.rank,
        lora_alpha=2 * tuning.rank,
        target_modules=_targets(lesson.model, lesson.facts.family, tuning.method),
        use_dora=tuning.method == "dora",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name that is going to change
        wrapped = peft.get_peft_model(lesson.model, config)
    own = dict(lesson.model.named_parameters())
    for place in lesson.places:
        _train_rows(own[place.name], place)
    return Learner(lesson.model), wrapped


def _targets(model: nn.Module, family: str, method: str) -> str | list[str]:
    """A pattern; for DoRA the names of those that have a length everywhere, for it divides by that."""
    pattern = TARGETS[family]
    if method != "dora":
        return pattern
    chosen = ((name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name))
    return [name for name, module in chosen if bool((_lengths(module) > 0).all())]


def _lengths(module: Any) -> Tensor:
    """Of what each output is the product with."""
    lengths: Tensor = module.weight.norm(dim=1 if isinstance(module, nn.Linear) else 0)
    return lengths


def _train_rows(parameter: nn.Parameter, place: Place) -> None:
    """The other rows have no gradient, so they stay."""
    mask = torch.zeros(len(parameter), 1)
    mask[place.start : place.stop] = 1
    parameter.requires_grad_(True).register_hook(lambda gradient: gradient * mask.to(gradient))


def _write(tuning: Tuning, lesson: Lesson, adapter: Any) -> None:
    """The adapter or the model, with the layer and head that follow the words by now."""
    facts, config = replace(lesson.facts, alignment=lesson.align()), lesson.model.config
    if facts.alignment is not None:
        config.alignment_layer, config.alignment_head = facts.alignment
    name = "model" if adapter is None else "adapter"
    part = tuning.run / f".{name}.part"
    with checkpoints.whole_or_absent(part, tuning.run / name, checkpoints.last(tuning.run)):
        part.mkdir(parents=True, exist_ok=True)
        if adapter is None:
            lesson.export(part)
        else:
            own = dict(lesson.model.named_parameters())
            rows = {p.name: own[p.name][p.start : p.stop].detach().cpu().contiguous() for p in lesson.places}
            adapter.save_pretrained(str(part), save_embedding_layers=False)
            (part / "README.md").unlink(missing_ok=True)
            if rows:
                save_file(rows, part / ROWS)
            lesson.write(part)
            checkpoints.write_json(part / FACTS, facts.to_dict())


# ------------------------------------------------------------------------------------------------- MusicGen


def _musicgen(tuning: Tuning, folder: Path, tell: Callable[[str], object]) -> Lesson:
    songs = _songs(tuning)
    facts = hub.check(folder)
    longest = min(max(song.seconds for song in songs), facts.window_seconds)
    frames = facts.frames(min(tuning.seconds or longest, facts.window_seconds))
    _encode(tuning, songs, folder, frames * facts.hop / facts.rate, tell)
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    model.requires_grad_(True)
    processor = MusicgenProcessor.from_pretrained(folder)
    codes = functools.partial(EncodedCodes, tuning.run / "codes", steps=frames, seed=tuning.schedule.seed)
    data = codes(count=tuning.schedule.steps * tuning.schedule.batch, labels=Captions(keep_field=0.7))
    test = codes(split="test", labels=Captions())
    text = test[0]["text"] or ""
    objective = MusicgenObjective(model)
    objective.shown = dict(processor.tokenizer([text], return_tensors="pt")) if text else {}

    def export(target: Path) -> None:
        model.save_pretrained(target)
        processor.save_pretrained(target)
        copy_tokenizer(folder, target, TOKENIZER)

    made = Facts(family="musicgen", model=tuning.model, model_hash=hub.weights_hash(folder), method=tuning.method)
    collate = TextCollator(processor.tokenizer)
    return Lesson(objective, model, data, test, collate, made, [], lambda part: None, export)


# -------------------------------------------------------------------------------------------------- Jukebox


def _jukebox(tuning: Tuning, folder: Path, tell: Callable[[str], object]) -> Lesson:
    hub.check_files(folder)
    whole = JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True)
    configs = whole.config.prior_configs
    if not 0 <= tuning.level < len(configs):
        raise RequestError(f"There is no level {tuning.level}; this Jukebox has 0 (the top) to {len(configs) - 1}.")
    top = configs[tuning.level]
    songs = _songs(tuning)
    if top.metadata_conditioning and not tuning.level:
        songs = songs.between(top.min_duration, top.max_duration)
        _enough(songs)
    _encode(tuning, songs, folder, top.window_length / top.sampling_rate, tell)
    tokenizer = JukeboxTokenizer.from_pretrained(folder)
    prior = JukeboxPrior.from_pretrained(folder, level=tuning.level, config=top)
    known = [song.metadata for song in songs]
    facts = Facts(
        family="jukebox",
        model=tuning.model,
        model_hash=hub.weights_hash(folder),
        method=tuning.method,
        level=tuning.level,
        **_new_names(tuning, tokenizer, known, configs),
        characters=_new_characters(tokenizer, known) if top.nb_relevant_lyric_tokens else 0,
    )
    places = widen(prior, facts, characters=True)
    for name, count in (
        ("artists", len(facts.artists)),
        ("genres", len(facts.genres)),
        ("characters", facts.characters),
    ):
        if count:
            tell(f"{count} new {name}.")
    prior.requires_grad_(True)
    labels = JukeboxLabels(_of_level(tokenizer, tuning.level), n_tokens=top.nb_relevant_lyric_tokens)
    codes = functools.partial(
        EncodedCodes,
        tuning.run / "codes",
        steps=top.n_ctx,
        level=len(configs) - 1 - tuning.level,
        seed=tuning.schedule.seed,
        labels=labels,
    )
    data, test = codes(count=tuning.schedule.steps * tuning.schedule.batch), codes(split="test")
    shown = default_collate([test[0]])
    shown.pop("codes")
    objective = PriorObjective(prior, whole.vqvae, shown)

    def export(target: Path) -> None:
        _export_jukebox(whole, folder, tokenizer, prior, facts, target)

    return Lesson(
        objective,
        prior,
        data,
        test,
        default_collate,
        facts,
        places,
        tokenizer.save_pretrained,
        export,
        functools.partial(alignment_of, objective, test),
    )


def _new_names(
    tuning: Tuning, tokenizer: JukeboxTokenizer, songs: list[Metadata], configs: list[Any]
) -> dict[str, Any]:
    """Names that the tables lack, added to the tokenizer's; what `Facts` says of them.

    Under other rules, of levels that aren't trained, a new name stands for the one that it is like, or the unknown.
    """
    rules = tokenizer.version[tuning.level]
    sharing = [config for config, own in zip(configs, tokenizer.version, strict=True) if own == rules]
    sizes = tuple(max(config.metadata_dims[i] for config in sharing) for i in (0, 1))
    found: dict[str, Any] = {"sizes": sizes}
    like = dict(tuning.like)
    for kind, size in zip(KINDS, sizes[::-1], strict=True):
        table = tokenizer.tables[kind, rules]
        said = {name for song in songs for text in _named(song, kind) for name in table.names(text)}
        fresh = sorted(said - {*table.ids, "", "unknown"}) if configs[tuning.level].metadata_conditioning else []
        begins = {name: _known(tokenizer, kind, like, name, table) for name in fresh}
        grown_table, rows = grown(table, size, begins)
        tokenizer.tables[kind, rules] = grown_table
        found[f"{kind}s"] = tuple(rows[size:])
        _alias(tokenizer, kind, rules, begins)
    if like:
        raise RequestError(
            f"--like names {', '.join(map(repr, like))}, which no song of the data has as artist or genre."
        )
    return found


def _named(song: Metadata, kind: Kind) -> tuple[str, ...]:
    return (song.artist,) if kind == "artist" else song.genres


def _known(tokenizer: JukeboxTokenizer, kind: Kind, like: dict[str, str], name: str, table: Any) -> str | None:
    """The name that a new one is like, which is taken off the list.  Raises RequestError where the model lacks it."""
    asked = next((key for key in like if name in table.names(key)), None)
    if asked is None:
        return None
    old = table.names(like.pop(asked))
    missing = [word for word in old if word not in table.ids]
    if missing:
        close = ", ".join(repr(hit.name) for hit in table.search(missing[0], 3)) or "none"
        raise RequestError(f"The model knows no {kind} {missing[0]!r} for {asked!r} to begin as; the closest: {close}.")
    return old[0]


def _alias(tokenizer: JukeboxTokenizer, kind: Kind, rules: str, begins: Mapping[str, str | None]) -> None:
    for other in {*tokenizer.version} - {rules}:
        table = tokenizer.tables[kind, other]
        for name, old in begins.items():
            for spelled in filter(None, table.names(name) if table.ids else ()):
                known = [] if old is None else [word for word in table.names(old) if word in table.ids]
                table.ids.setdefault(spelled, table.ids[known[0]] if known else 0)


def _new_characters(tokenizer: JukeboxTokenizer, songs: list[Metadata]) -> int:
    """Characters that the alphabet lacks and the lyrics hold often, added to the tokenizer's; how many."""
    text = "".join(song.lyrics.text for song in songs)
    ids = dict(tokenizer.alphabet.ids)
    fresh = [c for c in sorted({*text} - {*ids, "\\", "\r"}) if text.count(c) >= COMMON * len(text)]
    first = 1 + max(ids.values())
    tokenizer.alphabet = Alphabet(ids | {c: first + i for i, c in enumerate(fresh)})
    return len(fresh)


def _of_level(tokenizer: JukeboxTokenizer, level: int) -> JukeboxTokenizer:
    """The same for one prior alone: what the others know doesn't matter to it."""
    own = JukeboxTokenizer(
        version=[tokenizer.version[level]],
        n_genres=[tokenizer.n_genres[level]],
        max_n_lyric_tokens=tokenizer.max_n_lyric_tokens,
    )
    own.tables, own.alphabet = tokenizer.tables, tokenizer.alphabet
    return own


def _export_jukebox(
    whole: JukeboxModel, folder: Path, tokenizer: JukeboxTokenizer, prior: JukeboxPrior, facts: Facts, target: Path
) -> None:
    """The whole model with this prior in its level, and the new names in all levels that share its tables."""
    for level, own in enumerate(tokenizer.version):
        if level == facts.level:
            whole.priors[level] = prior.cpu()
        else:
            with whole.open_prior(level) as other:
                if own == tokenizer.version[facts.level]:
                    widen(other, facts, characters=False)
                whole.priors[level] = other
        whole.config.prior_config_list[level] = whole.priors[level].config
    vars(whole).pop("hf_device_map", None)  # nothing is on disk any more
    whole.save_pretrained(target)
    tokenizer.save_pretrained(target)


LESSONS: dict[str, Callable[[Tuning, Path, Callable[[str], object]], Lesson]] = {
    "musicgen": _musicgen,
    "jukebox": _jukebox,
}


# --------------------------------------------------------------------------------------------------- shared


def _songs(tuning: Tuning) -> Songs:
    songs = open_songs(tuning.data)
    _enough(songs)
    return songs


def _enough(songs: Songs) -> None:
    if not len(songs.test) or not len(songs.train):
        raise RequestError(
            f"{str(songs.folder)!r} has {len(songs)} song that can be used; fine-tuning needs two at least, for one is "
            "held out to see what was learnt."
        )


def _encode(tuning: Tuning, songs: Songs, folder: Path, seconds: float, tell: Callable[[str], object]) -> None:
    """Codes of all songs in the run's folder, shorter ones followed by silence; what is there is kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job(songs=songs, out=tuning.run / "codes", codec=str(folder), pad_seconds=seconds, device=device)
    short = sum(song.seconds < seconds for song in songs)
    if short:
        tell(f"{short} of {len(songs)} songs are shorter than {seconds:.3g} s and are followed by silence.")
    for event in encode_songs(job):
        if isinstance(event, Finished):
            for name, why in event.result.failed.items():
                tell(f"{name} is left out: {why}")


def level_of(model: str, name: str | None) -> int:
    """A Jukebox's level by what people call it, or its number from the top.  Raises RequestError."""
    folder = hub.locate(model)
    if hub.family_of(folder) != "jukebox":
        if name is not None:
            raise RequestError(f"--level is for a Jukebox, which {model!r} isn't; leave it out.")
        return 0
    levels = len(JukeboxConfig.from_pretrained(folder).prior_configs)
    names = {level_name(i, levels): i for i in range(levels)} | {"top": 0, "bottom": levels - 1}
    if name is not None and name not in names:
        raise RequestError(f"There is no level {name!r}; this Jukebox has {', '.join(names)}.")
    return 0 if name is None else names[name]
