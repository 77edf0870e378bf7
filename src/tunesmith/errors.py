"""What can go wrong, as sentences for people.

    TunesmithError
    ├── RequestError              a value that was asked for is not allowed (also a ValueError)
    ├── AudioFileError            an audio file can't be found, read or written
    ├── ModelNotFoundError        no bundled model, folder or cached download has that name
    ├── CheckpointError           a checkpoint was found, but it is broken, unsafe or of another family
    ├── RunError                  a run's folder can't be made, read, written or gone on with
    ├── IncompatiblePartsError    a codec and a language model that don't fit each other (also a ValueError)
    └── MissingDependencyError    an optional package or system program is needed and absent

Each message is one sentence or two: what was given, what is allowed, what to do.
The command line prints it without a trace and exits with 2.
Asserts are for programmers: no user input ever meets one.
"""


class TunesmithError(Exception):
    """The root of everything that tunesmith raises on purpose."""


class RequestError(TunesmithError, ValueError):
    """A value that was asked for is not allowed."""


class AudioFileError(TunesmithError):
    """An audio file can't be found, read or written."""


class ModelNotFoundError(TunesmithError):
    """No bundled model, folder or cached download has the given name."""


class CheckpointError(TunesmithError):
    """A checkpoint was found, but it is broken, unsafe to load or of another family."""


class RunError(TunesmithError):
    """A run's folder can't be made, read, written or gone on with."""


class IncompatiblePartsError(TunesmithError, ValueError):
    """A codec and a language model that don't fit each other."""


class MissingDependencyError(TunesmithError):
    """An optional package or system program is needed and absent."""
