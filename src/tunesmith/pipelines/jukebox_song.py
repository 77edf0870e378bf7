"""The simple way to Jukebox: `tunesmith.load(FOLDER).generate(lyrics, artist=..., seconds=20).save("song.wav")`.

A pipeline holds a model and its tokenizer.  `generate` and `stream` make clips in memory; `begin` and `go_on` do the
same in a folder that survives a kill at any moment (pipelines/runs.py).  A take depends on its request alone: its
generators, its labels and its prompt are its own, so batch-mates, other takes and other processes change nothing.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save
from torch import Tensor

import tunesmith
from tunesmith import hub
from tunesmith.audio import Clip, Strategy, write_atomically
from tunesmith.conditioning.labels import GENRES
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert.jukebox import read_model
from tunesmith.errors import RequestError, RunError
from tunesmith.events import AudioChunk, Event, Finished, LevelDone, WindowDone
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.alignment import Head, TimedLyrics, align, best_heads, timed
from tunesmith.pipelines.features import samples_of
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel
from tunesmith.pipelines.levels import Options, Plan, State, level_name
from tunesmith.pipelines.lyric_page import TakePage, lyric_page
from tunesmith.pipelines.original_codes import read_original_codes
from tunesmith.pipelines.runs import LYRICS, PAGE, Run, Settings, kept
from tunesmith.pipelines.song import open_adapter, shrink
from tunesmith.requests import JukeboxRequest

BATCH = (3, 16, 16)
"""The most takes that are sampled at once, top first, where nothing else is said: those of the original."""


IN_MEMORY = "(clip "
"""How the names of audio prompts begin that are no files."""


class JukeboxPipeline:
    """A Jukebox that makes clips.  `model` is the whole model, for everything else; it is loaded when it is needed."""

    def __init__(
        self,
        name: str,
        folder: Path,
        device: str = "cpu",
        dtype: str = "float32",
        one_prior_at_a_time: bool | None = None,
        adapter: str | Path | None = None,
        quantize: str | None = None,
    ) -> None:
        self.name, self.folder, self.device, self.dtype, self.quantize = name, folder, device, dtype, quantize
        self.one_prior_at_a_time = one_prior_at_a_time
        self.adapter = None if adapter is None else open_adapter(adapter, name, folder, "jukebox")
        self.tokenizer = JukeboxTokenizer.from_pretrained(folder if self.adapter is None else self.adapter.folder)
        self.config: Any = JukeboxConfig.from_pretrained(folder)
        if self.adapter is not None:
            priors = self.config.prior_configs
            self.config.prior_config_list = [
                self.adapter.config(prior, level, same_names=self._same_names(level))
                for level, prior in enumerate(priors)
            ]

    @cached_property
    def model(self) -> JukeboxModel:
        """Priors that don't fit into memory together stay on disk until their level's turn."""
        model = JukeboxModel.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), one_prior_at_a_time=self.one_prior_at_a_time
        ).to(self.device)  # type: ignore[arg-type]  # transformers leaves `to` untyped
        if self.adapter is not None or self.quantize is not None:
            model.adapt(self._adapt)
        return model.eval().requires_grad_(False)

    def _same_names(self, level: int) -> bool:
        """Whether a level reads the tables of the one that the adapter was trained on."""
        version = self.tokenizer.version
        return self.adapter is not None and version[level] == version[self.adapter.facts.level]

    def _adapt(self, prior: JukeboxPrior, level: int) -> JukeboxPrior:
        if self.adapter is not None:
            prior = self.adapter.adapt(prior, level, same_names=self._same_names(level))
        shrink(prior.prior.transformer, self.quantize, self.device)
        return prior

    @property
    def levels(self) -> int:
        """How many the model has."""
        return len(self.config.prior_configs)

    # ------------------------------------------------------------------------------------------------------- in memory

    def generate(self, lyrics: str = "", *, audio_prompt: Any = None, **fields: Any) -> Clip | list[Clip]:
        """Make a song: one clip, or a list if several takes or audio prompts are asked for.

        lyrics: what is sung.  audio_prompt: what to continue: a file, a Clip, or a list of those, taken in turn.
        fields: artist, genre, seconds, song_seconds, takes, seed, draft and the others of `JukeboxRequest`.
        Warns about artists and genres that the model doesn't know.  Raises RequestError or AudioFileError.
        """
        names, clips = named(audio_prompt)
        request = JukeboxRequest.from_dict({"lyrics": lyrics, "audio_prompt": names, **fields})
        *_, finished = self.stream(request, clips)
        assert isinstance(finished, Finished)
        several = request.count > 1 or isinstance(audio_prompt, list | tuple)
        return list(finished.result) if several else finished.result[0]

    def stream(self, request: JukeboxRequest, clips: Mapping[Path, Clip] | None = None) -> Iterator[Event]:
        """The same step by step: Progress, WindowDone and LevelDone; for each take AudioChunk, at last Finished with
        the tuple of clips.

        clips: audio prompts in memory, under the names that the request uses.  To cancel, stop iterating.
        """
        requests = request.songs()
        depth = 1 if request.draft else self.levels
        plan = self.plan(requests, self.labels(requests), depth)
        prompts = self.prompts(plan, requests, clips)
        state = self.start(plan, requests, prompts)
        yield from _until(self.model.iterate(plan, state), depth)
        made = []
        for take, one in enumerate(requests):
            origin = {"audio_prompt_hash": _hash_of(one, prompts)}
            made.append(self.clip(one, state.codes[depth - 1][take], depth - 1, origin))
            yield AudioChunk(song=take, samples=made[-1].samples, rate=made[-1].rate)
        yield Finished(result=tuple(made))

    def features(self, audio: Any, layer: int = 36, pool: str | None = "mean", **options: Any) -> Tensor:
        """Activations of a prior's layer for a file, a Clip or samples: see pipelines/features.py."""
        return self.model.features(samples_of(audio, self.config.sampling_rate), layer, pool, **options)

    # ------------------------------------------------------------------------------------------- what requests come to

    def labels(self, requests: Sequence[JukeboxRequest]) -> list[Int[Tensor, "B _"]]:
        """By level, a row a take.  Warns about names that the model doesn't know.  Raises RequestError."""
        encoded = self.tokenizer(
            [request.artist for request in requests],
            [list(request.genre) for request in requests],
            [request.lyrics for request in requests],
        )
        labels: list[Tensor] = encoded["input_ids"]
        return labels

    def plan(
        self,
        requests: Sequence[JukeboxRequest],
        labels: Sequence[Tensor],
        depth: int,
        chunk_size: Sequence[int] = (),
        max_batch_size: Sequence[int] = (),
    ) -> Plan:
        """The first `depth` levels of these takes.  Raises RequestError for what the model can't do."""
        first = requests[0]
        self._check_length(first)
        options = Options(
            sample_length=self._length(first),
            total_length=[self._total(request) for request in requests],
            offset=[round(request.offset * self.config.sampling_rate) for request in requests],
            hop_fraction=_by_level(first.hop_fraction),
            temperature=_by_level(first.temperature),
            top_k=_by_level(first.top_k),
            top_p=_by_level(first.top_p),
            chunk_size=_by_level(chunk_size),
            max_batch_size=_by_level(max_batch_size) or [BATCH[min(level, 2)] for level in range(self.levels)],
        )
        return Plan.of(self.config, labels, options, songs=len(requests), sampled=range(depth))

    def prompts(
        self, plan: Plan, requests: Sequence[JukeboxRequest], clips: Mapping[Path, Clip] | None = None
    ) -> "dict[Path, Prompt]":
        """Audio prompts by name.  Raises AudioFileError, and RequestError for one that is shorter than a code or as
        long as the result.
        """
        return {path: self._prompt(path, requests[0], plan, clips or {}) for r in requests for path in r.audio_prompt}

    def start(self, plan: Plan, requests: Sequence[JukeboxRequest], prompts: "Mapping[Path, Prompt]") -> State:
        """Nothing but seeds and the codes of audio prompts."""
        state = State.of(plan, seeds=[request.seed or 0 for request in requests])
        codes = {path: self.model.encode_prompt(torch.from_numpy(p.samples.T[None])) for path, p in prompts.items()}
        for take, request in enumerate(requests):
            for path in request.audio_prompt:
                for level, rows in enumerate(codes[path]):
                    state.codes[level][take] = rows[0]
        return state

    def _prompt(self, path: Path, request: JukeboxRequest, plan: Plan, clips: Mapping[Path, Clip]) -> "Prompt":
        seconds, rate = request.prompt_seconds, self.config.sampling_rate
        most = request.seconds + 1 if seconds is None else seconds
        clip = clips[path][:most] if path in clips else Clip.read(path, most)
        samples, hop = clip.remix(1).resample(rate).samples, self.config.prior_configs[0].hop_length
        samples = samples[:, : samples.shape[1] // hop * hop]
        if not samples.shape[1]:
            raise RequestError(
                f"The audio prompt {str(path)!r} is shorter than one code of the top level, {hop / rate:g} s."
            )
        if samples.shape[1] >= plan.sample_length:
            raise RequestError(
                f"The audio prompt {str(path)!r} is as long as the {request.seconds:g} s asked for, which count it; "
                "ask for more seconds, or use less of it with prompt_seconds."
            )
        return Prompt(samples, hashlib.sha256(clip.samples.tobytes()).hexdigest())

    def _length(self, request: JukeboxRequest) -> int:
        """Samples in whole codes of the top level."""
        hop, rate = self.config.prior_configs[0].hop_length, self.config.sampling_rate
        length = round(request.seconds * rate) // hop * hop
        if not length:
            raise RequestError(f"{request.seconds:g} s are less than one code of the top level, {hop / rate:g} s.")
        return length

    def _check_length(self, request: JukeboxRequest) -> None:
        """Raises RequestError, in seconds, for a song that the model has no room for."""
        config, total = self.config.prior_configs[0], self._total(request) / self.config.sampling_rate
        if config.metadata_conditioning and not config.min_duration <= total < config.max_duration:
            asked = "seconds and offset end at" if request.song_seconds is None else "song_seconds is"
            raise RequestError(
                f"{asked} {total:g} s; songs of this model last at least {config.min_duration:g} s and less than "
                f"{config.max_duration:g} s."
            )

    def _total(self, request: JukeboxRequest) -> int:
        """Samples in the song; where nothing is said, as few as the model allows."""
        rate, config = self.config.sampling_rate, self.config.prior_configs[0]
        end = self._length(request) + round(request.offset * rate)
        if request.song_seconds is not None:
            return max(end, round(request.song_seconds * rate))  # roundings may add up to a sample more
        return max(end, math.ceil(config.min_duration * rate))

    # ------------------------------------------------------------------------------------------------------ in a folder

    def settings(
        self,
        requests: Sequence[JukeboxRequest],
        loudness: Strategy = "loudness",
        chunk_size: Sequence[int] = (),
        max_batch_size: Sequence[int] = (),
    ) -> Settings:
        """Those of a new run."""
        is_folder = self.folder == Path(self.name).expanduser()
        return Settings(
            tunesmith=tunesmith.__version__,
            model=str(self.folder.resolve()) if is_folder else self.name,
            model_hash=self.hash,
            adapter="" if self.adapter is None else str(self.adapter.folder.resolve()),
            adapter_hash="" if self.adapter is None else self.adapter.hash,
            quantize=self.quantize or "",
            dtype=self.dtype,
            levels=self.levels,
            depth=1 if requests[0].draft else self.levels,
            takes=tuple(requests),
            loudness=loudness,
            chunk_size=tuple(chunk_size),
            max_batch_size=tuple(max_batch_size),
        )

    def begin(self, folder: Path, settings: Settings) -> Run:
        """A new run, with audio prompts encoded and nothing sampled yet.

        Raises CheckpointError for weights that aren't those of the model, RunError, RequestError, ...
        """
        labels = self.labels(settings.takes)
        plan = self.run_plan(settings, labels, range(len(settings.takes)))
        read_model(self.folder)  # tells what is wrong with weights while there is no folder yet
        prompts = self.prompts(plan, settings.takes)
        settings = replace(settings, audio_hashes=tuple(_hash_of(take, prompts) or "" for take in settings.takes))
        return Run.create(folder, settings, labels, self.start(plan, settings.takes, prompts))

    def take_over(self, file: Path, folder: Path, seed: int = 0) -> Run:
        """A new run of the codes in a data.pth.tar of the original implementation, down to the last level that is done.

        Raises CheckpointError, RequestError, RunError.
        """
        found = read_original_codes(file, self.config, seed=seed)
        lengths = self.lengths(self.levels, found.requests[0].seconds)
        done = [rows.shape[1] >= (length or 0) for rows, length in zip(found.codes, lengths, strict=True)]
        depth = [*done, False].index(False)
        plan = self.plan(found.requests, found.labels, depth)
        read_model(self.folder)
        state = State.of(plan, found.codes, seeds=[request.seed or 0 for request in found.requests])
        settings = replace(self._settings_of(file, found.requests), depth=depth)
        return Run.create(folder, settings, found.labels, state)

    def listen(self, file: Path, folder: Path, request: JukeboxRequest) -> Run:
        """A new run whose codes are those of an audio file as a whole, with the lyrics, artist and genre of a request.

        Raises AudioFileError, RequestError, RunError.
        """
        clip, hop = (
            Clip.read(file).remix(1).resample(self.config.sampling_rate),
            self.config.prior_configs[0].hop_length,
        )
        samples = clip.samples[:, : clip.samples.shape[1] // hop * hop]
        if not samples.shape[1]:
            raise RequestError(f"{str(file)!r} is shorter than one code of the top level, {hop / clip.rate:g} s.")
        requests = replace(request, seconds=samples.shape[1] / clip.rate).songs()
        labels = self.labels(requests)
        plan = self.plan(requests, labels, depth=1)
        codes = self.model.encode_prompt(torch.from_numpy(samples.T[None].copy()))
        state = State.of(plan, codes, seeds=[request.seed or 0])
        return Run.create(folder, self._settings_of(file, requests), labels, state)

    def _settings_of(self, file: Path, requests: Sequence[JukeboxRequest]) -> Settings:
        """Of a run whose codes come from a file."""
        return replace(self.settings(requests), history=(({"file": str(file)},),) * len(requests))

    def lengths(self, levels: int, seconds: float | None) -> list[int | None]:
        """Codes by level in so many seconds (None: all there are), in whole ones of the top; none below some level."""
        hops = [prior.hop_length for prior in self.config.prior_configs]
        samples = None if seconds is None else round(seconds * self.config.sampling_rate) // hops[0] * hops[0]
        return [0 if level >= levels else None if samples is None else samples // hop for level, hop in enumerate(hops)]

    def run_plan(self, settings: Settings, labels: Sequence[Tensor], takes: Sequence[int]) -> Plan:
        """Of some takes of a run, which are equally long.  Raises RequestError."""
        if len({settings.takes[take].seconds for take in takes}) > 1:
            raise RequestError("The takes of the run have different lengths by now; pick such of the same length.")
        return self.plan(
            [settings.takes[take] for take in takes],
            [rows[list(takes)] for rows in labels],
            settings.depth,
            settings.chunk_size,
            settings.max_batch_size,
        )

    def go_on(self, run: Run, takes: Sequence[int]) -> Iterator[Event]:
        """Do what remains of these takes, saving after every window; ends in the same codes however often it is
        stopped and begun again.  At last Finished, with the run.  Raises RunError for a disk that is full.
        """
        with kept(run):
            yield from self._go_on(run, takes) if takes else ()
        yield Finished(result=run)

    def _go_on(self, run: Run, takes: Sequence[int]) -> Iterator[Event]:
        plan, state = self.run_plan(run.settings, run.labels(), takes), run.state(takes)
        for event in _until(self.model.iterate(plan, state), run.settings.depth):
            if isinstance(event, WindowDone):
                for song in event.songs:
                    run.save_take(takes[song], state.pick([song]))
            if isinstance(event, LevelDone):
                self._align_missing(run, takes, plan, state)
                self._write_audio(run, takes, state, event.level)
                write_pages(run)
            yield event

    def _write_audio(self, run: Run, takes: Sequence[int], state: State, level: int) -> None:
        """What isn't there yet of a level."""
        name, loudness = run.settings.names[level], run.settings.loudness
        for song, take in enumerate(takes):
            if not run.has(name, take, ".wav"):
                request, origin = run.settings.takes[take], run.settings.origin(take)
                clip = self.clip(request, state.codes[level][song], level, origin)
                run.write(name, take, ".wav", clip.level(loudness).encode())

    def _align_missing(self, run: Run, takes: Sequence[int], plan: Plan, state: State) -> None:
        """Lyrics of takes that have none yet, by the codes of the top level; where the model is without, nothing."""
        config = self.config.prior_configs[0]
        songs = [song for song, take in enumerate(takes) if not run.has(LYRICS, take, ".json")]
        if songs and config.nb_relevant_lyric_tokens and config.alignment_layer is not None:
            self._align(run, takes, songs, plan, state, None, None)

    def align(self, run: Run, layer: int | None = None, head: int | None = None) -> None:
        """Align all takes of a run anew, by any layer and head.  Raises RequestError for one that reads no lyrics."""
        takes = run.settings.chosen
        with kept(run):
            plan, state = self.run_plan(run.settings, run.labels(), takes), run.state(takes)
            self._align(run, takes, range(len(takes)), plan, state, layer, head)
            write_pages(run)

    def search(self, run: Run) -> list[Head]:
        """Every layer and head of the top prior that reads lyrics, the best for these takes first."""
        takes = run.settings.chosen
        plan, state = self.run_plan(run.settings, run.labels(), takes), run.state(takes)
        level = plan.levels[0]
        with self.model.open_prior(0, config=level.config) as prior:
            return best_heads(prior, torch.stack(state.codes[0]).to(prior.device), level.labels.to(prior.device))

    def _align(
        self,
        run: Run,
        takes: Sequence[int],
        songs: Sequence[int],
        plan: Plan,
        state: State,
        layer: int | None,
        head: int | None,
    ) -> None:
        level, rate = plan.levels[0], self.config.sampling_rate / self.config.prior_configs[0].hop_length
        hop_fraction = (run.settings.takes[0].hop_fraction or self.config.hop_fraction)[0]
        with self.model.open_prior(0, config=level.config) as prior:
            for song in songs:
                codes, labels = state.codes[0][song][None], level.labels[song : song + 1]
                [matrix] = align(
                    prior,
                    codes.to(prior.device),
                    labels.to(prior.device),
                    hop_fraction=hop_fraction,
                    layer=layer,
                    head=head,
                )
                text = self._text(labels[0, GENRES + level.config.max_nb_genres :].tolist())
                _write_lyrics(run, takes[song], matrix, timed(matrix, text, rate))

    def _text(self, ids: Sequence[int]) -> str:
        """A character for each id."""
        characters = {i: character for character, i in self.tokenizer.alphabet.ids.items()}
        return "".join(characters.get(i) or " " for i in ids if i >= 0)

    # ------------------------------------------------------------------------------------------------------------ clips

    def clip(self, request: JukeboxRequest, codes: Int[Tensor, " S"], level: int, origin: Mapping[str, Any]) -> Clip:
        """What the codes of a level (0 is the top) sound like, with the recipe; origin: see `Settings.origin`."""
        audio = self.model.vqvae.decode([codes[None].to(self.model.vqvae.device)], self.levels - 1 - level)
        clip = Clip(
            audio[0].T.float().cpu().numpy(), self.config.sampling_rate, self._recipe(request, level) | dict(origin)
        )
        return clip if request.sample_rate is None else clip.resample(request.sample_rate)

    def _recipe(self, request: JukeboxRequest, level: int) -> dict[str, Any]:
        """All that it takes to make the take again, ready for JSON."""
        import transformers

        return {
            "tunesmith": tunesmith.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": self.name,
            "model_hash": self.hash,
            **({} if self.adapter is None else self.adapter.recipe),
            **({} if self.quantize is None else {"quantize": self.quantize}),
            "device": self.device,
            "dtype": self.dtype,
            "level": level_name(level, self.levels),
            "request": replace(request, draft=request.draft and not level).to_dict(),
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights."""
        return hub.weights_hash(self.folder)


class Prompt(NamedTuple):
    """An audio prompt."""

    samples: np.ndarray
    """[1, T] at the model's rate, in whole codes of the top level."""
    digest: str
    """SHA-256 of its samples as they were read."""


def _hash_of(request: JukeboxRequest, prompts: Mapping[Path, Prompt]) -> str | None:
    """Of the audio prompt of a take; None without one."""
    return prompts[request.audio_prompt[0]].digest if request.audio_prompt else None


def named(audio: Any) -> tuple[tuple[Any, ...], dict[Path, Clip]]:
    """Names for files and clips, and the clips under theirs.  Raises RequestError for anything else."""
    items = [] if audio is None else audio if isinstance(audio, list | tuple) else [audio]
    for item in items:
        if not isinstance(item, str | Path | Clip):
            raise RequestError(f"audio_prompt has type {type(item).__name__}; give a file, a Clip, or a list of those.")
    names = [Path(f"{IN_MEMORY}{i})") if isinstance(item, Clip) else item for i, item in enumerate(items)]
    clips = {name: item for name, item in zip(names, items, strict=True) if isinstance(item, Clip)}
    return tuple(names), clips


def _until(events: Iterator[Event], depth: int) -> Iterator[Event]:
    """Up to the end of the last level."""
    for event in events:
        yield event
        if isinstance(event, LevelDone) and event.level == depth - 1:
            return


def _by_level(values: Sequence[Any]) -> Any:
    """One value stands for all levels; none is None."""
    return None if not values else values[0] if len(values) == 1 else list(values)


# What is made of codes ------------------------------------------------------------------------------------------------


def _write_lyrics(run: Run, take: int, matrix: Tensor, lyrics: TimedLyrics) -> None:
    run.write(LYRICS, take, ".safetensors", save({"alignment": matrix}))
    run.write(LYRICS, take, ".lrc", lyrics.to_lrc().encode())
    run.write(LYRICS, take, ".json", json.dumps(lyrics.to_dict(), indent=1).encode())


def write_pages(run: Run) -> None:
    """The page of the run, and one in the folder of each level that there is audio of."""
    _write_page(run, run.folder, run.settings.names, "{level}/{file}")
    for name in run.settings.names:
        if (run.folder / name).is_dir():
            _write_page(run, run.folder / name, [name], "{file}")


def _write_page(run: Run, folder: Path, levels: Sequence[str], address: str) -> None:
    takes = []
    for take in range(len(run.settings.takes)):
        audio = {
            level: address.format(level=level, file=run.path(level, take, ".wav").name)
            for level in levels
            if run.has(level, take, ".wav")
        }
        if audio:
            takes.append(TakePage(take=take + 1, audio=audio, lyrics=_read_lyrics(run.path(LYRICS, take, ".json"))))
    if takes:
        title, facts = _words(run.settings.takes[run.settings.chosen[0]])
        write_atomically(folder / PAGE, lyric_page(title, facts, levels, takes).encode())


def _read_lyrics(file: Path) -> dict[str, Any] | None:
    """What the page shows; None where there is no file.  Raises RunError for a damaged one."""
    if not file.is_file():
        return None
    try:
        found = TimedLyrics.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        run = file.parent.parent
        raise RunError(
            f"{str(file)!r} is damaged; delete it, and `tunesmith resume {run}` aligns the lyrics anew."
        ) from None
    return found.to_dict()


def _words(request: JukeboxRequest) -> tuple[str, str]:
    """Title and facts of the page."""
    style = ", ".join(request.genre)
    title = " · ".join(filter(None, [request.artist, style])) or "A song by Jukebox"
    whole = "" if request.song_seconds is None else f" of a song of {request.song_seconds:g} s"
    start = f", from {request.offset:g} s on" if request.offset else ""
    return title, f"{request.seconds:g} s{whole}{start}"
