"""The errors that users meet. Each message names the value, the rule it breaks and the remedy, in one line.

The command line prints these without a traceback and exits with 1, or with 2 for a setting that cannot
work. Anything else that escapes is a bug of ours.
"""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class DdimEditError(Exception):
    """Base of every error that ddim_edit raises on purpose."""


class ConfigError(DdimEditError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class ModelError(DdimEditError):
    """A model that cannot be found, loaded or trusted."""


class LatentsError(DdimEditError):
    """A latents file that cannot be read, or that belongs to another model."""


class ImageError(DdimEditError):
    """A photo that cannot be read, or a picture that cannot be written."""


class OutputError(DdimEditError):
    """An output that exists already or a place that cannot be written to."""


class InversionError(DdimEditError):
    """An encoding that is impossible (a random solver, say) or did not converge."""


class NumericsError(DdimEditError):
    """Values that are not finite (NaN or infinity) in the middle of a run."""


class MissingExtraError(DdimEditError, ImportError):
    """An optional package is not installed; the message gives the pip command."""
