"""Events on stderr: a bar with the time left on a terminal, a line for each tenth elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.events import Event, Finished, Progress


def show(events: Iterable[Event], quietly: bool = False) -> Any:
    """Run a task to its end; its result."""
    view = _nothing() if quietly else _bar() if sys.stderr.isatty() else _lines()
    next(view)
    try:
        for event in events:
            if isinstance(event, Progress):
                view.send(event)
            if isinstance(event, Finished):
                return event.result
    finally:
        view.close()
    raise AssertionError("a task ends with Finished")


@contextmanager
def status(doing: str) -> Iterator[None]:
    """Say what takes a while, without a known end."""
    if not sys.stderr.isatty():
        print(doing, file=sys.stderr)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


def left(event: Progress) -> str:
    """The time left, in words that are no more exact than the guess."""
    if event.seconds_left is None:
        return ""
    minutes, seconds = divmod(round(event.seconds_left), 60)
    return f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left"


def _nothing() -> Any:
    """A generator that takes Progress."""
    while True:
        yield


def _lines() -> Any:
    """A generator that takes Progress and prints at each tenth."""
    shown = (None, -1)
    while True:
        event = yield
        tenth = event.done * 10 // event.total
        if (event.stage, tenth) != shown:
            shown = (event.stage, tenth)
            print(f"{event.stage} {event.done * 100 // event.total}% {left(event)}".rstrip(), file=sys.stderr)


def _bar() -> Any:
    """A generator that takes Progress and moves a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", left="")
        while True:
            event = yield
            bars.update(task, description=event.stage, completed=event.done, total=event.total, left=left(event))
