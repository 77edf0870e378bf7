"""Rendered clips on disk, and what training draws from them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tunesmith.errors import RequestError


class Shards:
    """Clips of equal length in memory-mapped files `*.npy` of shape [clips, samples], 16-bit integers, mono."""

    def __init__(self, folder: Path) -> None:
        """Raise `RequestError` when the folder has no shards."""
        self.files = [np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))]
        if not self.files:
            raise RequestError(f"{folder} holds no shards (*.npy); write some with the corpus command first.")
        self.starts = np.cumsum([0] + [len(file) for file in self.files])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def crop(self, index: int, start: int, samples: int) -> Tensor:
        """Samples of one clip as float32 in [-1, 1): [T]."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        clip = self.files[shard][index - self.starts[shard], start : start + samples]
        return torch.from_numpy(clip.astype(np.float32) / 32768)

    def samples(self, index: int) -> int:
        """Length of one clip."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return int(self.files[shard].shape[1])


class Crops(Dataset[dict[str, Tensor]]):
    """`count` random crops; crop i depends on (seed, i) alone, so a resumed run sees what an uninterrupted one does."""

    def __init__(self, shards: Shards, *, samples: int, count: int, seed: int) -> None:
        self.shards, self.length, self.count, self.seed = shards, samples, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One crop: {"audio": [T]}."""
        rng = np.random.default_rng((self.seed, index))
        clip = int(rng.integers(len(self.shards)))
        start = int(rng.integers(self.shards.samples(clip) - self.length + 1))
        return {"audio": self.shards.crop(clip, start, self.length)}
