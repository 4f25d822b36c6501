"""Who may import whom, and how long things may be: read from the source, without running it."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "ddim_edit"
MAX_FUNCTION, MAX_FILE = 40, 350

# Short names: inside `ddim_edit`. `at_top` are third-party packages that load with the module, `inside` those that
# load when a function needs them. Imports for type checkers count as imports of ours, and not as loading a package.
NUMERICS = "errors schedule grid denoiser noise solvers solvers.base interpolation metrics ode models models.base"
PATHS = "sphere splines interpolation mixing corrections pacing"
VERBS = "task inverse recipe latents decoding inversion perception motion morphing forecast"
USES = "images sheets video files batch rendering datasets evaluation"
EXPERIMENTS = " ".join(
    f"experiments.{name}"
    for name in (
        *("base", "charts", "store", "statistics", "tables", "report", "runner", "attributes", "features"),
        *("reconstruct", "consistency", "eta_steps", "interpolate", "cycle", "trajectory"),
    )
)


@dataclass(frozen=True)
class May:
    """What a module may import."""

    ours: str = ""
    at_top: str = ""
    inside: str = ""


TABLE = {
    # Nothing below
    "errors": May(),
    "files": May("errors"),
    # Numerics: tensors in, tensors out
    "schedule": May("errors", "numpy torch"),
    "grid": May("errors schedule", "numpy"),
    "noise": May("errors", "numpy torch"),
    "metrics": May("errors", "torch", "skimage"),
    "sphere": May("errors", "numpy torch"),
    "splines": May("sphere", "numpy torch", "scipy"),
    "interpolation": May("errors sphere splines", "numpy torch"),
    "mixing": May("errors sphere interpolation", "torch"),
    "corrections": May("errors", "numpy torch"),
    "pacing": May("errors metrics", "numpy torch", "scipy"),
    "denoiser": May("errors schedule", "torch"),
    "variational": May("schedule", "numpy torch"),
    "solvers.base": May("denoiser grid", "torch"),
    "solvers.ddim": May("errors schedule grid denoiser solvers.base"),
    "solvers.quadrature": May("schedule", "numpy torch"),
    "solvers.fixed_point": May("solvers.base", "torch"),
    "solvers.spending": May("grid"),
    "solvers.implicit": May(
        "schedule grid denoiser solvers.base solvers.ddim solvers.fixed_point solvers.spending", "torch"
    ),
    "solvers.runge_kutta": May("schedule grid denoiser solvers.base solvers.ddim solvers.quadrature", "torch"),
    "solvers.multistep": May(
        "schedule grid denoiser solvers.base solvers.ddim solvers.quadrature solvers.runge_kutta", "torch"
    ),
    "solvers.recorder": May("schedule grid denoiser solvers.base solvers.ddim solvers.implicit", "torch"),
    "solvers.leapfrog": May("grid denoiser solvers.base solvers.ddim solvers.implicit", "torch"),
    "solvers.symmetric": May(
        "errors schedule grid denoiser solvers.base solvers.ddim solvers.fixed_point solvers.implicit "
        "solvers.quadrature solvers.runge_kutta",
        "numpy torch",
        "scipy",
    ),
    "solvers": May(
        "solvers.base solvers.ddim solvers.implicit solvers.leapfrog solvers.multistep solvers.recorder "
        "solvers.runge_kutta "
        "solvers.symmetric"
    ),
    "ode": May("errors schedule grid denoiser solvers.base", "torch"),
    # Models: a checkpoint family knows no solver, no loop and no latents
    "models.base": May("errors schedule denoiser", "torch"),
    "models.previous": May("schedule denoiser", "numpy torch"),
    "models.unet2d": May("errors schedule denoiser models.base models.previous", "torch", "diffusers safetensors"),
    "models": May("errors models.base models.unet2d", "torch", "huggingface_hub"),
    # Data
    "colour": May("errors", "numpy PIL"),
    "images": May("errors files colour", "numpy torch PIL"),
    "fonts": May("", "PIL"),
    "sheets": May("errors images fonts", "numpy torch PIL"),
    "video": May("errors files images", "numpy torch PIL", "av"),
    "plots": May("files", "numpy torch", "matplotlib"),
    "latents": May("errors files schedule metrics", "torch", "safetensors"),
    # Verbs: no checkpoint family, no pictures on disk
    "task": May("errors grid denoiser solvers ode metrics", "torch"),
    "inverse": May("errors grid denoiser noise ode solvers task", "torch"),
    "recipe": May("errors schedule grid denoiser solvers inverse models.base latents", "numpy"),
    "decoding": May("errors grid denoiser noise inverse solvers solvers.base ode models.base latents recipe", "torch"),
    "inversion": May(
        "errors schedule grid denoiser solvers ode metrics task inverse models.base latents recipe decoding", "torch"
    ),
    "motion": May("errors interpolation corrections pacing"),
    "morphing": May(
        "errors grid denoiser ode interpolation corrections pacing perception motion models.base latents recipe "
        "decoding inversion solvers",
        "torch",
    ),
    "perception": May("errors denoiser models.base", "torch"),
    "forecast": May("interpolation inverse models.base motion noise recipe solvers.recorder", "torch"),
    # Uses
    "rendering": May("errors files grid ode images models.base latents motion morphing", "torch", "safetensors"),
    "batch": May("errors images task inversion decoding latents recipe models.base noise ode", "torch"),
    "datasets": May("errors images batch", "numpy torch"),
    "evaluation": May("errors denoiser models.base noise schedule variational", "torch"),
    # Training: from pure functions to the loop
    "training.timesteps": May("", "torch"),
    "training.optimizers": May("errors", "torch"),
    "training.objectives": May("denoiser schedule variational models.previous", "numpy torch"),
    "training.config": May("errors images training.objectives training.optimizers training.timesteps"),
    "training.data": May("errors noise schedule datasets models.base training.objectives training.timesteps", "torch"),
    "training.network": May(
        "errors schedule models models.previous models.unet2d training.config", "numpy torch", "diffusers"
    ),
    "training.reports": May(
        "datasets decoding evaluation images sheets models models.unet2d training.data training.network", "torch"
    ),
    "training.checkpoint": May("errors files training.network", "torch", "safetensors"),
    "training.run": May(
        "errors noise datasets training.config training.data training.network training.objectives "
        "training.optimizers training.timesteps",
        "torch",
        "diffusers",
    ),
    "training.loop": May(
        "errors files models datasets training.checkpoint training.config training.data training.network "
        "training.optimizers training.reports training.run",
        "torch",
        "accelerate",
    ),
    "training": May("training.config training.loop"),
    "demo": May(f"{NUMERICS} {VERBS} images sheets video plots", "torch", "skimage"),
    "doctor": May(f"{NUMERICS} {VERBS} video", "", "torch torchvision huggingface_hub"),
    # Experiments: the six know the shared parts, which know none of the six
    "experiments.base": May("ode plots", "numpy torch"),
    "experiments.store": May("errors files images experiments.base", "torch"),
    "experiments.statistics": May("experiments.base", "numpy", "scipy"),
    "experiments.tables": May("experiments.base experiments.statistics"),
    "experiments.report": May("plots experiments.base experiments.statistics experiments.tables"),
    "experiments.runner": May(
        "errors files images ode plots experiments.base experiments.report experiments.statistics experiments.store "
        "experiments.tables"
    ),
    "experiments.charts": May("images plots sheets experiments.base experiments.store", "torch"),
    "experiments.attributes": May("", "torch"),
    "experiments.features": May("errors denoiser models.base perception experiments.base", "numpy torch"),
    **{
        f"experiments.{name}": May(f"{NUMERICS} {PATHS} {VERBS} {USES} plots {EXPERIMENTS}", "numpy torch")
        for name in ("reconstruct", "consistency", "eta_steps", "interpolate", "cycle", "trajectory")
    },
    "experiments": May(EXPERIMENTS),
    # Faces: torch only inside functions, so that --help answers at once
    "cli.values": May("", "click"),
    "cli.packing": May("", "click"),
    "cli.options": May(f"{NUMERICS} {VERBS} {USES} cli.packing cli.values", "click", "torch"),
    "cli.run": May(f"{NUMERICS} {VERBS} {USES} cli.options", "click", "torch tqdm"),
    "cli.method": May(f"{NUMERICS} {VERBS} cli.options cli.packing", "click"),
    "cli.photos": May(f"{NUMERICS} {VERBS} {USES} cli.method cli.options cli.run cli.values", "click", "torch"),
    "cli.decoding": May(f"{NUMERICS} {VERBS} {USES} cli.method cli.options cli.run", "click"),
    "cli.pictures": May(f"{NUMERICS} {VERBS} {USES} cli.method cli.options cli.run cli.values", "click", "torch numpy"),
    "cli.evaluation": May(f"{NUMERICS} {VERBS} {USES} training.data cli.options cli.run cli.values", "click"),
    "cli.training": May(
        "errors datasets training training.config training.loop cli.options cli.run cli.values", "click", "torch tqdm"
    ),
    "cli.film": May(f"{PATHS} {VERBS} {USES} cli.options cli.packing cli.run", "click", "torch"),
    "cli.keys": May(f"{NUMERICS} {VERBS} {USES} cli.method cli.options cli.packing cli.values", "click", "torch"),
    "cli.corners": May(f"{PATHS} {VERBS} {USES} cli.keys cli.options cli.run", "click", "torch"),
    "cli.mix": May(f"{PATHS} {VERBS} {USES} metrics cli.keys cli.options cli.run cli.values", "click", "torch"),
    "cli.costs": May("forecast interpolation models.base morphing recipe", "click"),
    "cli.interpolate": May(
        f"{NUMERICS} {PATHS} {VERBS} {USES} cli.costs cli.film cli.keys cli.options cli.packing cli.run cli.values",
        "click",
        "torch",
    ),
    "cli.about": May(f"{NUMERICS} {VERBS} {USES} solvers.spending doctor cli.options", "click"),
    "cli.demo": May("files demo cli.options", "click"),
    "cli.conduct": May(
        f"{NUMERICS} {VERBS} {USES} experiments {EXPERIMENTS} cli.method cli.options cli.packing cli.run cli.values",
        "click",
        "torch",
    ),
    "cli.experiment": May(
        f"{NUMERICS} experiments {EXPERIMENTS} cli.conduct cli.interpolate cli.method cli.options cli.values", "click"
    ),
    "cli": May(
        "errors cli.about cli.corners cli.decoding cli.demo cli.evaluation cli.experiment cli.interpolate cli.mix "
        "cli.photos cli.pictures cli.training",
        "click",
    ),
    "__main__": May("cli"),
}


@dataclass(frozen=True)
class Import:
    """One imported name: where it is looked for, and when."""

    module: str
    name: str
    at_top: bool
    for_types: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def module_name(path: Path) -> str:
    """`ddim_edit/cli/run.py` is `cli.run`; the package itself is the empty name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", [name for name in SOURCES if name])


def imports(tree: ast.AST, at_top: bool = True, for_types: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", at_top, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (Import(node.module or "", alias.name, at_top, for_types) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports(node, at_top and not inside, for_types or types)


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports, under their short names."""
    found: set[str] = set()
    for item in imports(TREES[module]):
        if item.package == "ddim_edit":
            below = f"{item.module}.{item.name}".removeprefix("ddim_edit").removeprefix(".")
            found.add(below if below in SOURCES else item.module.removeprefix("ddim_edit").removeprefix("."))
    return found


def third_party(module: str, *, at_top: bool) -> set[str]:
    known = sys.stdlib_module_names | {"ddim_edit"}
    return {
        item.package
        for item in imports(TREES[module])
        if item.package not in known and item.at_top is at_top and not item.for_types
    }


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_the_table_lists_every_module():
    assert set(TABLE) == set(SOURCES) - {""}
    assert {module for may in TABLE.values() for module in may.ours.split()} <= set(TABLE)


@every_module
def test_a_module_imports_no_module_that_the_table_does_not_allow(module):
    assert ours(module) <= set(TABLE[module].ours.split())


@every_module
def test_a_module_loads_no_package_that_the_table_does_not_allow(module):
    assert third_party(module, at_top=True) <= set(TABLE[module].at_top.split())
    assert third_party(module, at_top=False) <= set(f"{TABLE[module].inside} {TABLE[module].at_top}".split())


def test_no_command_loads_torch_with_its_module_and_no_module_loads_diffusers():
    for module, may in TABLE.items():
        assert "diffusers" not in may.at_top.split()
        assert not module.startswith("cli") or set(may.at_top.split()) <= {"click"}


def test_nobody_imports_the_faces():
    faces = {module for module in SOURCES if module.startswith("cli")} | {"__main__", "doctor", "demo"}
    for module in set(SOURCES) - faces:
        assert not ours(module) & faces


def test_torch_is_imported_by_the_package_itself_only_for_types():
    assert all(item.for_types for item in imports(TREES[""]) if item.package not in sys.stdlib_module_names)


def test_imports_make_no_cycle():
    waiting = {module: ours(module) - {module} for module in SOURCES if module}
    while free := {module for module, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert waiting == {}


@every_module
def test_no_private_name_crosses_modules(module):
    taken = [item for item in imports(TREES[module]) if item.package == "ddim_edit"]
    assert not [item for item in taken if item.name.startswith("_") or "._" in item.module]


@every_module
def test_no_private_attribute_of_another_module_is_used(module):
    modules = {item.name for item in imports(TREES[module]) if f"{item.module}.{item.name}"[10:] in SOURCES}
    uses = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert not [node for node in uses if isinstance(node.value, ast.Name) and node.value.id in modules]


def test_random_numbers_are_drawn_only_where_the_docstring_of_noise_says():
    draws = {"rand", "randn", "randint", "rand_like", "randn_like", "normal_", "manual_seed", "default_rng"}
    modules = {
        module.removesuffix(module.partition("training")[2])  # one purpose, whichever of its modules
        for module, tree in TREES.items()
        if any(isinstance(node, ast.Attribute) and node.attr in draws for node in ast.walk(tree))
    }
    named = {module for module in SOURCES if module and f"`{module}`" in (ast.get_docstring(TREES["noise"]) or "")}
    assert modules == {"noise"} | named


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("cli")])
def test_nothing_below_the_command_line_prints(module):
    calls = [node.func for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id in ("print", "input", "breakpoint")]
    assert "click" not in {item.package for item in imports(TREES[module])}


def test_every_public_name_is_used_or_offered():
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.values())
    words = Counter(re.findall(r"\w+", text))
    offered = set((ROOT.parent / "tests" / "api.txt").read_text().split()) | {"GivenNoise", "read_metadata"}
    nodes = (node for tree in TREES.values() for node in tree.body)
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    unused = {name for name in defined if not name.startswith("_") and words[name] < 2}
    assert unused - offered == set()


@pytest.mark.parametrize("module", SOURCES)
def test_functions_are_short(module):
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {f.name: code_lines(f) for f in functions if code_lines(f) > MAX_FUNCTION}


@pytest.mark.parametrize("module", SOURCES)
def test_files_are_short_and_say_what_lives_in_them(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    assert ast.get_docstring(TREES[module])
