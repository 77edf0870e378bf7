"""Converting whole checkpoints to folders in our layout (which is Hugging Face's) and back: audiocraft's exports of
MusicGen and EnCodec, OpenAI's files of Jukebox.

What a source is, its content says.  Parts that it doesn't hold are found by name with a resolver, which the layer above
passes in: audiocraft's text encoder always (unless we exported it, which puts one beside), its codec sometimes.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tunesmith.conditioning.tables import read_id_files, write_tables
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert import audiocraft, jukebox
from tunesmith.convert.folders import (
    CONFIG,
    SHARD,
    Converted,
    TextEncoder,
    copy_tokenizer,
    is_model_folder,
    new_folder,
    read_folder,
    read_json,
    read_text_encoder,
    refuse_destination,
    shard_bytes,
    write_folder,
    write_json,
    write_tensors,
)
from tunesmith.errors import CheckpointError, IncompatiblePartsError, ModelNotFoundError, RequestError

Resolve = Callable[[str], Path]
"""From the name of a model to its local folder; raises `ModelNotFoundError`."""

LAYOUTS = ("huggingface", "audiocraft", "openai")
TEXT_ENCODER = "text_encoder"  # folder that our exports have beside audiocraft's two files


def no_names(name: str) -> Path:
    """The resolver that knows no names, for callers that have only paths."""
    raise ModelNotFoundError(f"There is no file or folder {name}.")


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    text_encoder: str | Path | None = None,
    preset: str | None = None,
    ids: str | Path | None = None,
    to: str | None = None,
    max_shard_size: int | str | None = None,
    resolve: Resolve = no_names,
) -> Path:
    """Write source in the other layout to destination, a new or empty folder that appears whole or not at all.

    source: a folder, a file or a name.  to: the layout that is expected, "huggingface", "audiocraft" or "openai".
    text_encoder: a T5 folder, or a composite model's, for audiocraft's language models, which come without; otherwise
    the one that they name is looked up.  preset: the name of a Jukebox of OpenAI's whose files don't have its settings.
    ids: a folder with OpenAI's four tables of artists and genres (text files), which a Jukebox in our layout then has
    too.  max_shard_size: the most that a file of safetensors holds, in bytes or text like "2GB"; by default 5 GB (files
    of OpenAI's hold a part of the model each, whatever this says).  resolve: finds names.  Written weights are float32,
    but for OpenAI's projections where float16 loses nothing.
    Raises `RequestError`, `ModelNotFoundError`, `CheckpointError` or `IncompatiblePartsError`.
    """
    destination = Path(destination)
    if to not in (None, *LAYOUTS):
        raise RequestError(f"There is no layout {to!r}; convert to {' or '.join(map(repr, LAYOUTS))}.")
    refuse_destination(destination)
    shard = shard_bytes(SHARD if max_shard_size is None else max_shard_size)
    path = _locate(source, resolve)
    if preset is not None:
        jukebox.check_preset(preset)
    layout, other = _layouts(path, preset)
    again = _is_jukebox(path) and to == layout
    if to not in (None, other) and not again:
        raise RequestError(f"{source} is already in the layout {layout!r}; it can only become {other!r}.")
    if max_shard_size is not None and other == "audiocraft":
        raise RequestError("Files in the layout 'audiocraft' come in one piece; leave the size of shards out.")
    jukeboxes = "openai" in (layout, other)
    if ids is not None and not (jukeboxes and (again or other == "huggingface")):
        raise RequestError("Tables of ids belong to a Jukebox in Hugging Face's layout; leave them out here.")
    if preset is not None and layout != "openai":
        raise RequestError(f"A preset says what files of OpenAI's Jukebox are; {source} has none: leave it out.")
    if text_encoder is not None and layout != "audiocraft":
        raise RequestError(
            f"A text encoder goes with a language model of audiocraft's; {source} is none: leave it out."
        )
    tables = None if ids is None else read_id_files(ids)
    write: Callable[[Path], None]
    if again:
        write = partial(jukebox.rewrite, path, shard=shard)
    elif jukeboxes:
        write = _jukebox_writer(path, preset, shard)
    else:
        write = _musicgen_writer(path, text_encoder, resolve, shard)
    with new_folder(destination) as draft:
        write(draft)
        if tables is not None:
            write_tables(tables, draft)
            _write_tokenizer(draft)
    return destination


def _write_tokenizer(folder: Path) -> None:
    """The settings beside a model's tables, which transformers' tokenizer needs, unless they came along."""
    if not (folder / "tokenizer_config.json").is_file() and read_json(folder / CONFIG)["model_type"] != "jukebox_vqvae":
        JukeboxTokenizer.from_pretrained(folder).save_pretrained(folder)


def _layouts(path: Path, preset: str | None) -> tuple[str, str]:
    """What a source is in, and what it can become."""
    if is_model_folder(path):
        return "huggingface", "openai" if _is_jukebox(path) else "audiocraft"
    if not is_audiocraft(path) and jukebox.is_openai(path, preset):
        return "openai", "huggingface"
    return "audiocraft", "huggingface"


def _is_jukebox(path: Path) -> bool:
    """Whether a folder in our layout holds a Jukebox or a part of one."""
    return is_model_folder(path) and read_json(path / CONFIG).get("model_type") in jukebox.FAMILIES


def _jukebox_writer(path: Path, preset: str | None, shard: int) -> Callable[[Path], None]:
    """What writes a Jukebox in the other layout, after everything but the values of its tensors was checked."""
    if is_model_folder(path):
        return partial(jukebox.write_openai, jukebox.read_model(path))
    return partial(jukebox.write_folder, jukebox.read_parts(path, preset), shard=shard)


def _musicgen_writer(
    path: Path, text_encoder: str | Path | None, resolve: Resolve, shard: int
) -> Callable[[Path], None]:
    ours = is_model_folder(path)
    model = read_folder(path) if ours else load_audiocraft(path, text_encoder=text_encoder, resolve=resolve)
    if model.kind == "encodec" and text_encoder is not None:
        raise RequestError(f"A text encoder goes with a language model, and {path} is a codec alone: leave it out.")
    if not ours and model.kind == "musicgen" and model.tokenizer is None:
        raise CheckpointError(
            "The text encoder's folder has no tokenizer (tokenizer.json or spiece.model); add it there."
        )
    return partial(_write_audiocraft, model) if ours else partial(write_folder, model, shard=shard)


def converted_folder(source: str | Path, *, resolve: Resolve = no_names, cache: Path | None = None) -> Path:
    """The folder in our layout of an audiocraft export (folder or file), converted the first time it is asked for.

    cache: where such folders are kept; by default tunesmith/converted in the user's cache.
    Raises as `convert_checkpoint`.
    """
    path = Path(source).resolve()
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
    state = [str(path), *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (cache or home / "tunesmith" / "converted") / hashlib.sha256("\n".join(state).encode()).hexdigest()[:32]
    if not is_model_folder(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert_checkpoint(path, folder, resolve=resolve)
        except RequestError:
            if not is_model_folder(folder):  # another process was faster
                raise
    return folder


def is_audiocraft(path: Path) -> bool:
    """Whether a folder holds an audiocraft export, and not (also) a model in our layout."""
    exported = (path / audiocraft.LANGUAGE_MODEL).is_file() or (path / audiocraft.CODEC).is_file()
    return exported and not is_model_folder(path)


def load_audiocraft(
    source: str | Path, *, text_encoder: str | Path | None = None, resolve: Resolve = no_names
) -> Converted:
    """An audiocraft export (folder or file) in our layout, with codec and text encoder; a lone codec stays alone.

    Tensors keep the type in which they are stored and stay mapped to the file where they can.
    Raises `CheckpointError`, `ModelNotFoundError` or `IncompatiblePartsError`.
    """
    path = Path(source)
    language_model, codec_file = _find_files(path)
    if language_model is None:
        return _load_codec(codec_file, None, resolve)
    package = audiocraft.read_package(language_model)
    codec = _load_codec(codec_file, package, resolve)
    model = audiocraft.read_language_model(package, codec, language_model)
    beside = language_model.parent / TEXT_ENCODER
    given = text_encoder or (beside if beside.is_dir() else None)
    name = model.config["text_encoder"]["_name_or_path"]
    folder = _find_text_encoder(name, resolve) if given is None else _locate(given, resolve)
    return _with_text_encoder(model, read_text_encoder(folder), folder)


def _locate(source: str | Path, resolve: Resolve) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        path = resolve(str(source))
    return path.parent if path.suffix == ".safetensors" else path


def _find_files(path: Path) -> tuple[Path | None, Path | None]:
    """The files of language model and codec, of which at least one is there."""
    if path.is_file():
        beside = path.with_name(audiocraft.CODEC)
        language = audiocraft.is_language_model(audiocraft.read_package(path))
        return (path, beside if beside.is_file() else None) if language else (None, path)
    names = (audiocraft.LANGUAGE_MODEL, audiocraft.CODEC)
    files = [path / name if (path / name).is_file() else None for name in names]
    if files == [None, None]:
        raise CheckpointError(
            f"{path} holds no checkpoint: neither config.json with weights nor {', '.join(names)} or *.pth.tar. "
            "Training checkpoints of audiocraft are exported first: audiocraft.utils.export."
        )
    return files[0], files[1]


def _load_codec(file: Path | None, language_model: audiocraft.Package | None, resolve: Resolve) -> Converted:
    """The codec in a file, else the one that the file, or the language model's settings, name."""
    package = language_model if file is None else audiocraft.read_package(file)
    assert package is not None, "one of the two was found"
    if file is not None and "best_state" in package:
        return audiocraft.read_codec(package, file)
    name = audiocraft.codec_name(package, file or audiocraft.LANGUAGE_MODEL)
    try:
        folder = _locate(name, resolve)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"This checkpoint comes without its codec and names {name!r}, which isn't at hand; download that, or put "
            f"a {audiocraft.CODEC} with weights beside the checkpoint."
        ) from error
    codec = read_folder(folder) if is_model_folder(folder) else load_audiocraft(folder, resolve=resolve)
    if codec.kind != "encodec":
        raise CheckpointError(f"{name!r}, which this checkpoint names as its codec, isn't an EnCodec.")
    return codec


def _find_text_encoder(name: str, resolve: Resolve) -> Path:
    """The folder of the text encoder that a checkpoint names; the hub has the original T5 under an owner's name too."""
    for candidate in (name, f"google-t5/{name}"):
        try:
            return resolve(candidate)
        except ModelNotFoundError:
            continue
    raise ModelNotFoundError(
        f"audiocraft's checkpoints come without text encoder, and {name!r} isn't at hand. Give its folder (weights "
        "and tokenizer; that of a converted MusicGen will do): tunesmith convert SRC DST --text-encoder FOLDER."
    )


def _with_text_encoder(model: Converted, text: TextEncoder, source: Path) -> Converted:
    wanted, given = model.config["text_encoder"]["d_model"], text.config.get("d_model", 512)
    if given != wanted:
        raise IncompatiblePartsError(
            f"The text encoder in {source} has states of width {given}, but the language model needs {wanted}: "
            f"it needs {model.config['text_encoder']['_name_or_path']!r} or another encoder of that width."
        )
    config = {key: value for key, value in text.config.items() if key not in ("architectures", "transformers_version")}
    config["_name_or_path"] = model.config["text_encoder"]["_name_or_path"]
    return replace(
        model,
        config={**model.config, "text_encoder": config},
        tensors=model.tensors | {f"text_encoder.{name}": tensor for name, tensor in text.tensors.items()},
        tokenizer=text.tokenizer,
    )


def _write_audiocraft(model: Converted, folder: Path) -> None:
    """The two files, and beside them a folder with the text encoder, of which they hold nothing."""
    if model.kind == "encodec":
        audiocraft.write_codec(model, folder / audiocraft.CODEC)
        return
    audiocraft.write_language_model(model, folder / audiocraft.LANGUAGE_MODEL)
    codec = Converted(*audiocraft.part(model, "audio_encoder"), None, "encodec")
    audiocraft.write_codec(codec, folder / audiocraft.CODEC)
    (config, tensors), beside = audiocraft.part(model, "text_encoder"), folder / TEXT_ENCODER
    beside.mkdir()
    write_json({**config, "architectures": ["T5EncoderModel"]}, beside / "config.json")
    copy_tokenizer(model.tokenizer, beside)
    write_tensors(tensors, beside)
