"""What the clients' errors mean: each client has its own tree of them, of which little is documented."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from gallium.errors import DownloadError
from gallium.settings import Hub

SIGN_IN: dict[Hub, str] = {
    "huggingface": "sign in with `hf auth login` (or set HF_TOKEN) after asking for access on the model's page",
    "modelscope": "sign in with `modelscope login` (or set MODELSCOPE_API_TOKEN)",
}
BUSY = (408, 429)  # no refusals, although below 500
FULL = "the disk is full. Free some space and run the command again: what has arrived is kept"
DISK_FAULTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: "the disk or a limit of this system does not allow files that large. Set HF_HOME to another disk",
}
"""What to do about a fault of the file system; others mean that the cache folder cannot be used."""
NOT_YOURS = "the cache folder cannot be used. Set HF_HOME to a folder of yours"


def explain(name: str, hub: Hub, cause: BaseException) -> DownloadError:
    """A client's error as a sentence that says what to do."""
    kinds = {k.__name__ for k in type(cause).__mro__}
    status = _status(cause)
    disk_fault = _disk_fault(cause)
    if disk_fault is not None:
        advice = disk_fault
    elif is_offline(cause):
        advice = "it is not on this machine, or not whole, and HF_HUB_OFFLINE is set. Unset it to download"
    elif "GatedRepoError" in kinds or status == 403:
        advice = f"{hub} gives it only to users who were granted access: {SIGN_IN[hub]}"
    elif "RevisionNotFoundError" in kinds:
        advice = "the model exists, but not in this revision. Check --revision"
    elif "RepositoryNotFoundError" in kinds or status in (401, 404):
        advice = f"{hub} has no such public model. Check the spelling of owner/name; if it is private, {SIGN_IN[hub]}"
    elif kinds & {"HFValidationError", "InvalidParameter"}:
        advice = "this is no valid name of a model. Check its spelling"
    elif status >= 500 or status in BUSY:
        advice = f"{hub} has a problem (HTTP {status}). Try again later: what has arrived is kept"
    else:
        advice = "the connection failed. Check the network and run the command again: it goes on where it stopped"
    return DownloadError(f"{name} could not be fetched: {advice}. ({type(cause).__name__}: {_first_line(cause)})")


def is_refusal(cause: BaseException) -> bool:
    """Whether the hub was reached and said no."""
    status = _status(cause)
    return 400 <= status < 500 and status not in BUSY


def is_offline(cause: BaseException) -> bool:
    """Whether the client was told to ask nobody."""
    return any(type(c).__name__ == "OfflineModeIsEnabled" for c in _chain(cause))


def _chain(cause: BaseException | None) -> Iterator[BaseException]:
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _disk_fault(cause: BaseException) -> str | None:
    """What to do if the file system is at fault; network errors of Python are OSErrors too, but name no file."""
    faults = (
        DISK_FAULTS.get(c.errno or 0, NOT_YOURS if c.filename else None)
        for c in _chain(cause)
        if isinstance(c, OSError)
    )
    return next((fault for fault in faults if fault), None)


def _status(cause: BaseException) -> int:
    """The HTTP status in an error, 0 if there is none."""
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0][:200] if lines else "no details"
