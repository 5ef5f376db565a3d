"""Every error that Gallium raises on purpose, as one tree.

    GalliumError                      base: `message` says what is wrong and what to do
    ├── UsageError                    the caller asked for something impossible       (CLI exit 2)
    │   ├── InvalidRequest            a field of a request; `param` names it          (HTTP 400)
    │   └── ContextTooLong            the prompt does not fit                         (HTTP 400)
    ├── CheckpointError               a model file is missing, damaged or incomplete
    │   └── UnsupportedFormat         readable, but of a kind Gallium does not run
    ├── UnsupportedModel              the architecture or a config value is not supported
    ├── TokenizerError                the tokenizer is missing or damaged
    ├── TemplateError                 the chat template is missing or failed          (HTTP 400)
    ├── BackendError                  the requested hardware cannot be used
    ├── OutOfMemory                   more memory is needed than there is
    ├── DownloadError                 a model could not be fetched
    └── EngineDead                    the engine stopped; every open request gets this (HTTP 503)
        └── RankLost                  one of its processes ended; it starts them again

Anything else that reaches the user is a bug.
"""

from __future__ import annotations


class GalliumError(Exception):
    """Base of all deliberate errors; the text is a full sentence for the user."""

    exit_code = 1
    http_status = 500

    @property
    def message(self) -> str:
        """The sentence that says what is wrong and what to do."""
        return str(self)


class UsageError(GalliumError):
    """The caller asked for something that cannot be done as asked."""

    exit_code = 2
    http_status = 400


class InvalidRequest(UsageError):
    """A request field has a value that is not supported; `param` is the field's name."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextTooLong(InvalidRequest):
    """The prompt (plus the answer that was asked for) does not fit the model or the cache."""


class CheckpointError(GalliumError):
    """A model file is missing, damaged or incomplete."""


class UnsupportedFormat(CheckpointError):
    """The file can be read, but holds a kind of data that Gallium does not run."""


class UnsupportedModel(GalliumError):
    """The architecture, or a value in its config, is not supported."""


class TokenizerError(GalliumError):
    """The tokenizer is missing or damaged."""


class TemplateError(GalliumError):
    """The chat template is missing, or failed on these messages."""

    http_status = 400


class BackendError(GalliumError):
    """The requested hardware cannot be used; the message says why."""


class OutOfMemory(GalliumError):
    """More memory is needed than there is; the message names both amounts."""


class DownloadError(GalliumError):
    """A model could not be fetched; what arrived so far is kept for resuming."""

    http_status = 502


class EngineDead(GalliumError):
    """The engine stopped; no open request will be answered."""

    http_status = 503


class RankLost(EngineDead):
    """One of the engine's processes ended or does not answer; the engine starts them again."""
