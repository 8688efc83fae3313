"""The exceptions of the library; the names, and what derives from what, are those of C++."""

from typing import Any


class Error(Exception):
    """Every exception of the library. A call that raises has changed nothing."""


class InvalidArgumentError(Error, ValueError):
    """A malformed argument: a shape, dtype, stride, device, layout, size, page id or table."""


class UnknownSequenceError(Error, KeyError, ValueError):
    """A call names a sequence that the descriptor does not hold."""

    __str__ = Exception.__str__  # KeyError's own puts the message in quotes

    def __init__(self, message: str = "", seq_id: object = None) -> None:
        super().__init__(message)
        self.seq_id = seq_id


class NoPageError(Error):
    """The pool has fewer free pages than the call needs; `try_allocate` says so as a value."""

    def __init__(self, message: str = "", needed: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


class PinnedError(Error):
    """A prefix cache is asked to drop pages that live handles pin."""

    def __init__(self, message: str = "", num_handles: int = 0) -> None:
        super().__init__(message)
        self.num_handles = num_handles


class UnsupportedError(Error):
    """A well-formed request that no backend of this build can serve; the message names what can."""


class SequenceStateError(Error):
    """Bytes are not the whole saved state of a sequence: foreign, truncated, corrupted or of a newer version."""


class FileError(Error, OSError):
    """The system refused to open, read or write a file.

    `errno` says why, 0 where the system had no say; `filename` is the file that was asked for, None where not known.
    """

    __str__ = Exception.__str__  # OSError's own leaves the message out where there is a filename

    def __init__(self, message: str = "", errno: int = 0, filename: str | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.filename = filename

    def __reduce__(self) -> tuple[Any, ...]:  # OSError's own forgets both
        return type(self), (str(self), self.errno, self.filename)


class BackendError(Error):
    """A device failed; the message holds the call and the device's own words."""


# Where users find them, for tracebacks and pickles.
for _error in [Error, *Error.__subclasses__()]:
    _error.__module__ = "seqattn"
