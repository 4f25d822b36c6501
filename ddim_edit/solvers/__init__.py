"""Solvers: how to step between neighbouring levels of a grid. One file per family; add yours to SOLVERS."""

from ddim_edit.solvers.base import Solver, State
from ddim_edit.solvers.ddim import Ddim

SOLVERS: dict[str, type[Solver]] = {"ddim": Ddim}

__all__ = ["SOLVERS", "Ddim", "Solver", "State"]
