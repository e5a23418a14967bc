"""Which views are collected together, so that their moments fit into memory. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping

from onnxrank.errors import MomentsError
from onnxrank.graph.sites import View


def plan_waves(need: Mapping[View, int], limit: int) -> list[list[View]]:
    """Cut views, in their order, into as few passes over the data as fit.

    Parameters
    ----------
    need : mapping of View to int
        Bytes each view takes.
    limit : int
        Bytes one pass may take; 0 for no limit.

    Raises
    ------
    MomentsError
        If one view alone takes more.
    """
    waves: list[list[View]] = []
    room = 0
    for view, size in need.items():
        if limit and size > limit:
            raise MomentsError(
                f"the moments of tensor {view.tensor!r} take {_mebibytes(size)}, "
                f"more than the {_mebibytes(limit)} allowed",
                hint="raise --memory, or leave its node out with --exclude",
            )
        if not waves or (limit and size > room):
            waves.append([])
            room = limit
        waves[-1].append(view)
        room -= size
    return waves


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
