"""Loading and saving that refuses what doesn't fit.

transformers loads a checkpoint with holes, logs a table and leaves random weights in them.  A model that mixes
`StrictLoading` in raises `CheckpointError` instead, in one sentence that names the tensors.  (The one module of this
package that knows transformers; it stands here because codecs and models both use it.)
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Self, TypeVar, no_type_check

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tunesmith.errors import CheckpointError, TunesmithError
from tunesmith.nn.files import CONFIG, fault, read_json

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""The models that ship with the package, a folder each."""

Model = TypeVar("Model", bound="StrictLoading")  # not Self, which beartype takes only in classes that it decorates

Name = TypeVar("Name", bound=str | PathLike[str] | None)

NAMED = 3  # tensors named in a message before it says "and N more"


def bundled(name_or_path: Name) -> Name | Path:
    """The folder of a bundled model for its name (`tunesmith/pocket`), any other name or path as it is."""
    owner, _, name = str(name_or_path).partition("/")
    folder = ASSETS / name
    return folder if owner == "tunesmith" and name and (folder / "config.json").is_file() else name_or_path


@no_type_check  # jaxtyping's hook can't take configurations
class BundledConfig(PreTrainedConfig):
    """A `PreTrainedConfig` that knows the names of bundled models."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names each keyword
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """As transformers', but a folder without a config.json, or with a broken one, is told in a sentence."""
        with configured(pretrained_model_name_or_path, kwargs.get("subfolder", "")) as source:
            return super().from_pretrained(source, **kwargs)


@contextmanager
def configured(name: Any, subfolder: str = "") -> Iterator[str | PathLike[str]]:
    """The folder or name of a model whose configuration is about to be read.

    transformers makes a configuration of defaults for a folder without one; here that is a `CheckpointError`.
    """
    source = bundled(name)
    with explained(source, subfolder):
        if str(name).strip() and (folder := Path(source, subfolder)).is_dir():
            read_json(folder / CONFIG)
        yield source


class StrictLoading(PreTrainedModel):
    """A `PreTrainedModel` whose `from_pretrained` raises `CheckpointError` for a checkpoint that doesn't fit."""

    default_dtype: ClassVar[torch.dtype | None] = None  # None: as the checkpoint has it, which is transformers' default

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Model:
        """As transformers', but missing, unexpected and misshapen tensors are errors that name them.

        `ignore_mismatched_sizes=True` gives misshapen tensors fresh weights, as it always did; with
        `output_loading_info=True` the caller wants to judge for themselves and nothing is refused.
        """
        source = bundled(pretrained_model_name_or_path)
        if cls.default_dtype is not None and "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", cls.default_dtype)
        if kwargs.get("output_loading_info"):
            return super().from_pretrained(source, *args, **kwargs)
        reshape = kwargs.pop("ignore_mismatched_sizes", False)
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with _without_loading_report(), explained(pretrained_model_name_or_path, kwargs.get("subfolder", "")):
            loaded: Any = super().from_pretrained(source, *args, **options)
        model: Model = loaded[0]
        info: dict[str, Any] = loaded[1]
        refuse_misfits(
            pretrained_model_name_or_path or "the given state dict",
            missing=info["missing_keys"],
            unexpected=info["unexpected_keys"],
            misshapen=() if reshape else info["mismatched_keys"],
        )
        _release_file(model)
        return model

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers', but always under today's tensor names, whatever names the model was loaded from."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)


def _release_file(model: nn.Module) -> None:
    """Copy what isn't of the model's main precision.

    Where a file is in another precision than the model, that little still lies in the mapped file, and would keep all
    of it in memory.
    """
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point() and not x.is_meta]
    sizes: Counter[torch.dtype] = Counter()
    for x in tensors:
        sizes[x.dtype] += x.nbytes
    main = max(sizes, key=sizes.__getitem__, default=None)
    for x in tensors:
        if x.dtype != main:
            x.data = x.data.clone()


def refuse_misfits(
    source: object,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    misshapen: Iterable[tuple[str, Iterable[int], Iterable[int]]] = (),
) -> None:
    """Raise `CheckpointError` naming the tensors, if there are any.

    misshapen: name, shape in the checkpoint, shape in the model.
    """
    shapes = [f"{name} ({list(found)} instead of {list(wanted)})" for name, found, wanted in misshapen]
    faults = (("lacks", missing), ("has unexpected", unexpected), ("has misshapen", shapes))
    told = [f"{verb} {_enumerate(names)}" for verb, given in faults if (names := sorted(given))]
    if told:
        raise CheckpointError(
            f"The checkpoint {source} doesn't fit its configuration: it {', '.join(told)}. "
            "Check that it is complete and of the right family."
        )


@contextmanager
def readable_errors(source: object) -> Iterator[None]:
    """Turn an unreadable weights file, or one with code in it, into a `CheckpointError`."""
    try:
        yield
    except UnpicklingError as error:
        raise CheckpointError(
            f"The weights of {source} aren't plain tensors; no code in them was run. Get a file of tensors, best as "
            "safetensors."
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {source} can't be read ({error}); the file is probably incomplete, fetch it again."
        ) from error


@contextmanager
def explained(source: object, subfolder: str = "") -> Iterator[None]:
    """Turn whatever a broken or missing model makes transformers and torch raise into one of our errors.

    The folder is looked at after the fact; where nothing is wrong with it, the error is passed on as it is.
    """
    try:
        with readable_errors(source):
            yield
    except TunesmithError:
        raise
    except Exception as error:  # garbage makes readers raise anything
        if (found := fault(source, subfolder)) is None:
            raise
        raise found from error


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Keep transformers from logging a table of the misfits that our error tells in a sentence."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _enumerate(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
