"""Codes to audio while the language model goes on: each song's audio piece by piece, in a thread of its own.

Where the language model has all processors to itself a second thread would only be in its way: then pieces are decoded
between its steps.  What comes out is the same either way, and that of decoding whole songs to within rounding.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from tunesmith import machine
from tunesmith.codecs.streaming import PIECE, StreamingDecoder, can_stream
from tunesmith.events import AudioChunk
from tunesmith.generation.batching import Handle
from tunesmith.nn import engine
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration


def spare_processors() -> int:
    """That torch's threads leave free."""
    return machine.processors() - torch.get_num_threads()


class Track:
    """A song's audio in the making."""

    def __init__(self, model: MusicgenForConditionalGeneration, song: int, samples: int) -> None:
        """samples: what the song is cut to."""
        self.model, self.song, self.samples, self.rate = model, song, samples, model.sample_rate
        channels = model.config.decoder.audio_channels
        plain = can_stream(model.audio_encoder)
        self.decoders = [StreamingDecoder(model.audio_encoder) for _ in range(channels)] if plain else []
        self.frames, self.ended = 0, False
        self.pieces: list[Float32[np.ndarray, "C T"]] = []

    def parts(self, handle: Handle) -> Iterator[tuple[Int[Tensor, "K S"], bool]]:
        """Codes that haven't been given out yet, as many at a time as are decoded well; and are they the last?"""
        done = handle.finished
        there = handle.piece.codes.shape[1] if done else 0 if handle.state is None else handle.state.frames
        size = PIECE if self.decoders else handle.piece.codes.shape[1]
        while there - self.frames >= size or (done and not self.ended):
            end = min(self.frames + size, there)
            self.ended = done and end == there
            yield handle.codes[:, self.frames : end], self.ended
            self.frames = end

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "K S"], last: bool) -> AudioChunk:
        """Called for one part after the other."""
        channels = [decoder.push(codes[c :: len(self.decoders)], last) for c, decoder in enumerate(self.decoders)]
        audio = torch.cat(channels) if channels else self.model.decode_audio(codes[None])[0]
        start = sum(piece.shape[1] for piece in self.pieces)
        self.pieces.append(audio[:, : self.samples - start].float().cpu().numpy())
        return AudioChunk(song=self.song, samples=self.pieces[-1], rate=self.rate, start=start / self.rate)


class Decoding:
    """The audio of several songs; to be used with `with`."""

    def __init__(self, model: MusicgenForConditionalGeneration) -> None:
        self.model, self.tracks = model, dict[int, Track]()
        aside = model.device.type == "cpu" and spare_processors() > 0
        self.pool = ThreadPoolExecutor(1, "decoding", engine.limit_threads, (1,)) if aside else None
        self.coming = deque[Future[AudioChunk]]()

    def __enter__(self) -> "Decoding":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def show(self, song: int, handle: Handle, samples: int) -> None:
        """How far a song is now; it will be cut to so many samples."""
        if song not in self.tracks:
            self.tracks[song] = Track(self.model, song, samples)
        track = self.tracks[song]
        for codes, last in track.parts(handle):
            if self.pool is not None:
                self.coming.append(self.pool.submit(track.decode, codes.clone(), last))
            else:
                self.coming.append(Future())
                self.coming[-1].set_result(track.decode(codes, last))

    def ready(self, wait: bool = False) -> Iterator[AudioChunk]:
        """What is decoded by now, or (`wait`) all that was shown."""
        while self.coming and (wait or self.coming[0].done()):
            chunk = self.coming.popleft().result()
            if chunk.samples.size:
                yield chunk

    def samples(self, song: int) -> Float32[np.ndarray, "C T"]:
        """The whole song."""
        return np.concatenate(self.tracks[song].pieces, axis=1)
