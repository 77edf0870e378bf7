"""Run `tunesmith` in processes that end badly: killed without warning, or on a disk that is full.

    python killing.py ROOT kill KILLS COMMAND...    runs that are killed at random moments and resumed
    python killing.py ROOT full BYTES COMMAND...    a run that may write no file larger than BYTES

Each process is forked from this one, which has loaded torch and the model: a kill is real and quick, and meets the
sampling.  COMMAND is a `generate` without --out; runs go to ROOT/1, ROOT/2, ..., and ROOT/whole is never disturbed.
"""

import functools
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from tunesmith import cli
from tunesmith.pipelines import song


def start(command: list[str], most_bytes: int | None = None) -> int:
    """The id of a new process."""
    if child := os.fork():
        return child
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # until the process ends
    os._exit(cli.run(command))


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def codes(run: Path) -> dict[str, list[int]]:
    """All codes of all takes."""
    return {
        f"{file.stem}.{name}": tensor.flatten().tolist()
        for file in sorted((run / "takes").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def progress(run: Path) -> int:
    """How many codes there are."""
    if not (run / "run.json").is_file():
        return 0
    return sum(len(values) for name, values in codes(run).items() if "codes" in name)


def go_on(run: Path, command: list[str]) -> list[str]:
    """What the user would type now."""
    return ["resume", str(run)] if (run / "run.json").is_file() else [*command, "--out", str(run)]


def watch(run: Path, windows: int, most_seconds: float) -> None:
    """Until so many more windows are saved: sampling takes little of the time, so chance alone rarely meets it."""
    end, seen = time.monotonic() + most_seconds, progress(run)
    while windows and time.monotonic() < end:
        if (now := progress(run)) != seen:
            windows, seen = windows - 1, now


def kill(root: Path, kills: int, command: list[str]) -> dict[str, object]:
    """Runs that are killed twice at random moments, unless they end before, until there are so many kills."""
    began = time.monotonic()
    assert finish(start([*command, "--out", str(root / "whole")])) == 0
    length, chance, killed, where, same = time.monotonic() - began, random.Random(), 0, [], []
    while killed < kills:
        run = root / str(len(same) + 1)
        for _ in range(2):
            child = start(go_on(run, command))
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, 0.9 * length))
            else:
                watch(run, chance.randrange(1, 8), 0.9 * length)
            os.kill(child, signal.SIGKILL)
            killed += finish(child) == -signal.SIGKILL
            where.append(progress(run))
        assert finish(start(go_on(run, command))) == 0
        same.append(codes(run) == codes(root / "whole"))
    return {"killed": killed, "same": same, "where": where}


def full(root: Path, most_bytes: int, command: list[str]) -> dict[str, object]:
    assert finish(start([*command, "--out", str(root / "whole")])) == 0
    run = root / "1"
    status = finish(start([*command, "--out", str(run)], most_bytes))
    kept = {name: len(values) for name, values in codes(run).items()}
    resumed = finish(start(["resume", str(run)]))
    return {"status": status, "kept": kept, "resumed": resumed, "same": codes(run) == codes(root / "whole")}


if __name__ == "__main__":
    place, how, *rest = sys.argv[1:]
    song.load = functools.cache(song.load)
    _ = song.load(rest[rest.index("--model") + 1], None, None).model
    print(json.dumps({"kill": kill, "full": full}[how](Path(place), int(rest[0]), rest[1:])))
