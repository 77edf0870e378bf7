"""The simple way: `tunesmith.load(name).generate("80s pop with bassy drums", seconds=10, seed=7).save("song.wav")`.

A pipeline holds a model and its tokenizer.  It turns requests (requests.py) into events (events.py), the last of which
has the clips.  torch and transformers are imported when a model is loaded, not with this module.

A song depends on its request alone: texts and audio prompts are encoded one by one, each song draws from its own
generator, and audio is decoded one by one, so batch-mates change nothing.  Several songs share a running batch
(generation/batching.py), and their audio is decoded while it runs (pipelines/decoding.py).
"""

import heapq
import itertools
import logging
import math
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunesmith
from tunesmith import hub, machine
from tunesmith.audio import Clip
from tunesmith.errors import CheckpointError, RequestError, TunesmithError
from tunesmith.events import Event, Finished, LevelDone, Pace
from tunesmith.pipelines.plan import Song, plan
from tunesmith.requests import MusicgenRequest, Sampling

if TYPE_CHECKING:
    import torch

    from tunesmith.generation.batching import Batch, Piece, Slots
    from tunesmith.pipelines.adapters import Adapter
    from tunesmith.pipelines.jukebox_song import JukeboxPipeline
    from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZE = ("int8", "int4")
BATCH = 16
"""The most songs that are sampled at once."""
CACHE_BYTES = 2**30
"""Fewer are, where their keys and values would take more memory than this."""
GPU_BATCH, GPU_SHARE = 256, 0.5
"""The same on a GPU, where that memory is a share of what weights leave; if it isn't there, there are fewer still."""
MAX_TOKENS = 2048
"""Attention over the text takes memory with its square; the released models were trained on far shorter texts."""


def load(
    name_or_path: str | Path,
    device: Any = None,
    dtype: Any = None,
    adapter: str | Path | None = None,
    quantize: str | None = None,
) -> "MusicgenPipeline | JukeboxPipeline":
    """Load a model: the name of a bundled one, a folder, a Hugging Face id, or a short name ("small", "large", ...).

    What it is, its configuration says: a MusicgenPipeline, or a JukeboxPipeline (pipelines/jukebox_song.py).

    Exports of audiocraft (folder, file or id) are converted into the user's cache the first time.

    device: "cpu", "cuda", "cuda:1" or "mps", or a torch.device; by default a CUDA device where there is one, else the
    CPU.
    dtype: of the language model, as a name or torch's; float32 by default.  Codec and text encoder stay float32.
    adapter: folder of what `tunesmith finetune` learnt on this model; it is merged into the weights.
    quantize: how the language model's weights are kept: "int8", "int4" (smaller, and the music changes a little more)
    or "none" (exact).  By default "int8" on a CPU with kernels for it, several times faster and hardly different
    (docs/performance.md), unless a dtype is given; what was used is in the recipe.  Then the codec decodes in
    16 and 8 bits too, on CPUs that multiply bfloat16.
    Raises ModelNotFoundError, CheckpointError, or RequestError for a device that isn't there.
    """
    device, kind = check_device(device), check_dtype(dtype)
    check_quantize(quantize)
    hub.check_name(name_or_path)
    folder = hub.locate(name_or_path)
    if folder.is_dir() and hub.family_of(folder) == "jukebox":
        from tunesmith.pipelines.jukebox_song import JukeboxPipeline

        hub.check_files(folder)
        made = _device(device)
        bits = choose_quantize(quantize, dtype, made)
        return JukeboxPipeline(str(name_or_path), folder, made, kind, adapter=adapter, quantize=bits)
    facts = hub.check(folder)
    import torch

    made = _device(device)
    bits = choose_quantize(quantize, dtype, made)
    precision, learnt = getattr(torch, kind), None
    _tell_of_short_memory(str(name_or_path), folder, made, bits, precision.itemsize)
    model = _read(folder, "auto" if bits is not None and adapter is None else precision)
    if adapter is not None:
        learnt = open_adapter(adapter, str(name_or_path), folder, "musicgen")
        learnt.apply(model)
    shrink(model.decoder.model.decoder.layers, bits, made)
    model.audio_encoder.few_bits = bits is not None
    return MusicgenPipeline(model.to(made, precision), facts, str(name_or_path), folder, learnt, bits)


def _tell_of_short_memory(name: str, folder: Path, device: str, bits: str | None, itemsize: int) -> None:
    """Say so where a model will hardly fit."""
    from tunesmith.convert.folders import read_forms

    weights = sum(math.prod(form.shape) for form in read_forms(folder).values())
    needed, free = weights * (itemsize if bits is None else 1.2), machine.free_memory(device)
    if free is not None and needed > free:
        logging.getLogger("tunesmith").warning(
            "%s takes about %.1f GB of memory, and %.1f GB are free: it may get very slow, or be ended by the system. "
            "A smaller model fits%s.",
            name,
            needed / 1e9,
            free / 1e9,
            ", or quantize='int8'" if bits is None else "",
        )


def open_adapter(adapter: str | Path, name: str, model: Path, family: str) -> "Adapter":
    """One that was trained on this model.  Raises CheckpointError, IncompatiblePartsError."""
    from tunesmith.pipelines.adapters import Adapter

    found = Adapter.open(adapter)
    found.check(name, model, family)
    return found


def check_device(device: Any) -> str | None:
    """The name of a device, also of torch's; None for none.  Raises RequestError for a name that no device has."""
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise RequestError(f"There is no device {str(device)!r}; use cpu, cuda, cuda:N or mps.")
    return None if device is None else str(device)


def check_dtype(dtype: Any) -> str:
    """The name of a dtype; None is float32.  Raises RequestError."""
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise RequestError(f"There is no dtype {name!r} for music; use {', '.join(DTYPES)}.")
    return name


def check_quantize(name: str | None) -> str | None:
    """The name, None for none.  Raises RequestError for one that isn't known."""
    if name not in (None, "none", *QUANTIZE):
        raise RequestError(f"There is no quantization {name!r}; use {', '.join(QUANTIZE)} or none.")
    return None if name == "none" else name


def choose_quantize(quantize: str | None, dtype: Any, device: str) -> str | None:
    """What is meant: where nothing is said, 8 bits on a CPU that has kernels for them."""
    if quantize is not None or dtype is not None or device != "cpu":
        return check_quantize(quantize)
    from tunesmith.nn import engine

    if engine.library() is None:
        _tell_exact()
        return None
    return "int8"


@cache
def _tell_exact() -> None:
    """Once."""
    logging.getLogger("tunesmith").warning(
        "tunesmith was installed without its CPU kernels (they need a C++ compiler): models stay at float32, and slow."
    )


def shrink(layers: "torch.nn.Module", quantize: str | None, device: str) -> None:
    """Quantise all linear layers within; says so where this machine gains little by it."""
    from tunesmith.nn import engine, lowbit

    if quantize is None:
        return
    kernels = device == "cpu" and engine.library() is not None
    if device == "cpu" and not kernels:
        warnings.warn(
            f"tunesmith was installed without its CPU kernels (they need a C++ compiler), so {quantize} runs through "
            "torch: as right, but slower.",
            stacklevel=3,
        )
    home = next(layers.parameters()).device
    lowbit.quantize_(layers.cpu(), quantize, kernels).to(home)  # it is on the CPU that weights are read


class MusicgenPipeline:
    """A MusicGen that makes clips.  `model` is the whole model, for everything else."""

    def __init__(
        self,
        model: "MusicgenForConditionalGeneration",
        facts: hub.Facts,
        name: str,
        folder: Path,
        adapter: "Adapter | None" = None,
        quantize: str | None = None,
    ) -> None:
        self.model, self.facts, self.name, self.folder, self.adapter = model, facts, name, folder, adapter
        self.quantize = quantize

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        seconds: float | int = 10.0,
        seed: int | None = None,
        takes: int = 1,
        audio_prompt: Any = None,
        prompt_seconds: float | int | None = None,
        temperature: float | int = 1.0,
        top_k: int = 250,
        top_p: float | int = 0.0,
        guidance: float | int = 3.0,
    ) -> Clip | list[Clip]:
        """Make music: one clip, or a list if several texts, audio prompts or takes are asked for (takes of a text
        adjoin).

        prompt: what you want to hear; several texts are several songs; None, and the model chooses. seconds: length
        of the result, the audio prompt included.  seed: song i of the call has seed + i; None draws one.
        audio_prompt: what to continue: a file, a Clip, or a list of those, one for all songs or one for each text;
        any rate, mono or stereo.  The result begins with it, as the codec renders it.  prompt_seconds: use only its
        beginning. temperature (0: always the likeliest), top_k (0: all), top_p (0: off), guidance (1: off): see
        requests.Sampling. Warns about words that the model doesn't know.  Raises RequestError or AudioFileError.
        """
        names, clips = _named(audio_prompt)
        request = MusicgenRequest(
            prompt=_listed(prompt),
            audio_prompt=names,
            prompt_seconds=prompt_seconds,
            seconds=seconds,
            seed=seed,
            takes=takes,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance),
        )
        *_, finished = self.stream(request, clips)
        assert isinstance(finished, Finished)
        several = takes > 1 or not isinstance(prompt, str | None) or isinstance(audio_prompt, list | tuple)
        return list(finished.result) if several else finished.result[0]

    def stream(self, request: MusicgenRequest, clips: Mapping[Path, Clip] | None = None) -> Iterator[Event]:
        """The same step by step: Progress; LevelDone for songs whose codes are chosen; AudioChunks as they are decoded
        (one song's follow one another); at last Finished with the tuple of clips.

        Songs beyond what fits at once wait, and begin when others end (generation/batching.py).
        clips: audio prompts in memory, under the names that the request uses.  To cancel, stop iterating.
        """
        import torch

        from tunesmith.generation.batching import too_large

        songs = plan(request, self.facts, clips)
        with suppress(torch.OutOfMemoryError):  # behind this, all that it holds is free
            yield from self._stream(songs)
            return
        raise too_large()

    def _stream(self, songs: Sequence[Song]) -> Iterator[Event]:
        from tunesmith.pipelines.decoding import Decoding

        batch, total = self._open(songs)
        coming, running, pace = deque(enumerate(songs)), dict[int, Any](), Pace("sampling")
        text, audio = lru_cache(1)(self._encode_text), lru_cache(1)(self._encode_audio)  # takes follow one another
        with Decoding(self.model) as decoding:
            for done in itertools.count(1):
                while coming and batch.room:
                    number, song = coming.popleft()
                    running[number] = batch.submit(self._piece(song, text, audio))
                if not batch.busy:
                    break
                batch.step()
                yield pace.at(done, max(done, total))
                for number, handle in running.items():
                    decoding.show(number, handle, songs[number].samples)
                if ended := tuple(number for number, handle in running.items() if handle.finished):
                    yield LevelDone(level=0, songs=ended)
                for number in ended:
                    del running[number]
                yield from decoding.ready()
            yield from decoding.ready(wait=True)
        yield Finished(result=tuple(self._clip(song, decoding.samples(i)) for i, song in enumerate(songs)))

    def _open(self, songs: Sequence[Song]) -> tuple["Batch", int]:
        """A batch with room for as many of the songs as fit at once, and how many steps it takes for all of them."""
        from tunesmith.generation.batching import PROMPT, Batch, as_many_as_fit

        texts = dict.fromkeys(text for song in songs for text in song.request.prompt)
        places = max([self.tokenize(text).shape[1] for text in texts], default=0)
        lm, guided = self.model.decoder, songs[0].request.sampling.guidance != 1.0

        def make(count: int) -> "Slots":
            return as_many_as_fit(lambda fewer: lm.slots(fewer, songs[0].frames, places, guided), count)

        def fewer(count: int) -> "Slots":
            lm.kept.clear()
            return make(count)

        slots = make(min(self._batch_size(songs[0]), len(songs)))
        ends = [0] * slots.count
        for song in songs:  # each begins where one ends first
            prompt = 0 if song.audio is None else song.audio.samples.shape[1] // self.facts.hop
            heapq.heapreplace(ends, ends[0] + prompt // PROMPT + slots.capacity - 1 - prompt)
        return Batch(slots, lm.config.pad_token_id, fewer), max(ends)

    def _piece(self, song: Song, text: Callable[[str], Any], audio: Callable[[Clip], Any]) -> "Piece":
        """A song for the batch: its text and audio prompt encoded, its own generator."""
        import torch

        return self.model.decoder.piece(
            frames=song.frames,
            sampling=song.request.sampling,
            generator=torch.Generator(self.model.device).manual_seed(song.request.seed or 0),
            text_states=text(song.request.prompt[0]) if song.request.prompt else None,
            prompt_codes=None if song.audio is None else audio(song.audio),
        )

    def _encode_text(self, text: str) -> "torch.Tensor":
        """What the decoder attends to [L, D]."""
        import torch

        with torch.no_grad():
            found: torch.Tensor = self.model.encode_text(self._read_text(text)[0].to(self.model.device))[0]
        return found

    def _encode_audio(self, clip: Clip) -> "torch.Tensor":
        """Codes of an audio prompt [K, P]."""
        import torch

        return self.model.encode_prompt(torch.from_numpy(clip.samples)[None].to(self.model.device))[0]

    def tokenize(self, text: str) -> "torch.Tensor":
        """Token ids [1, L].  Warns about words that the vocabulary lacks.  Raises RequestError for too many tokens."""
        ids, unknown = self._read_text(text)
        if unknown:
            warnings.warn(f"The model has no words for {', '.join(map(repr, unknown))}.", stacklevel=1)
        return ids

    def _read_text(self, text: str) -> tuple["torch.Tensor", list[str]]:
        """Token ids, and the words that the vocabulary lacks."""
        import torch

        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) > MAX_TOKENS:
            raise RequestError(f"The prompt has {len(ids)} tokens; at most {MAX_TOKENS} are allowed.")
        gaps = [span for token, span in zip(ids, spans, strict=True) if token == self.tokenizer.unk_token_id]
        return torch.tensor([ids]), _words_at(text, gaps)

    @cached_property
    def tokenizer(self) -> Any:
        """Read when the first text comes.  Raises CheckpointError if the folder has none."""
        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            raise CheckpointError(
                f"{str(self.folder)!r} has no tokenizer (tokenizer.json or spiece.model), so no text can be read; "
                "without a prompt the model works."
            )
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def _clip(self, song: Song, samples: Any) -> Clip:
        """Of exactly the length asked for, with its recipe."""
        return Clip(samples, self.facts.rate, self._recipe(song))

    def _recipe(self, song: Song) -> dict[str, Any]:
        """All that it takes to make the song again, ready for JSON."""
        import torch
        import transformers

        return {
            "tunesmith": tunesmith.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": self.name,
            "model_hash": self._hash,
            **({} if self.adapter is None else self.adapter.recipe),
            **({} if self.quantize is None else {"quantize": self.quantize}),
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "audio_prompt_hash": song.audio_hash,
            "request": song.request.to_dict(),
        }

    @cached_property
    def _hash(self) -> str:
        return hub.weights_hash(self.folder)

    def _batch_size(self, song: Song) -> int:
        """How many songs fit into the memory set aside for keys and values (two guidance branches)."""
        from tunesmith.models import musicgen_engine
        from tunesmith.nn import engine

        config, lm = self.model.config.decoder, self.model.decoder
        kind = engine.memory_dtype(lm.model.decoder.layers) if musicgen_engine.fits(lm, None) else lm.dtype
        values = 2 * 2 * config.num_hidden_layers * config.hidden_size * (song.frames + config.num_codebooks)
        most, room = BATCH, CACHE_BYTES
        if lm.device.type == "cuda":
            most, room = GPU_BATCH, self._gpu_room()
        return max(1, min(most, room // (values * kind.itemsize)))

    def _gpu_room(self) -> int:
        """The same for the same model, whatever earlier songs left on the GPU: recordings are used again."""
        import torch

        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        return round(GPU_SHARE * (torch.cuda.get_device_properties(self.model.device).total_memory - weights))


def _words_at(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The words of a text, each once, that the spans (start, stop) touch."""
    words = re.finditer(r"\S+", text)
    touched = [word for word in words if any(start < word.end() and word.start() < stop for start, stop in spans)]
    return list(dict.fromkeys(word[0].strip(".,;:!?\"'()") or word[0] for word in touched))


def _listed(prompt: Any) -> Any:
    """None is no prompt; a list without any is a mistake of the caller's."""
    if isinstance(prompt, list | tuple) and not prompt:
        raise RequestError("The list of prompts is empty; give None, and the model chooses.")
    return () if prompt is None else prompt


def _named(audio: Any) -> tuple[tuple[Any, ...], dict[Path, Clip]]:
    """Names for files and clips, and the clips under theirs."""
    if audio is None:
        return (), {}
    items = audio if isinstance(audio, list | tuple) else [audio]
    names = [Path(f"(clip {i})") if isinstance(item, Clip) else item for i, item in enumerate(items)]
    clips = {name: item for name, item in zip(names, items, strict=True) if isinstance(item, Clip)}
    return tuple(names), clips


def _read(folder: Path, dtype: "torch.dtype | str") -> "MusicgenForConditionalGeneration":
    """The model in eval mode, its codec's weight norm folded.  "auto": the decoder in the file's own precision, which
    costs no memory where the file is mapped; layers are quantised as exactly from there.
    """
    from tunesmith.convert.folders import read_pickle
    from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

    for file in hub.weight_files(folder):
        if file.suffix != ".safetensors":
            read_pickle(file)  # refuses what is not only tensors, in a sentence
    try:
        model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    except TunesmithError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"The config.json in {str(folder)!r} describes no model that can be built.") from error
    model.audio_encoder.fold_weight_norm()
    return model.eval().requires_grad_(False)


def _device(name: str | None) -> str:
    """Raises RequestError for a device that this machine lacks."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.device_count() > int(number or 0),
    }
    if not there[kind]:
        raise RequestError(f"This machine has no device {name!r}; use cpu or leave it out.")
    return name
