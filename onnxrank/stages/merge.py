"""Merge: moments of disjoint data are added."""

from __future__ import annotations

import os
from collections.abc import Iterable

from onnxrank import moments
from onnxrank.moments import Moments


def merge(parts: Iterable[Moments | str | os.PathLike[str]]) -> Moments:
    """Add moments of disjoint data of one model.

    Parameters
    ----------
    parts : iterable of Moments or path
        At least one.

    Raises
    ------
    MomentsError
        They belong to different models.
    """
    return moments.merge(
        [part if isinstance(part, Moments) else Moments.load(part) for part in parts]
    )
