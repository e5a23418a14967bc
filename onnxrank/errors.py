"""The errors a user can meet: what went wrong, where, and what to do next."""

from __future__ import annotations


class OnnxRankError(Exception):
    """Bad input, or an output that could not be made; the command line exits with 2.

    Parameters
    ----------
    what : str
        What is wrong, in one clause.
    where : str, optional
        The file, node, tensor or batch it was found in.
    hint : str, optional
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text} ({self.hint})" if self.hint else text
        # One line, whatever names a model brings.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ModelError(OnnxRankError):
    """The model cannot be read, understood or run."""


class DataError(OnnxRankError):
    """The data do not fit the model, or hold NaN or infinity."""


class MomentsError(OnnxRankError):
    """A moments file is damaged, or belongs to another model."""


class PlanError(OnnxRankError):
    """A plan, or the options it was asked for, cannot be followed."""


class WriteError(OnnxRankError):
    """A result cannot be written where it was asked for."""
