"""`tunesmith data`: look at a folder of songs before training, and encode it once for language models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from tunesmith.cli.flags import pick
from tunesmith.errors import RequestError

if TYPE_CHECKING:
    from tunesmith.training.check import Report
    from tunesmith.training.encode import Encoded

SHOWN = 10
"""Labels and names that a line of the report shows at most."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Check a folder of songs before training, or encode it: data check, data encode.

    tunesmith data check my-songs

    tunesmith data encode my-songs --codec tunesmith/pocket --out codes

    tunesmith data check --help and tunesmith data encode --help say more.
    """

    action: tyro.conf.Positional[Literal["check", "encode"]]
    """What to do."""

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Any:
        """The action's own flags, once it is named."""
        return {"check": Check, "encode": Encode}.get(arguments[0] if arguments else "", cls)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Find what training would suffer from: broken, silent, clipped, duplicate and too short files.

    tunesmith data check my-songs

    It also counts hours, rates and labels. Every file is decoded once; what was found is remembered until it changes.
    """

    prog: ClassVar[str] = "tunesmith data check"

    action: tyro.conf.Positional[Literal["check"]]
    """What to do."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder with songs, or a manifest of audiocraft (.jsonl, .jsonl.gz)."""

    min_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 6.0
    """Shorter files are too short; give the length of the crops that you will train on."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many files to listen to at once; by default one a processor."""

    json: bool = False
    """As JSON, for programs."""

    def run(self) -> None:
        """Print to stdout."""
        from tunesmith.cli.progress import show
        from tunesmith.training.check import check_folder

        _at_least_one("--workers", self.workers)
        report = show(check_folder(self.folder, shortest=self.min_seconds, workers=self.workers))
        if self.json:
            print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        else:
            _print_report(report)


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Store the codes of a folder of songs, so that language models train without the codec.

    tunesmith data encode my-songs --codec tunesmith/pocket --text tunesmith/pocket --out codes

    The same command goes on where it stopped, and adds new songs. Machines share the work with --part 1/4, 2/4, ...
    """

    prog: ClassVar[str] = "tunesmith data encode"

    action: tyro.conf.Positional[Literal["encode"]]
    """What to do."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder with songs, or a manifest of audiocraft (.jsonl, .jsonl.gz)."""

    codec: Annotated[str, tyro.conf.arg(metavar="NAME", aliases=["--model"])]
    """An EnCodec, a VQ-VAE, or a MusicGen or Jukebox, whose codec is taken: a folder, a bundled model or a hub id."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to make, or to go on with."""

    text: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Also store what this MusicGen (or T5) makes of each song's description, so that it isn't needed either."""

    stereo: bool = False
    """By a mono EnCodec: both sides, each by itself, as stereo models of MusicGen need it; a model says so itself."""

    pad_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0
    """Follow shorter songs by silence up to this length."""

    test_share: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    """Part of the songs that is marked as held out."""

    shard_songs: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Songs in a file; a run that is stopped loses one file's work at most."""

    part: Annotated[str, tyro.conf.arg(metavar="I/N")] = "1/1"
    """Do the I-th of N parts of the work; other processes or machines that see the same folders do the others."""

    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes on this machine."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    def run(self) -> None:
        """Print what was made to stdout."""
        from tunesmith import hub
        from tunesmith.cli.generate import quiet
        from tunesmith.cli.progress import show
        from tunesmith.pipelines.song import check_device
        from tunesmith.training.folders import open_songs

        check_device(self.device)
        songs = open_songs(self.folder, test_share=self.test_share)
        for name in filter(None, (self.codec, self.text)):
            hub.find(name)
        quiet()
        from tunesmith.training.encode import Job, encode_songs

        job = pick(self, Job, songs=songs, part=_part(self.part), device=_device(self.device))
        _print_encoded(show(encode_songs(job)), self.out, songs.left_out)


def _part(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal()):
        raise RequestError(f"--part is {text!r}; write it as 2/4: the second of four parts.")
    return int(i), int(n)


def _device(name: str | None) -> str:
    import torch

    found = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if found.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"--device is {found!r}, but this machine has no CUDA device; leave it out, or use cpu.")
    return found


def _at_least_one(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise RequestError(f"{flag} is {value}; it can be 1 or more.")


# What is printed ------------------------------------------------------------------------------------------------------


def _print_report(report: "Report") -> None:
    shortest, median, longest = report.seconds
    rows = {
        "songs": f"{report.songs} of {report.files} files, {report.hours:.2f} h",
        "seconds": f"{shortest:.4g} to {longest:.4g}, half of them below {median:.4g}",
        "split": f"{report.train} to train on, {report.test} held out",
        "rates": _counts(report.rates),
        "channels": _counts(report.channels),
        "formats": _counts(report.formats),
        "artists": _counts(report.artists),
        "genres": _counts(report.genres),
        "described": str(report.described),
        "lyrics": f"{report.lyrics}, {report.timed_lyrics} of them timed",
    }
    for name, value in rows.items():
        print(f"{name:10}{value or '-'}")
    for kind in sorted({problem.kind for problem in report.problems}):
        found = [problem for problem in report.problems if problem.kind == kind]
        print(f"\n{kind}: {len(found)}")
        for problem in found:
            print(f"  {problem.name}: {problem.detail}")
    _print_names("rows without files", report.rows_without_files)
    _print_names("files without rows", report.files_without_rows)
    _print_names("fields that mean nothing here (misspelt?)", report.unknown_fields)
    if not report.problems:
        print("\nno problems")


def _counts(counts: Mapping[str, int]) -> str:
    """The most frequent ones."""
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:SHOWN])
    return shown + (f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def _print_names(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        print(f"\n{what}: {len(names)}\n  {', '.join(names[:SHOWN])}{more}")


def _print_encoded(encoded: "Encoded", out: Path, left_out: Mapping[str, str]) -> None:
    facts = encoded.encoding
    print(f"{out}  {encoded.songs} songs in {encoded.shards} files, {encoded.kept} of which were there already")
    print(f"{facts.codec}: a code every {', '.join(map(str, facts.hops))} samples at {facts.rate}, K {facts.codebooks}")
    for name, why in {**left_out, **encoded.failed}.items():
        print(f"left out: {name}: {why}")
