"""Adapters: what fine-tuning learnt, apart from the model that it was learnt on.

An adapter's folder has peft's two files, `tunesmith.json` (which model, which level, what grew) and, for a Jukebox, the
tables and the alphabet, and `rows.safetensors`: new rows of its embeddings.  Loading merges it into the weights, so
sampling costs what it did.
"""

import copy
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from tunesmith import hub
from tunesmith.conditioning.tables import UNKNOWN
from tunesmith.errors import CheckpointError, IncompatiblePartsError, MissingDependencyError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.models.jukebox_rows import Place, grow
from tunesmith.nn.pretrained import readable_errors

FACTS, ROWS, WEIGHTS = "tunesmith.json", "rows.safetensors", "adapter_model.safetensors"

TARGETS = {
    "musicgen": r"decoder\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    "jukebox": r"(prior|encoder)\.transformer\..*\.(c_attn|c_enc_kv|c_proj|c_fc)",
}
"""The matrices that adapters change, as a pattern of their names."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `tunesmith.json` says."""

    family: str
    """"musicgen" or "jukebox"."""
    model: str
    """As the user named it."""
    model_hash: str
    """SHA-256 of its weights."""
    method: str = "lora"
    level: int = 0
    """Of a Jukebox: whose prior was trained, 0 is the top."""
    artists: tuple[int, ...] = ()
    """For each new row of its artists' embedding, which old row it began as."""
    genres: tuple[int, ...] = ()
    sizes: tuple[int, int] = (0, 0)
    """Rows of genres and artists before the first new name; a prior with fewer has unknown ones up to there."""
    characters: int = 0
    """How many the lyric alphabet has more."""
    alignment: tuple[int, int] | None = None
    """Layer and head that follow the words."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk."""

    folder: Path
    facts: Facts

    @classmethod
    def open(cls, folder: str | Path) -> "Adapter":
        """Raises CheckpointError where there is none."""
        path = Path(folder).expanduser()
        try:
            values = json.loads((path / FACTS).read_text(encoding="utf-8"))
            lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            known = {f.name for f in fields(Facts)}
            return cls(path, Facts(**{name: value for name, value in {**values, **lists}.items() if name in known}))
        except FileNotFoundError:
            raise CheckpointError(
                f"{str(folder)!r} is no adapter: it has no {FACTS}. Give the folder `adapter` of a run of "
                "`tunesmith finetune`."
            ) from None
        except (OSError, ValueError, TypeError, AttributeError):
            raise CheckpointError(f"{str(path / FACTS)!r} is damaged; fetch the adapter again.") from None

    def check(self, name: str, model: Path, family: str) -> None:
        """Raise IncompatiblePartsError unless it was trained on this very model."""
        if self.facts.family != family:
            raise IncompatiblePartsError(
                f"The adapter {str(self.folder)!r} is for a {self.facts.family}, and {name!r} is a {family}."
            )
        if self.facts.model_hash != hub.weights_hash(model):
            raise IncompatiblePartsError(
                f"The adapter {str(self.folder)!r} was trained on {self.facts.model!r}, and the weights of {name!r} "
                "are others; load it with the model that it was trained on."
            )

    @property
    def hash(self) -> str:
        """SHA-256 of all that it changes."""
        files = [self.folder / file for file in (WEIGHTS, ROWS, FACTS)]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()

    @property
    def recipe(self) -> dict[str, str]:
        """What an audio file says of it."""
        return {"adapter": str(self.folder), "adapter_hash": self.hash}

    def apply(self, model: nn.Module) -> None:
        """Merge it into a MusicGen, in place."""
        merge(model, self.folder)

    def adapt(self, prior: JukeboxPrior, level: int, *, same_names: bool) -> JukeboxPrior:
        """A prior of a Jukebox, in place: the one that was trained becomes what it became; another that reads the same
        tables (`same_names`) gets rows for the new names, copies of those that they began as.
        """
        own = level == self.facts.level
        prior.config = copy.deepcopy(prior.config)
        if own or same_names:
            places = widen(prior, self.facts, characters=own)
        if own:
            merge(prior, self.folder)
            self._fill(prior, places)
        return prior

    def config(self, config: Any, level: int, *, same_names: bool) -> Any:
        """The configuration that `adapt` leaves."""
        own, grown = level == self.facts.level, copy.deepcopy(config)
        if (own or same_names) and config.metadata_conditioning:
            grown.metadata_dims = [
                (max(size, base) + len(new)) if new else size
                for size, base, new in zip(
                    config.metadata_dims, self.facts.sizes, (self.facts.genres, self.facts.artists), strict=True
                )
            ]
        if own:
            grown.lyric_vocab_size += self.facts.characters
            if self.facts.alignment is not None:
                grown.alignment_layer, grown.alignment_head = self.facts.alignment
        return grown

    @torch.no_grad()
    def _fill(self, prior: JukeboxPrior, places: Sequence[Place]) -> None:
        if self.facts.alignment is not None:
            prior.config.alignment_layer, prior.config.alignment_head = self.facts.alignment
        if not places:
            return
        with readable_errors(self.folder / ROWS):
            rows = load_file(self.folder / ROWS)
        own = dict(prior.named_parameters())
        for place in places:
            own[place.name][place.start : place.stop] = rows[place.name].to(own[place.name])


def widen(prior: JukeboxPrior, facts: Facts, *, characters: bool) -> list[Place]:
    """Make room in a prior for an adapter's names and characters."""
    genres, artists = (
        [UNKNOWN] * max(base - size, 0) + list(new) if new else []
        for size, base, new in zip(prior.config.metadata_dims, facts.sizes, (facts.genres, facts.artists), strict=True)
    )
    return grow(prior, artists=artists, genres=genres, characters=facts.characters if characters else 0)


def merge(model: nn.Module, folder: Path) -> None:
    """Add an adapter's matrices to the weights that they belong to.  Raises CheckpointError."""
    peft = import_peft()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    with readable_errors(folder / WEIGHTS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft remarks on configurations that it doesn't know
        try:
            peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise CheckpointError(f"The adapter {str(folder)!r} doesn't fit the model: {str(error)[:200]}") from error
    for p in frozen:
        p.requires_grad_(False)


def import_peft() -> Any:
    """Raises MissingDependencyError."""
    try:
        import peft
    except ImportError:
        raise MissingDependencyError("Adapters need the package peft: pip install 'tunesmith[train]'.") from None
    return peft
