"""Every error a user can meet.

HeterosisError
├── InputError            what the user gave cannot be used; nothing was started or written   exit code 2
│   ├── StudyError        the study file or a search space
│   ├── RecipeError       a recipe
│   ├── CheckpointError   a model folder, or models that do not fit together
│   └── TaskError         an lm-eval task, its data or its metric
├── RecordError           the record of a study does not fit what is being run                exit code 2
├── CandidateError        one candidate cannot be scored; the search goes on
│   └── CanaryError       the live model is not the one that the recipe describes
├── EngineError           the engine that answers requests failed                             exit code 3
└── InterruptError          the user asked to stop; the record is complete up to here           exit code 130, 143

A message is one line: what is wrong, where, and what to do about it.
"""

# Characters of a message: what quotes the user's own files may quote a file that is one key of a megabyte.
LONGEST = 2000


class HeterosisError(Exception):
    """Base of every error that this program raises on purpose. Its message is one line of printable text."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        text = " ".join(message.split())
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        super().__init__(text if len(text) <= LONGEST else text[: LONGEST // 2] + " … " + text[-LONGEST // 2 :])


class InputError(HeterosisError):
    """What the user gave cannot be used."""

    exit_code = 2


class StudyError(InputError):
    """The study file or a search space is wrong."""


class RecipeError(InputError):
    """A recipe is wrong."""


class CheckpointError(InputError):
    """A model folder cannot be read, or models do not fit together."""


class TaskError(InputError):
    """A task, its data or its metric cannot be used."""


class RecordError(HeterosisError):
    """The record of a study does not fit what is being run."""

    exit_code = 2


class CandidateError(HeterosisError):
    """One candidate cannot be scored; the search goes on without it."""


class CanaryError(CandidateError):
    """The live model is not the one that the recipe describes."""


class EngineError(HeterosisError):
    """The engine that answers requests failed."""

    exit_code = 3


class InterruptError(HeterosisError):
    """A signal asked to stop; everything scored so far is recorded."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
