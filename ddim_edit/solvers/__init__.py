"""Solvers: how to step between neighbouring levels of a grid. One file per family; add yours to SOLVERS."""

from ddim_edit.solvers.base import Solver, State, Stepper
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.implicit import Implicit
from ddim_edit.solvers.leapfrog import Lattice, Leapfrog
from ddim_edit.solvers.multistep import AdamsBashforth2, AdamsBashforth3, DpmSolver2M
from ddim_edit.solvers.recorder import Recorder
from ddim_edit.solvers.runge_kutta import Heun, Midpoint
from ddim_edit.solvers.symmetric import Dop853, Trapezoid

_ALL: tuple[type[Solver], ...] = (
    Ddim,
    Midpoint,
    Heun,
    Trapezoid,
    AdamsBashforth2,
    AdamsBashforth3,
    DpmSolver2M,
    Leapfrog,
    Lattice,
    Dop853,
)
SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in _ALL}

__all__ = ["SOLVERS", "Ddim", "Implicit", "Lattice", "Recorder", "Solver", "State", "Stepper"]
