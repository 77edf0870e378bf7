"""What a codec's codes mean, as a hash: two codecs of the same one speak the same codes, whatever their decoders."""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.convert.folders import CONFIG, iterate_tensors, read_forms, read_json
from tunesmith.convert.keymaps import modern_names

PREFIXES = {"jukebox": "vqvae.", "jukebox_vqvae": "", "musicgen": "audio_encoder.", "encodec": ""}
"""`model_type` of models that have a codec -> the beginning of its tensors' names."""

_MAKES_CODES = re.compile(r"encoders?\..+|bottleneck\..+\.codebook|quantizer\..+\.embed")


def codes_hash(folder: Path) -> str | None:
    """SHA-256 of all that makes codes, encoder and codebooks; None for a model without a codec.

    Of the numbers their signs are taken: they are the same in every precision, and a step of training turns some of
    thousands.  How tensors are parted into files doesn't count.  Raises CheckpointError for files that can't be read.
    """
    prefix = PREFIXES.get(read_json(folder / CONFIG).get("model_type", ""))
    if prefix is None:
        return None
    names = [name for name in read_forms(folder) if name.startswith(prefix)]
    wanted = {name for name in names if _MAKES_CODES.fullmatch(name.removeprefix(prefix))}
    sums = {}
    for name, tensor in iterate_tensors(folder, wanted):
        for modern in modern_names({name.removeprefix(prefix): tensor}):
            sums[modern] = _sum(tensor)
    return hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()).hexdigest()


def _sum(tensor: Tensor) -> str:
    signs = np.packbits(torch.signbit(tensor).numpy())
    return hashlib.sha256(str(tuple(tensor.shape)).encode() + signs.tobytes()).hexdigest()
