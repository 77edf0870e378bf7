"""A name -> a local folder with a checkpoint: bundled models, folders, Hugging Face hub ids.  What is here comes first.

Nothing here imports torch, so a wrong name or a broken download is told before anything is loaded.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunesmith.errors import CheckpointError, ModelNotFoundError

ASSETS = Path(__file__).parent / "assets"
"""The models that ship with the package, a folder each: `tunesmith/NAME`."""

_SIZES = ("small", "medium", "large")
RELEASED = {name: f"facebook/musicgen-{name}" for name in (*_SIZES, *(f"stereo-{size}" for size in _SIZES))}
RELEASED |= {name: f"openai/{name}" for name in ("jukebox-1b-lyrics", "jukebox-5b-lyrics")}
"""Short names of the released checkpoints that can be played."""

_GUIDED = ("melody", "melody-large", "stereo-melody", "stereo-melody-large", "style")
UNPLAYABLE = {name: f"facebook/musicgen-{name}" for name in _GUIDED}
"""Those that follow a melody or a style; they are found, so that the melody ones can be converted."""

WINDOW_SECONDS = 30.0
"""The most that a model makes in one piece (models/musicgen.py says so too, but imports torch)."""

FILES = ("*.json", "*.safetensors", "*.model")
"""What is downloaded of a hub repository; `*.bin` only where that leaves no weights."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the configuration of a MusicGen says, read without loading it."""

    rate: int
    """Samples per second."""
    channels: int
    """1 is mono, 2 is stereo."""
    hop: int
    """Samples a frame of codes."""
    window_frames: int
    """The most frames that a song can have."""

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Facts":
        """From the contents of a config.json; what is left out there has the classes' defaults."""
        codec, decoder = (config.get(part) or {} for part in ("audio_encoder", "decoder"))
        rate, hop = codec.get("sampling_rate", 24000), math.prod(codec.get("upsampling_ratios", (8, 5, 4, 2)))
        channels = decoder.get("audio_channels", 1)
        delay = decoder.get("num_codebooks", 4) // channels - 1
        positions = decoder.get("max_position_embeddings", 2048)
        return cls(
            rate=rate,
            channels=channels,
            hop=hop,
            window_frames=min(round(WINDOW_SECONDS * rate / hop), positions - delay),
        )

    @property
    def window_seconds(self) -> float:
        """The longest song."""
        return self.window_frames * self.hop / self.rate

    def frames(self, seconds: float | int) -> int:
        """Frames that hold so many seconds.  (The slack is for products that should be whole numbers.)"""
        return math.ceil(round(seconds * self.rate) / self.hop - 1e-9)


def bundled() -> dict[str, Path]:
    """The models that ship with this package."""
    return {f"tunesmith/{path.parent.name}": path.parent for path in sorted(ASSETS.glob("*/config.json"))}


def find(name: str | Path) -> Path:
    """The local folder (or file) of a model; downloads it if it is on the hub and not here yet.

    Raises ModelNotFoundError.
    """
    path, text = _here(name), str(name)
    return _on_the_hub((RELEASED | UNPLAYABLE).get(text, text)) if path is None else path


def check_name(name: str | Path) -> None:
    """Raises ModelNotFoundError or CheckpointError for a name that no model to play has; downloads nothing."""
    path, text = _here(name), str(name)
    if path is None and text in (*UNPLAYABLE, *UNPLAYABLE.values()):
        raise CheckpointError(
            f"{text!r} follows a melody or a style beside the text, which tunesmith can't play yet; "
            f"use one of {', '.join([*bundled(), *RELEASED])}."
        )


def _here(name: str | Path) -> Path | None:
    """What is on this machine by that name; None for what may be on the hub.  Raises ModelNotFoundError for others."""
    text = str(name)
    if text in bundled():
        return bundled()[text]
    if (path := on_disk(name)) is not None:
        return path
    if isinstance(name, Path) or text[:1] in ("/", ".", "~") or text.count("/") > 1:
        raise ModelNotFoundError(f"There is no model folder {text!r}.")
    if f"tunesmith/{text}" in bundled():
        return bundled()[f"tunesmith/{text}"]
    if text not in RELEASED | UNPLAYABLE and (text.count("/") != 1 or text.startswith("tunesmith/")):
        raise ModelNotFoundError(f"There is no model {text!r}{_closest(text)}")
    return None


def local_path(name: str | Path) -> Path:
    """With ~ as the home folder; that of somebody who has none is taken as it is written."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def on_disk(name: str | Path) -> Path | None:
    """The file or folder of that name; None where there is none, or couldn't be any."""
    path = local_path(name)
    try:
        return path if str(name).strip() and path.exists() else None
    except OSError:  # too long for a name, or closed to this user
        return None


def locate(name: str | Path) -> Path:
    """As `find`, in our layout: audiocraft's exports are converted into the user's cache the first time.

    Raises also what `tunesmith.convert` raises.
    """
    path = find(name)
    if not (path.suffix == ".bin" if path.is_file() else any(path.glob("*state_dict.bin")) and not weight_files(path)):
        return path
    from tunesmith.convert.checkpoints import converted_folder

    return converted_folder(path, resolve=find)


def family_of(name: str | Path, *, fetch: bool = False) -> str | None:
    """What a model is ("musicgen", "jukebox", ...) by its name; None where that isn't known.

    fetch: download a model that only the hub knows, to see.
    """
    path = bundled().get(str(name)) or on_disk(name)
    released = RELEASED | UNPLAYABLE
    if path is None and (str(name) in released or str(name) in released.values()):
        return "jukebox" if "jukebox" in str(name) else "musicgen"
    if fetch and path is None and str(name).count("/") == 1:
        try:
            path = find(name)
        except ModelNotFoundError:
            return None  # which is told when the model is loaded
    if path is None or not (path / "config.json").is_file():
        return None
    found = _json(path / "config.json").get("model_type")
    return None if found is None else str(found)


def check(folder: Path) -> Facts:
    """The facts of a MusicGen folder whose files are whole.  Raises CheckpointError."""
    config = _config(folder)
    if (found := config.get("model_type")) == "musicgen_melody":
        raise CheckpointError(f"{str(folder)!r} is a MusicGen that follows a melody, which tunesmith can't play yet.")
    if found != "musicgen":
        raise CheckpointError(f"{str(folder)!r} is a model of the family {found!r}; only MusicGen can be loaded here.")
    check_files(folder)
    try:
        return Facts.of(config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise CheckpointError(f"The config.json in {str(folder)!r} holds values that make no sense.") from None


def check_files(folder: Path) -> None:
    """Raises CheckpointError unless all weights are there, as long as they say."""
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{str(folder)!r} has no weights (model.safetensors); fetch it again.")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{str(folder)!r} is incomplete: {file.name} is missing; fetch it again.")
        if file.suffix == ".safetensors":
            _check_safetensors(file)


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights, of the safest kind there is; named by the index where there is one."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / file for file in sorted(set(_json(index).get("weight_map", {}).values()))]
        if (folder / name).is_file():
            return [folder / name]
    return []


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights: of the file if it is one, else of the list that `sha256sum` would print.  Hexadecimal."""
    sums = [(_sha256(file), file.name) for file in weight_files(folder)]
    if len(sums) == 1:
        return sums[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()


def _closest(name: str) -> str:
    """The end of a sentence: what was meant, perhaps."""
    known = [*bundled(), *RELEASED, *RELEASED.values()]
    shortened = {_short(entry): entry for entry in reversed(known)}
    close = [shortened[match] for match in get_close_matches(_short(name), list(shortened), n=2)]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; give a folder, a Hugging Face id (owner/name), or one of {', '.join([*bundled(), *RELEASED])}."


def _short(name: str) -> str:
    return name.rpartition("/")[2].removeprefix("musicgen-")


def _on_the_hub(repository: str) -> Path:
    """The snapshot in the cache if it is there, or downloaded now."""
    from huggingface_hub import errors, snapshot_download

    network_errors = (OSError, errors.HTTPError)  # type: ignore[attr-defined]  # of whichever HTTP library it uses
    for local, patterns in ((True, FILES), (False, FILES), (False, (*FILES, "*.bin"))):
        try:
            folder = Path(snapshot_download(repository, local_files_only=local, allow_patterns=list(patterns)))
        except (errors.HFValidationError, errors.RepositoryNotFoundError):
            raise ModelNotFoundError(f"The hub has no model {repository!r}{_closest(repository)}") from None
        except network_errors:  # or not in the cache
            continue
        if weight_files(folder) or any(folder.glob("*state_dict.bin")):
            return folder
    raise ModelNotFoundError(
        f"{repository!r} is not on this machine, or only half, and the Hugging Face hub can't be reached; "
        "connect and try again, or give a folder."
    )


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is a file; give the folder of the model.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{str(folder)!r} has no config.json, so it is not a model folder.")
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{str(path)!r} is damaged: it is not JSON; fetch it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is damaged: it is not a JSON object; fetch it again.")
    return content


def _check_safetensors(path: Path) -> None:
    """The file says in its header how long it is: 8 bytes with the header's length, the header, the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(header_size) if 0 < header_size <= size - 8 else b""
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        whole = 8 + header_size + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{str(path)!r} is damaged or only half downloaded: it has no whole safetensors header; fetch it again."
        ) from None
    if size != whole:
        raise CheckpointError(f"{str(path)!r} is incomplete: {size} of {whole} bytes; fetch it again.")


def _sha256(path: Path) -> str:
    """The hub's cache names large files by their sum; of other large files the sum is remembered."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    state = real.stat()
    key = hashlib.sha256(f"{real} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    memo = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith" / "sha256" / key
    large = state.st_size > 2**27
    if large and memo.is_file():
        return memo.read_text()
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if large:
        _remember(memo, digest)
    return digest


def _remember(memo: Path, digest: str) -> None:
    """A cache that can't be written is no reason to fail."""
    part = memo.with_suffix(f".{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(digest)
        part.replace(memo)
    except OSError:
        return
