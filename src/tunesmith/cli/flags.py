"""Records -> one flat dataclass of flags, and back.  Help is each field's docstring, so nothing is said twice."""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from tunesmith.errors import RequestError

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a field looks on the command line."""

    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    """Of a tuple: give the flag again for each value."""
    listed: type | None = None
    """Of a tuple: its values, of this type, have commas between them."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded, whichever it is."""

    adapter: Path | None = None
    """Folder of what `tunesmith finetune` learnt on this model."""

    device: str | None = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    dtype: str | None = None
    """float32, float16 or bfloat16 for what chooses the codes; by default float32."""

    quantize: str | None = None
    """int8, int4 (smaller, changes the music a little more) or none (exact); by default int8 on a CPU, unless a dtype
    is given."""


LOADING = {
    "adapter": Look(metavar="FOLDER"),
    "device": Look(metavar="NAME"),
    "dtype": Look(metavar="NAME"),
    "quantize": Look(metavar="NAME"),
}


def described(record: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        entry.target.id: " ".join(text.value.value.split())
        for entry, text in pairwise(tree.body)
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def flat(name: str, records: tuple[type, ...], looks: Mapping[str, Look]) -> Any:
    """A dataclass with the fields of all records; fields that are records themselves are left out."""
    specifications = []
    for record in records:
        docs = described(record)
        for f in fields(record):
            if not is_dataclass(f.type):
                kind = _flag(f.type, docs[f.name], looks.get(f.name, Look()))
                default = field(default=f.default, default_factory=f.default_factory)
                specifications.append((f.name, kind, default))
    return make_dataclass(name, specifications, frozen=True, kw_only=True)


def pick(flags: Any, record: type[R], **others: Any) -> R:
    """The record that these flags describe."""
    values = {f.name: getattr(flags, f.name) for f in fields(record) if hasattr(flags, f.name)}  # type: ignore[arg-type]  # a dataclass
    return record(**values | others)


def spread(record: Any) -> dict[str, Any]:
    """The values of a record and of the records in it, by flag."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    inner = [name for name, value in values.items() if is_dataclass(value)]
    for name in inner:
        values |= spread(values.pop(name))
    return values


def refuse_given(flags: Any, names: Sequence[str], what: str) -> None:
    """Raise RequestError for flags that would be ignored: these names go with something else."""
    for f in fields(flags):
        if f.name in names and getattr(flags, f.name) != f.default:
            raise RequestError(f"--{f.name.replace('_', '-')} goes with {what}; leave it out.")


def comma_list(kind: type, metavar: str) -> Any:
    """How a tuple is written: its values with commas between them."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: tuple(kind(word.strip()) for word in given[0].split(",") if word.strip()),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _flag(kind: Any, doc: str, look: Look) -> Any:
    positional: Any = tyro.conf.Positional
    repeated: Any = tyro.conf.UseAppendAction
    if look.listed is not None:
        kind = Annotated[kind, comma_list(look.listed, look.metavar or "A,B,...")]
    flag: Any = Annotated[kind, tyro.conf.arg(help=doc, metavar=look.metavar)]
    flag = positional[flag] if look.positional else flag
    return repeated[flag] if look.repeated else flag
