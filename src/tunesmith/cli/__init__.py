"""The command `tunesmith`: one module a command, with a dataclass whose fields are its flags and whose `run` acts.

What a user did wrong is one sentence on stderr and exit code 2; Ctrl-C is exit code 130 and leaves nothing
half-written.
`--help` imports neither torch nor numpy.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import make_dataclass
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

import tunesmith
from tunesmith.errors import TunesmithError

COMMANDS = {
    "generate": ("tunesmith.cli.generate", "Generate"),
    "resume": ("tunesmith.cli.runs", "Resume"),
    "upsample": ("tunesmith.cli.runs", "Upsample"),
    "continue": ("tunesmith.cli.runs", "Continue"),
    "align": ("tunesmith.cli.align", "Align"),
    "features": ("tunesmith.cli.features", "Features"),
    "info": ("tunesmith.cli.info", "Info"),
    "train": ("tunesmith.cli.train", "Train"),
    "convert": ("tunesmith.cli.convert", "Convert"),
    "finetune": ("tunesmith.cli.finetune", "Finetune"),
    "assemble": ("tunesmith.cli.assemble", "Assemble"),
    "labels": ("tunesmith.cli.labels", "Labels"),
    "data": ("tunesmith.cli.data", "Data"),
}
"""Command -> its module and its class, whose docstring is its help."""

WRONG, INTERRUPTED, UNHEARD = 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # any prompt on any terminal
    try:
        sys.exit(run(arguments))
    except KeyboardInterrupt:
        print("tunesmith: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read us has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        sys.exit(UNHEARD)


def run(arguments: Sequence[str]) -> int:
    """Parse and act; the exit code.  (`--help` and flags that make no sense exit by themselves, with 0 and 2.)"""
    if list(arguments) == ["--version"]:
        print(f"tunesmith {tunesmith.__version__}")
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries tell programmers
        warnings.filterwarnings("always", module=r"tunesmith\.")
        warnings.showwarning = _note
        try:
            parse(arguments).run()
        except TunesmithError as error:
            print(f"tunesmith: {error}", file=sys.stderr)
            return WRONG
        except BrokenPipeError:
            raise
        except OSError as error:  # names that are too long, folders that are closed to this user, disks that are gone
            told = f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
            print(f"tunesmith: {told}.", file=sys.stderr)
            return WRONG
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The command with its flags."""
    import tyro

    if arguments and arguments[0] in COMMANDS:
        kind = _load(arguments[0])
        kind = kind.of(arguments[1:]) if hasattr(kind, "of") else kind
        preset = kind.preset(arguments[1:]) if hasattr(kind, "preset") else None
        options = {} if preset is None else {"default": preset}
        return tyro.cli(
            kind,
            prog=getattr(kind, "prog", f"tunesmith {arguments[0]}"),
            args=arguments[1:],
            config=(tyro.conf.FlagCreatePairsOff,),
            **options,
        )
    choices = [_choice(name) for name in COMMANDS]
    summary = f"{(tunesmith.__doc__ or '').partition(chr(10))[0]}\n\ntunesmith COMMAND --help says more."
    return tyro.cli(reduce(or_, choices), prog="tunesmith", description=summary, args=arguments)


def _load(command: str) -> Any:
    module, kind = COMMANDS[command]
    return getattr(import_module(module), kind)


def _choice(command: str) -> Any:
    """For the list of commands: the first line of its help, without its flags, which take long to prepare."""
    import tyro

    description = _load(command).__doc__.partition("\n")[0]
    return Annotated[make_dataclass(command, ()), tyro.conf.subcommand(command, description=description)]


def _note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """How a warning looks here."""
    print(f"tunesmith: {message}", file=sys.stderr)
