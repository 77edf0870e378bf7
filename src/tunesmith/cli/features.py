"""`tunesmith features`: what a layer of a Jukebox prior makes of audio, for other programs to learn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tunesmith.errors import AudioFileError, RequestError


@dataclass(frozen=True, kw_only=True)
class Features:
    """Activations of a Jukebox prior as features of audio files.

    tunesmith features *.wav --model 5b --layer 36 --out features.safetensors
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE [FILE ...]")]
    """Audio files, of any rate, mono or stereo."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "jukebox-5b-lyrics"
    """A folder, a bundled model, a Hugging Face id, or jukebox-1b-lyrics, jukebox-5b-lyrics."""

    layer: int = 36
    """After how many layers: 1 is the first layer's output, 0 their input."""

    level: Literal["top", "middle", "bottom"] = "top"
    """Which prior's (top, middle, bottom); the others are never loaded."""

    pool: Literal["mean", "max", "none"] = "mean"
    """Over time: mean, max, or none, a vector for each code."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("features.safetensors")
    """File to write: .safetensors or .npz, an array by the name of each audio file."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    dtype: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """float32, float16 or bfloat16 for the prior; by default float32."""

    def run(self) -> None:
        """Print a line a file."""
        from tunesmith.cli.jukebox import open_pipeline
        from tunesmith.pipelines.features import save_features

        self._check()
        pipeline = open_pipeline(self.model, self.device, self.dtype, one_prior_at_a_time=True)
        level = ("top", "middle", "bottom").index(self.level)
        found = {}
        for path in self.files:
            found[str(path)] = pipeline.features(path, self.layer, self.pool, level=level)[0].cpu()
            print(f"{path}  {list(found[str(path)].shape)}")
        save_features(self.out, found)
        print(self.out)

    def _check(self) -> None:
        from tunesmith.audio import Clip

        if not self.files:
            raise RequestError("Name one audio file or several.")
        if self.out.suffix not in (".safetensors", ".npz"):
            raise RequestError(f"--out is {str(self.out)!r}; end it with .safetensors or .npz.")
        if not self.out.absolute().parent.is_dir():
            raise AudioFileError(f"There is no folder {str(self.out.parent)!r} to write to; make it first.")
        if self.out.is_dir():
            raise AudioFileError(f"{str(self.out)!r} is a folder; name a file.")
        for path in self.files:
            Clip.read(path, 1)  # what isn't audio is told before a model is loaded
