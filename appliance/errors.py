"""The one tree of exceptions.

Every failure that a user can meet is a `SkerryError`: it has a stable `kind` for machines, a `message` for people in
the form "cannot <do> <what>: <found>, expected <this>", a `hint` that names the next step, an exit code for the
command and a status for HTTP. The daemon sends kind, message and hint; the client raises the same class again, found
by its kind.

A `ValueError` is a bug of the calling code; input that is wrong, tampered with or missing never raises one.
"""

from collections.abc import Iterator
from typing import ClassVar


class SkerryError(Exception):
    """Root of every error that Skerry raises on purpose.

    Args:
        message: what was found and what was expected, one line.
        hint: what to do next, one line.
        param: the field of the request at fault, if there is one.
        retry_after_s: when trying again makes sense, in seconds.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s


class InternalError(SkerryError):
    """A defect of Skerry itself; the daemon's log has the details."""

    kind = "internal_error"


# --- what the caller asked for ----------------------------------------------------------------------------------------


class InvalidRequest(SkerryError):
    """A request, an argument or a file of the user's that cannot be understood."""

    kind = "invalid_request"
    exit_code = 2
    http_status = 400


class ContextTooLong(InvalidRequest):
    """Prompt and answer together exceed the model's context."""

    kind = "context_length_exceeded"


class NoChatTemplate(InvalidRequest):
    """A base model was asked to chat."""

    kind = "no_chat_template"


class RequestTooLarge(InvalidRequest):
    """The body is larger than the daemon accepts."""

    kind = "request_too_large"
    http_status = 413


class RequestTimeout(InvalidRequest):
    """The request did not arrive in time."""

    kind = "request_timeout"
    http_status = 408


class UnsupportedMediaType(InvalidRequest):
    """The body is not JSON."""

    kind = "unsupported_media_type"
    http_status = 415


class NotFound(SkerryError):
    """No such route or object."""

    kind = "not_found"
    http_status = 404


class MethodNotAllowed(SkerryError):
    """The route exists, but not for this method."""

    kind = "method_not_allowed"
    http_status = 405


class ModelNotFound(NotFound):
    """No installed model has this name."""

    kind = "model_not_found"


class TaskNotFound(NotFound):
    """No installed task has this name."""

    kind = "task_not_found"


class PermissionDenied(SkerryError):
    """The caller's groups do not open this route."""

    kind = "permission_denied"
    exit_code = 3
    http_status = 403


class TooManyRequests(SkerryError):
    """The caller, or the whole daemon, has as many requests under way as the policy admits."""

    kind = "too_many_requests"
    http_status = 429


class OutOfMemory(SkerryError):
    """The model or its cache would not fit into the memory that the box can give."""

    kind = "out_of_memory"
    exit_code = 4
    http_status = 503


class ShuttingDown(SkerryError):
    """The daemon drains and takes no new requests."""

    kind = "shutting_down"
    http_status = 503


class Cancelled(SkerryError):
    """The work was cancelled by its caller."""

    kind = "cancelled"
    http_status = 499


# --- client side ------------------------------------------------------------------------------------------------------


class DaemonUnreachable(SkerryError):
    """Nothing answers on the socket, or what answers is not the daemon."""

    kind = "daemon_unreachable"
    http_status = 502


class DaemonTimeout(SkerryError):
    """The daemon did not answer within the client's limit."""

    kind = "daemon_timeout"
    http_status = 504


# --- files and configuration ------------------------------------------------------------------------------------------


class ConfigError(SkerryError):
    """The configuration has an unknown key or a wrong value."""

    kind = "bad_config"
    exit_code = 2


class FileProblem(SkerryError):
    """A file cannot be read or written: missing, no permission, no space."""

    kind = "file_problem"


class MissingExtra(SkerryError):
    """A station command was run where the station's packages are not installed."""

    kind = "missing_extra"


# --- building models (station) ----------------------------------------------------------------------------------------


class BuildError(SkerryError):
    """A model package cannot be built from this source."""

    kind = "build_failed"


class WrongSource(BuildError):
    """The weights are not the ones that the recipe pins."""

    kind = "wrong_source"
    exit_code = 5


class LicenceNotAccepted(BuildError):
    """The weights' terms need the operator's acceptance."""

    kind = "licence_not_accepted"
    exit_code = 4


# --- trust ------------------------------------------------------------------------------------------------------------


class VerificationFailed(SkerryError):
    """Something signed is not what was signed. Never a reason to go on."""

    kind = "verification_failed"
    exit_code = 5
    http_status = 409


class Unsigned(VerificationFailed):
    """The package has no signature."""

    kind = "unsigned"


class MalformedSignature(VerificationFailed):
    """The signature file is not a bundle of the kind that Skerry accepts."""

    kind = "malformed_signature"


class UnknownKey(VerificationFailed):
    """No key of the key directory made this signature."""

    kind = "unknown_key"


class BadSignature(VerificationFailed):
    """The signature names a known key, but that key did not make it."""

    kind = "bad_signature"


class DigestMismatch(VerificationFailed):
    """A file's bytes are not the signed ones."""

    kind = "digest_mismatch"


class UnlistedFile(VerificationFailed):
    """The package holds a file that nobody signed."""

    kind = "unlisted_file"


class MissingFile(VerificationFailed):
    """A signed file is not there."""

    kind = "missing_file"


class UnsafeFile(VerificationFailed):
    """A symbolic link, a hard link, a device, a hidden file or a path that leaves the package."""

    kind = "unsafe_file"


class CardMismatch(VerificationFailed):
    """The card says something else than the package's name or files."""

    kind = "card_mismatch"


def every_error(root: type[SkerryError] = SkerryError) -> Iterator[type[SkerryError]]:
    """Walk the tree, root first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def error_class(kind: str) -> type[SkerryError]:
    """Find the class of a kind that came over the socket; the root class if this version does not know it."""
    return {c.kind: c for c in every_error()}.get(kind, SkerryError)
