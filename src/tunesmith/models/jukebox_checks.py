"""What a prior can be given: each check raises RequestError, a sentence that says what it was and what is allowed."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tunesmith.errors import RequestError
from tunesmith.generation.seeds import plain
from tunesmith.models.jukebox_config import JukeboxPriorConfig
from tunesmith.nn.ranges import COUNT, SHARE, WEIGHT, Range


def checked_codes(config: JukeboxPriorConfig, codes: Any, shortest: int = 1) -> Int[Tensor, "B S"]:
    """Codes of a window or of its beginning, as int64."""
    codes = whole_numbers("codes", codes)
    if codes.dim() != 2 or not shortest <= codes.shape[1] <= config.n_ctx:
        raise RequestError(
            f"codes is {list(codes.shape)}; it must be [batch, steps] with {shortest} to {config.n_ctx} steps."
        )
    return _codes("codes", codes, config.music_vocab_size)


def checked_upper_codes(config: JukeboxPriorConfig, codes: Any, batch: int) -> Int[Tensor, "B R"]:
    """Codes of the level above for a whole window, as int64."""
    wanted = config.n_ctx // config.upper_ratio
    if codes is None:
        raise RequestError(
            f"This prior is an upsampler: it needs upper_codes, [{batch}, {wanted}] codes of the level above."
        )
    codes = whole_numbers("upper_codes", codes)
    if tuple(codes.shape) != (batch, wanted):
        raise RequestError(
            f"upper_codes is {list(codes.shape)}; a window of this prior needs [{batch}, {wanted}] codes of the level "
            "above."
        )
    return _codes("upper_codes", codes, config.music_vocab_size)


def checked_labels(config: JukeboxPriorConfig, labels: Any, batch: int) -> Int[Tensor, "B A"]:
    """Labels of a window as int64; zeros where nothing reads them."""
    if labels is None:
        if config.metadata_conditioning or config.nb_relevant_lyric_tokens:
            raise RequestError(f"This prior needs labels: int64 [{batch}, {config.label_width}].")
        return torch.zeros(batch, config.label_width, dtype=torch.long)
    labels = whole_numbers("labels", labels)
    check_labels(config, labels, batch)
    return labels


def whole_numbers(name: str, given: Any) -> Int[Tensor, "..."]:
    """A tensor of any whole numbers as int64."""
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(given, Tensor) or given.dtype not in kinds:
        found = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise RequestError(f"{name} has type {found}; it must be a tensor of whole numbers, best torch.int64.")
    return given.long()


def _codes(name: str, codes: Tensor, vocabulary: int) -> Tensor:
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= vocabulary):
        raise RequestError(
            f"{name} holds values from {int(codes.min())} to {int(codes.max())}; codes of this model lie between 0 and "
            f"{vocabulary - 1}."
        )
    return codes


def check_layer(config: JukeboxPriorConfig, layer: int) -> None:
    """Raise RequestError for a layer whose output the prior can't give; 0 is the input."""
    if layer not in range(config.num_layers + 1):
        raise RequestError(f"layer is {layer!r}; this prior has layers 0 (the input) to {config.num_layers}.")


def check_labels(config: JukeboxPriorConfig, labels: Tensor, batch: int) -> None:
    """Raise RequestError for labels that the embeddings have no room for."""
    genres, artists = config.metadata_dims
    if labels.dtype != torch.long or tuple(labels.shape) != (batch, config.label_width):
        raise RequestError(
            f"labels is {labels.dtype} {list(labels.shape)}; this prior needs torch.int64 "
            f"[{batch}, {config.label_width}]: 4 numbers, {config.max_nb_genres} genres, "
            f"{config.nb_relevant_lyric_tokens} lyric tokens."
        )
    rows = labels.cpu()
    if config.nb_relevant_lyric_tokens:
        _check_range("lyric tokens", rows[:, 4 + config.max_nb_genres :], 0, config.lyric_vocab_size - 1)
    if config.metadata_conditioning:
        _check_range("artists", rows[:, 3], 0, artists - 1)
        _check_range("genres", rows[:, 4 : 4 + config.max_nb_genres], -1, genres - 1)
        if not config.level:
            _check_timing(config, rows)


def _check_timing(config: JukeboxPriorConfig, rows: Tensor) -> None:
    """In samples; the ends of ranges are excluded."""
    # Products such as 0.07 · 100 miss their integer by a hair.
    shortest, longest = (math.ceil(x * config.sampling_rate - 1e-6) for x in (config.min_duration, config.max_duration))
    _check_range("total lengths", rows[:, 0], shortest, longest - 1)
    _check_range("window lengths", rows[:, 2], 0, longest)
    if bool(((rows[:, 1] < 0) | (rows[:, 1] >= rows[:, 0])).any()):
        raise RequestError(
            f"labels have offsets {rows[:, 1].tolist()} for total lengths {rows[:, 0].tolist()} (in samples); an "
            "offset must be at least 0 and below its total length."
        )


def _check_range(what: str, values: Tensor, low: int, high: int) -> None:
    if values.numel() and not (low <= int(values.min()) and int(values.max()) <= high):
        raise RequestError(
            f"labels have {what} from {int(values.min())} to {int(values.max())}; this model's lie between {low} and "
            f"{high}."
        )


def check_sampling(
    samples: Any, steps: Any, window: int, temperature: Any, top_k: Any, top_p: Any, chunk_size: Any
) -> None:
    """Raise RequestError for settings of a window that can't be; window: its codes at most."""
    fitting = Range(low=1, high=window, whole=True)
    checks = (
        ("n_samples", samples, COUNT, "a whole number from 1 on"),
        (
            "sample_tokens",
            steps,
            fitting,
            f"from 1 to {window}, the window of this prior",
        ),
        ("temperature", temperature, WEIGHT, "0 (the likeliest code) or above"),
        ("top_k", top_k, Range(low=0, whole=True), "0 (off) or a whole number above"),
        ("top_p", top_p, SHARE, "between 0 (off) and 1"),
        ("chunk_size", chunk_size, Range(low=1, whole=True, optional=True), "a whole number from 1 on"),
    )
    for name, value, allowed, sentence in checks:
        if not allowed.allows(plain(value)):
            raise RequestError(f"{name} is {value!r}, but it must be {sentence}.")
