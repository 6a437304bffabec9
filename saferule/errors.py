"""Errors a user can act on. Each message is one sentence that names the thing, what was expected and what to do."""


class SaferuleError(Exception):
    """Base of all errors raised on purpose; the command line prints them without a traceback."""


class SettingsError(SaferuleError):
    """An unknown name or an impossible value of an option, profile, task, backbone, attack or method."""


class DataError(SaferuleError):
    """A dataset file or array that does not follow the DSRL schema."""


class CheckpointError(SaferuleError):
    """A checkpoint that is truncated, of another backbone or of other sizes."""


class RunError(SaferuleError):
    """A run that cannot continue: a loss that is not finite, a missing parent, a folder that is not a run."""
