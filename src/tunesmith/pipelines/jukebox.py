"""Jukebox whole: a VQ-VAE and a prior for each of its levels, under the names of the Hugging Face documentation.

    labels --top prior--> codes --middle upsampler--> codes --bottom upsampler--> codes --VQ-VAE--> audio [B, T, 1]

Every list by level (codes, labels, hop fractions, what `encode` gives) is top first here; the VQ-VAE alone counts from
the finest.  How a level is sampled, `pipelines/levels.py` says.  The VQ-VAE stays in float32 whatever the priors' dtype
is: half precision changes codes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tunesmith.audio import Clip
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.convert.folders import SHARD, shard_bytes, stream_tensors
from tunesmith.errors import RequestError
from tunesmith.events import Event, Finished, LevelDone
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.nn.pretrained import Model, StrictLoading
from tunesmith.pipelines import levels
from tunesmith.pipelines.features import features
from tunesmith.pipelines.jukebox_config import Json, JukeboxConfig, refuse_unlike
from tunesmith.pipelines.levels import Codes, Labels, Options, Plan, State
from tunesmith.pipelines.parts import (
    AUTOMATIC,
    device_of,
    halved,
    is_absent,
    load_parts,
    memory_is_short,
    places_of,
    stack_dtype,
)

__all__ = ["JukeboxConfig", "JukeboxModel"]

Audio = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
"""[B, T, C], or a list of [T, C]."""


class JukeboxModel(StrictLoading):
    """A whole Jukebox: `ancestral_sample`, `primed_sample`, `continue_sample`, `upsample`, `encode`, `decode`.

    Those that sample return codes [B, S] by level, which `decode` makes audio of, and share the keywords of
    `levels.Options` (sample_length, total_length, offset, hop_fraction, temperature, seeds, ...).  To follow, save and
    resume a long run, drive `iterate` with a `Plan` and a `State` of your own.
    """

    config: JukeboxConfig
    config_class = JukeboxConfig
    default_dtype = torch.float32
    base_model_prefix = ""
    main_input_name = "labels"
    output_modalities = ("audio",)
    _no_split_modules = ["FactoredLayer"]
    _keep_in_fp32_modules_strict = {"vqvae", *(JukeboxPrior._keep_in_fp32_modules_strict or ())}
    _keys_to_ignore_on_load_missing = JukeboxVQVAE._keys_to_ignore_on_load_missing

    _source: tuple[Any, Json] | None = None
    """Name and keywords of `from_pretrained`, where parts were left on disk."""

    _adapt: Callable[[JukeboxPrior, int], JukeboxPrior] | None = None
    """What `adapt` was given, for priors that are read later."""

    def __init__(self, config: JukeboxConfig) -> None:
        """With random weights.  Raises IncompatiblePartsError for parts that don't fit each other."""
        super().__init__(config)
        refuse_unlike(config)
        self.vqvae = JukeboxVQVAE(config.vqvae_config)
        self.priors = nn.ModuleList(JukeboxPrior(prior) for prior in config.prior_configs)
        self.post_init()
        # transformers looks for ties in direct children alone, and ours are in a list; and what a part overlooks in the
        # folder of a whole model, a whole model must not.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        self._keys_to_ignore_on_load_unexpected = set()

    # --------------------------------------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *args: Any,
        one_prior_at_a_time: bool | None = None,
        **kwargs: Any,
    ) -> Model:
        """As transformers', strict; the dtype is that of the priors' transformer layers.

        one_prior_at_a_time: leave the priors on disk; each is loaded when its level is sampled, and forgotten.  By
        default that is done where all of them would not fit into the memory of the device.
        device_map: a device, "auto" (a GPU if there is one), "disk" (as one_prior_at_a_time), or a dictionary of parts
        ("vqvae", "priors.0", ...; "" is all others) -> a device or "disk".  Parts are not divided: a prior whose layers
        came from the disk would be read anew for every code.
        """
        given = kwargs.pop("device_map", None)
        if one_prior_at_a_time is None and given in (None, *AUTOMATIC):
            one_prior_at_a_time = memory_is_short(cls, pretrained_model_name_or_path, device_of(given), kwargs)
        places = places_of(given, bool(one_prior_at_a_time))
        if len(set(map(str, places.values()))) > 1:
            return load_parts(cls, pretrained_model_name_or_path, places, kwargs)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return loaded if kwargs.get("output_loading_info") else loaded.to(places[""])

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers': sharded safetensors.  Priors that are on disk are copied one after another, in float32."""
        if not any(map(is_absent, self.priors)):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        forms = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        stream_tensors(forms, self._tensors(), folder, shard_bytes(kwargs.get("max_shard_size", SHARD)))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"vqvae.{name}", tensor.cpu()) for name, tensor in self.vqvae.state_dict().items())
        for level in range(len(self.priors)):
            with self.open_prior(level) as prior:
                yield from ((f"priors.{level}.{name}", tensor.cpu()) for name, tensor in prior.state_dict().items())

    @property
    def dtype(self) -> torch.dtype:
        """That of the priors' transformer layers."""
        return stack_dtype(self.priors[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "JukeboxModel":
        """The VQ-VAE keeps its precision, and what is on disk stays there."""
        self.vqvae._apply(lambda x: fn(x).to(x.dtype) if x.is_floating_point() else fn(x))
        self.priors._apply(lambda x: x.to(fn(x.new_empty(0, device="cpu")).dtype) if x.is_meta else fn(x))
        return self

    @contextlib.contextmanager
    def open_prior(
        self, level: int, *, config: JukeboxPriorConfig | None = None, fp16: bool = False
    ) -> Iterator[JukeboxPrior]:
        """The prior of a level (0 is the top), loaded for the time being if it is on disk.

        config: what it goes by meanwhile.  fp16: give a twin with its layers in float16.
        """
        prior: Any = self.priors[level]
        if is_absent(prior):
            prior = self._read_prior(level, torch.float16 if fp16 else stack_dtype(prior))
        elif fp16 and stack_dtype(prior) == torch.float32:
            prior = halved(prior)
        own, prior.config = prior.config, config or prior.config
        try:
            yield prior
        finally:
            prior.config = own

    def adapt(self, change: Callable[[JukeboxPrior, int], JukeboxPrior]) -> None:
        """Change each prior, by its level, also those on disk when their turn comes (pipelines/adapters.py)."""
        for level, prior in enumerate(self.priors):
            if not is_absent(prior):
                assert isinstance(prior, JukeboxPrior), "priors are a list of those"
                self.priors[level] = change(prior, level)
        self._adapt = change

    def _read_prior(self, level: int, dtype: torch.dtype) -> JukeboxPrior:
        assert self._source is not None, "parts are absent only where they were left on disk"
        name, options = self._source
        config = self.config.prior_configs[level]
        prior = JukeboxPrior.from_pretrained(name, level=level, config=config, **{**options, "dtype": dtype})
        prior = prior if self._adapt is None else self._adapt(prior, level)
        return prior.to(self.device)  # type: ignore[arg-type]  # transformers leaves `to` untyped

    # -------------------------------------------------------------------------------------------------- codes and audio

    @torch.no_grad()
    def encode(
        self,
        audio: Tensor | None = None,
        start_level: int = 0,
        end_level: int | None = None,
        bs_chunks: int = 1,
        *,
        input_audio: Tensor | None = None,
    ) -> list[Int[Tensor, "B _"]]:
        """Audio [B, T, C] to codes by level, top first.

        start_level, end_level: only the VQ-VAE's levels start_level (0 is the finest) to end_level - 1.  bs_chunks: how
        many parts to work through the batch in.  input_audio: transformers' name.  Raises RequestError.
        """
        waves = _either("audio", audio, "input_audio", input_audio)
        waves = waves.to(self.device) if isinstance(waves, Tensor) else waves  # which the VQ-VAE refuses
        return self.vqvae.encode(waves, start_level, end_level, bs_chunks)[::-1]

    @torch.no_grad()
    def decode(
        self,
        codes: Codes | None = None,
        start_level: int | None = None,
        end_level: int | None = None,
        bs_chunks: int = 1,
        *,
        music_tokens: Codes | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Codes by level, top first, to audio: that of the finest level that there are codes of.

        start_level: hear this one of the VQ-VAE's levels (0 is the finest) instead.  end_level: the list begins with
        the VQ-VAE's level end_level - 1; by default with the top.  bs_chunks: how many parts to work through the batch
        in.  music_tokens: transformers' name.  Raises RequestError.
        """
        listed = self._listed(_either("codes", codes, "music_tokens", music_tokens))
        top = self.vqvae.levels if end_level is None else end_level
        there = [i for i, each in enumerate(listed) if each.shape[-1]]
        if not there or len(listed) > top:
            raise RequestError(f"There are {len(there)} levels with codes in a list of {len(listed)}; give 1 to {top}.")
        if start_level is not None and start_level not in range(top):
            raise RequestError(f"start_level is {start_level}; these codes have levels 0 (the finest) to {top - 1}.")
        chosen = there[-1] if start_level is None else min(top - 1 - start_level, len(listed) - 1)
        level = top - 1 - chosen if start_level is None else start_level
        return self.vqvae.decode([listed[chosen].to(self.device)], level, level + 1, bs_chunks)

    def encode_prompt(self, audio: Audio) -> list[Int[Tensor, "B _"]]:
        """Audio [B, T, C] to codes by level, top first, on the CPU; what fills no code of the top level is left out.

        One song after another, in pieces: memory doesn't grow with length or batch.  Raises RequestError.
        """
        waves = self._prompt(audio)
        songs = [self.encode(waves[i : i + 1]) for i in range(len(waves))]
        return [torch.cat(level).cpu() for level in zip(*songs, strict=True)]

    def features(
        self, audio: Float[Tensor, "B T C"], layer: int = 36, pool: str | None = "mean", **options: Any
    ) -> Tensor:
        """Activations of a layer of the top prior, or another (`level`), for mono audio: see pipelines/features.py."""
        return features(self, audio, layer, pool, **options)

    def _prompt(self, audio: Audio) -> Tensor:
        """Whole codes of the top level.  Raises RequestError for what can't be encoded."""
        if not isinstance(audio, Tensor):
            if not isinstance(audio, np.ndarray | Sequence) or any(isinstance(song, str) for song in audio):
                raise RequestError(
                    f"The prompt is {audio!r}; it must be a tensor [batch, samples, 1] or a list of them."
                )
            songs = [torch.as_tensor(song) for song in audio]
            if len({song.shape for song in songs}) != 1:
                raise RequestError("The prompts have different shapes or there are none; give equally long ones.")
            audio = torch.stack(songs)
        hop = self.vqvae.hop_lengths[-1]
        self.vqvae._check_audio(audio, at_least=hop)
        return audio[:, : audio.shape[1] // hop * hop].float()

    # --------------------------------------------------------------------------------------------------------- sampling

    def plan(
        self,
        labels: Labels,
        n_samples: Any = 1,
        sample_levels: Any = None,
        **options: Any,
    ) -> Plan:
        """What sampling with these arguments would do, checked.  Raises RequestError."""
        return Plan.of(self.config, labels, Options.of(options), songs=n_samples, sampled=sample_levels)

    def iterate(self, plan: Plan, state: State) -> Iterator[Event]:
        """Go on from a state until the plan is fulfilled: Progress, WindowDone, LevelDone, at last Finished.

        One prior is in use at a time.  See pipelines/levels.py.
        """
        return levels.iterate(plan, state, lambda n: self.open_prior(n, config=plan.levels[n].config, fp16=plan.fp16))

    def ancestral_sample(
        self,
        labels: Labels = None,
        n_samples: int = 1,
        sample_levels: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Int[Tensor, "B _"]]:
        """Codes by level, from labels alone.

        labels: by level, [B, 4 + G + A], as JukeboxTokenizer makes them (`input_ids`); one row stands for all samples.
        sample_levels: the levels to sample, all by default; the others' codes stay empty.  options: those of
        `levels.Options`, and what `_sample` takes.  Raises RequestError before any work for what can't be done.
        """
        return self._sample(None, labels, sample_levels, n_samples=n_samples, **options)

    def continue_sample(
        self,
        codes: Codes | None = None,
        labels: Labels = None,
        sample_levels: Sequence[int] | None = None,
        *,
        music_tokens: Codes | None = None,
        **options: Any,
    ) -> list[Int[Tensor, "B _"]]:
        """Codes by level that begin with the given ones, up to `sample_length`, beyond which none may be given.

        codes: by level, [B, S]; a level may have none, and lower levels may be left out.  music_tokens: transformers'
        name.  The rest as in `ancestral_sample`.
        """
        return self._sample(_either("codes", codes, "music_tokens", music_tokens), labels, sample_levels, **options)

    def upsample(
        self,
        codes: Codes | None = None,
        labels: Labels = None,
        sample_levels: Sequence[int] | None = None,
        *,
        music_tokens: Codes | None = None,
        **options: Any,
    ) -> list[Int[Tensor, "B _"]]:
        """The levels below given codes; by default all but the top, and as long as the longest given level.

        The rest as in `continue_sample`; so for a shorter result cut the codes first.
        """
        given = self._all_levels(_either("codes", codes, "music_tokens", music_tokens))
        sampled = range(1, len(self.priors)) if sample_levels is None else sample_levels
        hops = [prior.hop_length for prior in self.config.prior_configs]
        length = max(level.shape[-1] * hop for level, hop in zip(given, hops, strict=True))
        return self._sample(given, labels, sampled, given_length=length, **options)

    def primed_sample(
        self,
        audio: Audio | None = None,
        labels: Labels = None,
        sample_levels: Sequence[int] | None = None,
        *,
        raw_audio: Audio | None = None,
        n_samples: int = 1,
        **options: Any,
    ) -> list[Int[Tensor, "B _"]]:
        """Codes by level that begin with those of audio, up to `sample_length`.

        audio: [B, T, 1] (a tensor or a NumPy array, or a list of [T, 1]), mono at the model's rate, one song for all
        samples or one each; what fills no code of the top level is left out.  raw_audio: transformers' name.  The rest
        as in `ancestral_sample`.
        """
        waves = self._prompt(_either("audio", audio, "raw_audio", raw_audio))
        songs = n_samples if len(waves) == 1 else len(waves)
        own, sampling = _split(options)
        plan = self.plan(labels, songs, sample_levels, **sampling)
        if plan.sample_length <= waves.shape[1]:
            raise RequestError(
                f"The prompt has {waves.shape[1]} samples and the result is to have {plan.sample_length}, which count "
                "it; ask for more, or give less of the prompt."
            )
        return self._run(plan, State.of(plan, self.encode_prompt(waves), sampling.get("seeds")), labels, **own)

    def _sample(
        self,
        music_tokens: Codes | None = None,
        labels: Labels = None,
        sample_levels: Sequence[int] | None = None,
        metas: Any = None,
        *,
        codes: Codes | None = None,
        n_samples: int = 1,
        given_length: int | None = None,
        **options: Any,
    ) -> list[Int[Tensor, "B _"]]:
        """What all of these come to: codes by level, of which there are some already, up to the length asked for.

        music_tokens or codes: by level; None is nothing.  n_samples: where neither they nor labels tell.  given_length:
        in samples, where options don't tell.  save_results: write the audio of each level to `jukebox/level_N/` as soon
        as it is done (0 is the top).  metas and compute_alignments are accepted for transformers' sake: the first
        isn't needed, the second is refused.
        """
        own, sampling = _split(options)
        given = music_tokens if codes is None else codes
        whole = None if given is None else self._all_levels(given)
        songs = n_samples if whole is None else max(n_samples, *map(len, whole))
        plan = Plan.of(
            self.config,
            labels,
            Options.of(sampling),
            songs=songs,
            sampled=sample_levels,
            given_length=given_length,
        )
        return self._run(plan, State.of(plan, whole, sampling.get("seeds")), labels, **own)

    def _run(self, plan: Plan, state: State, labels: Labels, *, save_results: bool = False) -> list[Tensor]:
        device = labels[0].device if labels and isinstance(labels[0], Tensor) else self.device
        for event in self.iterate(plan, state):
            if save_results and isinstance(event, LevelDone):
                self._save(state.stacked()[: event.level + 1], Path("jukebox") / f"level_{event.level}")
            if isinstance(event, Finished):
                return [level.to(device) for level in event.result]
        raise AssertionError("iterate ends with Finished")

    def _save(self, codes: list[Tensor], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(len(codes[0])):
            audio = self.decode([level[i : i + 1] for level in codes])
            Clip(audio[0].T.cpu().numpy(), self.vqvae.sample_rate).save(folder / f"item_{i}.wav")

    def _all_levels(self, codes: Codes) -> list[Tensor]:
        """With an empty entry for each lower level that was left out."""
        listed = self._listed(codes)
        empty = torch.zeros(len(listed[0]), 0, dtype=torch.long)
        return [*listed, *[empty] * (len(self.priors) - len(listed))]

    def _listed(self, codes: Any) -> list[Tensor]:
        tensors = isinstance(codes, list | tuple) and all(isinstance(each, Tensor) and each.ndim for each in codes)
        if not tensors or not 1 <= len(codes) <= len(self.priors):
            raise RequestError(f"codes must be a list of 1 to {len(self.priors)} tensors [batch, steps], top first.")
        return list(codes)


def _either(name: str, value: Any, other: str, old: Any) -> Any:
    if (value is None) == (old is None):
        raise RequestError(f"Give {name} (which transformers called {other}).")
    return old if value is None else value


def _split(options: Mapping[str, Any]) -> tuple[Json, Json]:
    """What is ours to do, and the options of sampling."""
    own, rest = {}, dict(options)
    if rest.pop("compute_alignments", False):
        raise RequestError("Sampling doesn't align lyrics; see `tunesmith align`, or leave compute_alignments out.")
    rest.pop("metas", None)
    if "save_results" in rest:
        own["save_results"] = bool(rest.pop("save_results"))
    if "metadata" in rest:
        raise RequestError("The whole model calls it labels: a list by level; `metadata` is an argument of priors.")
    return own, rest
