"""`tunesmith convert`: checkpoints of audiocraft (MusicGen) and OpenAI (Jukebox) to Hugging Face's layout, or back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a checkpoint from audiocraft's or OpenAI's layout to ours (Hugging Face's), or back."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Folder, file, name or Hugging Face id of the checkpoint; what it is, its content says."""

    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Folder to make; it appears whole or not at all."""

    text_encoder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """T5 folder with weights and tokenizer; audiocraft's language models come without."""

    preset_name: Annotated[str | None, tyro.conf.arg(name="preset", metavar="NAME")] = None
    """What OpenAI's files are (5b, 5b_lyrics, 1b_lyrics or the name of a part's settings), if they don't say it."""

    ids: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder with the four text files of artists and genres of OpenAI's code; without them these are numbers."""

    to: Annotated[Literal["huggingface", "audiocraft", "openai"] | None, tyro.conf.arg(metavar="LAYOUT")] = None
    """Layout to write: huggingface, audiocraft or openai; by default the one that SRC is not in."""

    max_shard_size: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """The most that a file of safetensors holds; 5GB by default."""

    def run(self) -> None:
        """Print the folder that was made."""
        from tunesmith import hub

        source = hub.find(self.source)  # a wrong name is told before torch is loaded
        from tunesmith.convert.checkpoints import convert_checkpoint

        folder = convert_checkpoint(
            source,
            self.destination,
            text_encoder=self.text_encoder,
            preset=self.preset_name,
            ids=self.ids,
            to=self.to,
            max_shard_size=self.max_shard_size,
            resolve=hub.find,
        )
        print(folder)
