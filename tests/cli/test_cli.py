"""The command as a whole: quick help, version, commands that aren't, output that any terminal can show."""

import os
import resource
import subprocess
import sys

import pytest

import tunesmith
from tunesmith import cli


def run(*arguments, **environment):
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["info", "--help"], ["convert", "--help"], ["labels", "--help"]]
)
def test_help_is_quick_and_imports_nothing_heavy(arguments):
    script = (
        "import sys, tunesmith.cli as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "finally: print({'torch', 'transformers', 'numpy', 'huggingface_hub', 'rich'} & set(sys.modules))\n"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "set()"
    print(f"tunesmith {' '.join(arguments)}: {min(seconds):.2f} s")
    assert min(seconds) < 0.3  # processor time: the clock shows the same, unless the machine is busy


def test_help_lists_the_commands():
    shown = run("--help")
    assert shown.returncode == 0
    for command in cli.COMMANDS:
        assert command in shown.stdout


def test_version():
    shown = run("--version")
    assert (shown.returncode, shown.stdout) == (0, f"tunesmith {tunesmith.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["genrate"], ["--nonsense"]])
def test_what_is_no_command_exits_with_2(arguments):
    wrong = run(*arguments)
    assert wrong.returncode == 2
    assert "generate" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_what_the_system_refuses_is_a_sentence(monkeypatch, capsys):
    class Refused:
        def run(self):
            raise OSError(36, "File name too long", "xx")

    monkeypatch.setattr(cli, "parse", lambda _: Refused())
    assert cli.run(["info", "xx"]) == 2
    assert capsys.readouterr().err == "tunesmith: 'xx': File name too long.\n"


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-u", "-m", "tunesmith", "info", "tunesmith/pocket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_any_prompt_on_any_terminal():
    wrong = run("generate", "🎵" * 20_001, PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2
    assert "20001 characters" in wrong.stderr
    wrong = run("generate", "a jig", "--model", "🎻", PYTHONIOENCODING="ascii")
    assert "no model '\\U0001f3bb'" in wrong.stderr


def test_the_entry_point_is_main():
    from importlib.metadata import entry_points

    [entry] = entry_points(group="console_scripts", name="tunesmith")
    assert entry.load() is cli.main


def test_the_first_line_promises_no_more_than_there_is():
    assert tunesmith.__doc__ is not None
    assert ("serve" in tunesmith.__doc__) == ("serve" in cli.COMMANDS)
