"""`tunesmith convert`: checkpoints between the layouts of Hugging Face and audiocraft."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a checkpoint from audiocraft's layout to ours (Hugging Face's), or back."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Folder, file, name or Hugging Face id of the checkpoint; what it is, its content says."""

    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Folder to make; it appears whole or not at all."""

    text_encoder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """T5 folder with weights and tokenizer; audiocraft's language models come without."""

    to: Annotated[Literal["huggingface", "audiocraft"] | None, tyro.conf.arg(metavar="LAYOUT")] = None
    """Layout to write, huggingface or audiocraft; by default the one that SRC is not in."""

    def run(self) -> None:
        """Print the folder that was made."""
        from tunesmith import hub

        source = hub.find(self.source)  # a wrong name is told before torch is loaded
        from tunesmith.convert.checkpoints import convert_checkpoint

        folder = convert_checkpoint(
            source, self.destination, text_encoder=self.text_encoder, to=self.to, resolve=hub.find
        )
        print(folder)
