"""The simple way: `tunesmith.load(name).generate("80s pop with bassy drums", seconds=10, seed=7).save("song.wav")`.

A pipeline holds a model and its tokenizer.  It turns requests (requests.py) into events (events.py), the last of which
has the clips.  torch and transformers are imported when a model is loaded, not with this module.

A song depends on its request alone: texts and audio prompts are encoded one by one, each song draws from its own
generator, and audio is decoded one by one, so batch-mates change nothing.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunesmith
from tunesmith import hub
from tunesmith.audio import Clip
from tunesmith.errors import CheckpointError, RequestError, TunesmithError
from tunesmith.events import AudioChunk, Event, Finished, LevelDone, Pace
from tunesmith.pipelines.plan import Song, plan
from tunesmith.requests import MusicgenRequest, Sampling

if TYPE_CHECKING:
    import torch

    from tunesmith.pipelines.adapters import Adapter
    from tunesmith.pipelines.jukebox_song import JukeboxPipeline
    from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZE = ("int8", "int4")
BATCH = 16
"""The most songs that are sampled at once."""
CACHE_BYTES = 2**30
"""Fewer are, where their keys and values would take more memory than this."""
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
    quantize: "int8" or "int4" makes the language model's weights smaller and a CPU several times faster, and changes
    the music a little (docs/performance.md); None or "none" is exact.
    Raises ModelNotFoundError, CheckpointError, or RequestError for a device that isn't there.
    """
    device, dtype, quantize = check_device(device), check_dtype(dtype), check_quantize(quantize)
    hub.check_name(name_or_path)
    folder = hub.locate(name_or_path)
    if folder.is_dir() and hub.family_of(folder) == "jukebox":
        from tunesmith.pipelines.jukebox_song import JukeboxPipeline

        hub.check_files(folder)
        return JukeboxPipeline(str(name_or_path), folder, _device(device), dtype, adapter=adapter, quantize=quantize)
    facts = hub.check(folder)
    import torch

    model, learnt = _read(folder, getattr(torch, dtype)), None
    if adapter is not None:
        learnt = open_adapter(adapter, str(name_or_path), folder, "musicgen")
        learnt.apply(model)
    made = _device(device)
    shrink(model.decoder.model.decoder.layers, quantize, made)
    return MusicgenPipeline(model.to(made), facts, str(name_or_path), folder, learnt, quantize)


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
    lowbit.quantize_(layers, quantize, kernels)


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
        """The same step by step: Progress, for each batch LevelDone, for each song AudioChunk, at last Finished with
        the tuple of clips.

        clips: audio prompts in memory, under the names that the request uses.  To cancel, stop iterating.
        """
        songs = plan(request, self.facts, clips)
        size = self._batch_size(songs[0])
        batches = [range(start, min(start + size, len(songs))) for start in range(0, len(songs), size)]
        made: list[Clip] = []
        pace = Pace("sampling")
        for number, batch in enumerate(batches):
            run = self._sample([songs[i] for i in batch])
            for step in run:
                yield pace.at(number * step.total + step.done, len(batches) * step.total)
            yield LevelDone(level=0, songs=tuple(batch))
            for i, codes in zip(batch, step.codes, strict=True):
                made.append(self._clip(songs[i], codes))
                yield AudioChunk(song=i, samples=made[-1].samples, rate=made[-1].rate)
        yield Finished(result=tuple(made))

    def _sample(self, songs: Sequence[Song]) -> Iterator[Any]:
        """The decode loop (generation/decode.py) over these songs together; yields its steps."""
        import torch

        device = self.model.device
        states, mask = self._encode_texts([text for song in songs for text in song.request.prompt])
        prompts = self._encode_audio(songs)
        return self.model.decoder.iterate_codes(
            frames=songs[0].frames,
            sampling=songs[0].request.sampling,
            generators=[torch.Generator(device).manual_seed(song.request.seed or 0) for song in songs],
            text_states=states,
            text_mask=mask,
            prompt_codes=prompts,
        )

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """What the decoder attends to and its mask, padded to the longest [B, L, D], [B, L]; None without texts."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        if not texts:
            return None, None
        with torch.no_grad():
            known = {text: self.model.encode_text(self.tokenize(text).to(self.model.device))[0] for text in set(texts)}
        states = [known[text] for text in texts]
        mask = pad_sequence([torch.ones(len(s), dtype=torch.long, device=s.device) for s in states], batch_first=True)
        return pad_sequence(states, batch_first=True), mask

    def tokenize(self, text: str) -> "torch.Tensor":
        """Token ids [1, L].  Warns about words that the vocabulary lacks.  Raises RequestError for too many tokens."""
        import torch

        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) > MAX_TOKENS:
            raise RequestError(f"The prompt has {len(ids)} tokens; at most {MAX_TOKENS} are allowed.")
        gaps = [span for token, span in zip(ids, spans, strict=True) if token == self.tokenizer.unk_token_id]
        if words := _words_at(text, gaps):
            warnings.warn(f"The model has no words for {', '.join(map(repr, words))}.", stacklevel=1)
        return torch.tensor([ids])

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

    def _encode_audio(self, songs: Sequence[Song]) -> list[Any] | None:
        """Codes [K, P] of each song's audio prompt; None without."""
        import torch

        prompts = [song.audio for song in songs if song.audio is not None]
        if not prompts:
            return None
        device = self.model.device
        codes = {
            clip: self.model.encode_prompt(torch.from_numpy(clip.samples)[None].to(device))[0] for clip in set(prompts)
        }
        return [codes[clip] for clip in prompts]

    def _clip(self, song: Song, codes: "torch.Tensor") -> Clip:
        """Codes [K, S] to a clip of exactly the length asked for, with its recipe."""
        audio = self.model.decode_audio(codes[None])[0, :, : song.samples]
        return Clip(audio.float().cpu().numpy(), self.facts.rate, self._recipe(song))

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
        config = self.model.config.decoder
        values = 2 * 2 * config.num_hidden_layers * config.hidden_size * (song.frames + config.num_codebooks)
        return max(1, min(BATCH, CACHE_BYTES // (values * self.model.dtype.itemsize)))


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


def _read(folder: Path, dtype: "torch.dtype") -> "MusicgenForConditionalGeneration":
    """The model in eval mode, its codec's weight norm folded."""
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
