"""The public surface is what `__all__` says, and importing the package costs nothing."""

import subprocess
import sys

import pytest

import tunesmith


def test_names_are_sorted():
    assert list(tunesmith._EXPORTS) == sorted(tunesmith._EXPORTS)
    assert dir(tunesmith) == tunesmith.__all__


@pytest.mark.parametrize("name", tunesmith.__all__)
def test_each_name_is_there_and_documented(name):
    value = getattr(tunesmith, name)
    assert isinstance(value, str) if name == "__version__" else value.__doc__


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        _ = tunesmith.loda


def test_importing_loads_nothing():
    script = "import sys, tunesmith; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
