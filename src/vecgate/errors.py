"""What can go wrong, in plain terms; a protocol's `ERRORS` table turns a type into its own status and code.

    VecgateError
    |- InvalidRequest(param)          the caller must change the request
    |  |- EmptyInput                  there is nothing in it to work on
    |  |- InputTooLong                an input exceeds the model's limit and the cut is "refuse"
    |  `- SpaceMismatch               the caller expects another vector space
    |- NotFound                       no such path
    |  `- ModelNotFound               no such model
    |- WrongTask                      the model does not offer this task
    |- MethodNotAllowed               the path exists, the method does not
    |- Unauthenticated  Forbidden     no key or a wrong one; a Host or Origin that may not call
    |- TooLarge  UnsupportedEncoding  the body, by size; by Content-Encoding
    |- BodyTimeout                    the body did not arrive in time
    |- Overloaded(retry_after_s)      no room for more work now
    |  `- RateLimited                 this key's rate is used up
    |- NotReady(retry_after_s)        loading, draining or failed
    |- DeadlineExceeded               REQUEST_TIMEOUT passed
    `- BackendFailed                  the model gave no usable row
       `- OutOfMemory                 the device had no room for the batch

    ConfigError                       stops the start: one line with the setting, its value and what is allowed
    CheckpointError                   stops the start: one line with the file and what is wrong in it
    CommandError                      stops a command: one line with the file or server and the next step
    DeviceLost                        stops the process: the device gives this process no right row any more

Holds no HTTP numbers and imports nothing.
"""


class VecgateError(Exception):
    """Base of all that a client may be told; `str(error)` is safe to send (no path, no text, no key)."""


class InvalidRequest(VecgateError):
    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EmptyInput(InvalidRequest):
    pass


class InputTooLong(InvalidRequest):
    pass


class SpaceMismatch(InvalidRequest):
    pass


class NotFound(VecgateError):
    pass


class ModelNotFound(NotFound):
    pass


class WrongTask(VecgateError):
    pass


class MethodNotAllowed(VecgateError):
    """`allowed` are the methods the path has, e.g. ("GET", "HEAD")."""

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class Unauthenticated(VecgateError):
    pass


class Forbidden(VecgateError):
    pass


class TooLarge(VecgateError):
    pass


class UnsupportedEncoding(VecgateError):
    pass


class BodyTimeout(VecgateError):
    pass


class Overloaded(VecgateError):
    """`retry_after_s` is whole seconds, 1 to 60."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    pass


class NotReady(VecgateError):
    """`retry_after_s` is None when waiting does not help (the model failed to load)."""

    def __init__(self, message: str, retry_after_s: int | None = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(VecgateError):
    pass


class BackendFailed(VecgateError):
    """`lasting`: the same input fails again, so that another try is lost time."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class OutOfMemory(BackendFailed):
    pass


class ConfigError(Exception):
    """A setting that stops the start; the message names the setting, its value and what is allowed."""


class NoRoom(ConfigError):
    """A model that does not fit the device's memory; the message has the arithmetic."""


class CheckpointError(Exception):
    """A model that can't be served; the message names the file or the repo, what is wrong and the next step."""


class CommandError(Exception):
    """A command that can't go on; the message names the file or the server, what is wrong and the next step."""


class DeviceLost(BaseException):
    """Raised by a backend on the device thread. No Exception, so that no retry of a failed batch can swallow it."""
