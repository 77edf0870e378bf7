"""Write docs/cli.md, the page of every command's help.

    python scripts/help_page.py

A test holds its flags to the commands.
"""

import os
import subprocess
import sys
from pathlib import Path

from tunesmith.cli import COMMANDS

JUKEBOX = "generate --model jukebox-1b-lyrics"
"""The same command has other flags for a Jukebox."""

MORE = {"generate": [JUKEBOX], "data": ["data check", "data encode"]}
"""What else a command has its own help for."""

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def shown(*arguments: str) -> str:
    """What a terminal of 100 columns shows."""
    plain = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "tunesmith", *arguments]
    text = subprocess.run(command, capture_output=True, encoding="utf-8", env=plain, check=True).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def page() -> str:
    """The whole page."""
    blocks = [f"```\n{shown('--help')}\n```\n"]
    commands = [command for name in COMMANDS for command in [name, *MORE.get(name, [])]]
    blocks += [f"## {command}\n\n```\n{shown(*command.split(), '--help')}\n```\n" for command in commands]
    return "\n".join(["# The commands\n\nWritten by `python scripts/help_page.py`; don't edit.\n", *blocks])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
