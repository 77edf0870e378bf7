"""`tunesmith assemble`: parts that were trained, or are parts of released models, to a model that samples."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tunesmith.errors import RequestError

UNALIGNED = (
    "tunesmith: This model names no layer and head that follow the words, for they weren't looked for when its prior "
    "was trained; `tunesmith align SONG --search` finds them for a song that it sang."
)

Part = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Assemble:
    """Make a whole model of parts: a VQ-VAE and priors to a Jukebox, a codec and a language model to a MusicGen.

    tunesmith assemble mine --vqvae jukebox-1b-lyrics --prior runs/prior/model --upsampler jukebox-1b-lyrics

    tunesmith assemble mine --codec runs/codec/codec --lm runs/lm/model

    A part is a folder, or the name of a whole model of which it is taken.
    """

    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Folder to make; it appears whole or not at all."""

    vqvae: Part = None
    """Of a Jukebox: the VQ-VAE."""

    prior: Part = None
    """Of a Jukebox: the prior of the top level."""

    upsampler: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)")
    ] = ()
    """Of a Jukebox: the prior of a level below the top; of a whole model all that are still missing."""

    codec: Part = None
    """Of a MusicGen: the EnCodec."""

    lm: Part = None
    """Of a MusicGen: the language model, with the projection of its text."""

    text_encoder: Part = None
    """Of a MusicGen: the T5 encoder and its tokenizer; by default the language model's."""

    other_codec: bool = False
    """Take priors or a language model that say they were trained on another codec's codes."""

    max_shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """The most that a file of safetensors holds."""

    def run(self) -> None:
        """Print the folder that was made."""
        self._check()
        from tunesmith.convert.folders import refuse_destination

        refuse_destination(self.destination)
        from tunesmith.cli.generate import quiet
        from tunesmith.pipelines.assemble import assemble_jukebox, assemble_musicgen, follows_no_words

        quiet()
        if self.vqvae is not None and self.prior is not None:
            assemble_jukebox(
                self.destination,
                vqvae=self.vqvae,
                prior=self.prior,
                upsamplers=self.upsampler,
                other_codec=self.other_codec,
                max_shard_size=self.max_shard_size,
            )
            if follows_no_words(self.destination):
                print(UNALIGNED, file=sys.stderr)
        elif self.codec is not None and self.lm is not None:
            assemble_musicgen(
                self.destination,
                codec=self.codec,
                lm=self.lm,
                text_encoder=self.text_encoder,
                other_codec=self.other_codec,
                max_shard_size=self.max_shard_size,
            )
        print(self.destination)

    def _check(self) -> None:
        """Raises RequestError unless there are the parts of one family."""
        jukebox = [self.vqvae, self.prior, *self.upsampler]
        musicgen = [self.codec, self.lm, self.text_encoder]
        whole = (None not in jukebox[:2] and not any(musicgen), None not in musicgen[:2] and not any(jukebox))
        if not any(whole):
            raise RequestError(
                "Name the parts of one model: --vqvae, --prior and --upsampler of a Jukebox, or --codec and --lm of a "
                "MusicGen."
            )
