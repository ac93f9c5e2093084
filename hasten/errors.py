"""Everything hasten raises on purpose.

Each error says what was wanted, what is allowed and, in ``fix``, what to type next::

    HastenError
    ├── InputError      texts: no such file or column, nothing in it, bytes that are not UTF-8
    ├── ModelError      model: not found, no tokenizer, an architecture that is not supported
    ├── ChoiceError     an option whose value is not among the allowed ones
    ├── Unavailable     an engine or an extra that is not installed, or has nothing to run on
    ├── BudgetError     the time budget cannot hold the measurement that was asked for
    ├── EngineError     a framework failed while it exported, loaded or ran a model
    │   ├── WorkerCrashed   the process that ran it died
    │   └── WorkerHung      the process that ran it stopped answering
    ├── NoCandidate     nothing that was measured may be used; the rows say why
    ├── BundleError     a bundle that is damaged, foreign to this machine, or not trusted
    ├── ResumeError     a half-finished run that belongs to another model, text or setting
    └── StorageError    a disk that is full or cannot be written
"""

from __future__ import annotations


class HastenError(Exception):
    """Root of the tree. ``message`` says what is wrong, ``fix`` what to do about it."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; the default drops keyword-only arguments.
        return _rebuild, (type(self), self.message, self.fix)


def _rebuild(kind: type[HastenError], message: str, fix: str | None) -> HastenError:
    return kind(message, fix=fix)


class InputError(HastenError):
    """The texts cannot be read as asked."""


class ModelError(HastenError):
    """The model or its tokenizer cannot be used as asked."""


class ChoiceError(HastenError):
    """An option's value is not among those allowed."""


class Unavailable(HastenError):
    """An engine or an extra is missing here; ``fix`` is the command that mends it."""


class BudgetError(HastenError):
    """The time budget is too small for what was asked."""


class EngineError(HastenError):
    """A framework failed; its own exception is chained."""


class WorkerCrashed(EngineError):
    """A worker process died before it answered."""


class WorkerHung(EngineError):
    """A worker process did not answer in time and was ended."""


class NoCandidate(HastenError):
    """Every candidate failed, was refused or is unavailable."""


class BundleError(HastenError):
    """A bundle cannot be loaded here, or not safely."""


class ResumeError(HastenError):
    """Stored results belong to another run than the one that was started."""


class EndedEarly(KeyboardInterrupt):
    """The user takes the choice that stands so far; a tune then ends with it.

    No :class:`HastenError`: where no choice stands yet, it is an interruption like any other.
    """


class StorageError(HastenError):
    """A file cannot be written."""
