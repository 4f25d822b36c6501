"""Encode real photos into DDIM latents, decode them back, and morph between them.

    import ddim_edit as de

    model = de.load_model("small")
    photo = de.read_image("photo.jpg", model.image_size)[None]
    latents = de.encode(model, photo)
    picture = de.decode(model, latents)[0]

Names are imported when they are first used, so that `import ddim_edit` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddim_edit.batch import PhotoBatches as PhotoBatches
    from ddim_edit.batch import encode_photos as encode_photos
    from ddim_edit.decoding import decode as decode
    from ddim_edit.decoding import sample as sample
    from ddim_edit.decoding import seed_latents as seed_latents
    from ddim_edit.denoiser import Condition as Condition
    from ddim_edit.denoiser import Denoiser as Denoiser
    from ddim_edit.denoiser import MapX0 as MapX0
    from ddim_edit.denoiser import Prediction as Prediction
    from ddim_edit.denoiser import PredictionType as PredictionType
    from ddim_edit.denoiser import clip as clip
    from ddim_edit.denoiser import dynamic_threshold as dynamic_threshold
    from ddim_edit.errors import DdimEditError as DdimEditError
    from ddim_edit.evaluation import evaluate_model as evaluate_model
    from ddim_edit.grid import Grid as Grid
    from ddim_edit.images import find_photos as find_photos
    from ddim_edit.images import read_image as read_image
    from ddim_edit.images import write_image as write_image
    from ddim_edit.interpolation import along as along
    from ddim_edit.interpolation import lerp as lerp
    from ddim_edit.interpolation import slerp as slerp
    from ddim_edit.inverse import Exact as Exact
    from ddim_edit.inverse import Explicit as Explicit
    from ddim_edit.inverse import Recorded as Recorded
    from ddim_edit.inverse import Refine as Refine
    from ddim_edit.inversion import advice as advice
    from ddim_edit.inversion import encode as encode
    from ddim_edit.latents import Latents as Latents
    from ddim_edit.metrics import compare as compare
    from ddim_edit.metrics import latent_health as latent_health
    from ddim_edit.mixing import analogy as analogy
    from ddim_edit.mixing import corner_grid as corner_grid
    from ddim_edit.mixing import karcher_mean as karcher_mean
    from ddim_edit.mixing import lol as lol
    from ddim_edit.models import load_model as load_model
    from ddim_edit.models.base import Codec as Codec
    from ddim_edit.models.base import Labels as Labels
    from ddim_edit.models.base import Model as Model
    from ddim_edit.morphing import Morph as Morph
    from ddim_edit.morphing import morph as morph
    from ddim_edit.morphing import plan_morph as plan_morph
    from ddim_edit.motion import Motion as Motion
    from ddim_edit.noise import GivenNoise as GivenNoise
    from ddim_edit.noise import SeededNoise as SeededNoise
    from ddim_edit.noise import gaussian as gaussian
    from ddim_edit.ode import Step as Step
    from ddim_edit.ode import integrate as integrate
    from ddim_edit.ode import walk as walk
    from ddim_edit.recipe import Recipe as Recipe
    from ddim_edit.schedule import Level as Level
    from ddim_edit.schedule import NoiseSchedule as NoiseSchedule
    from ddim_edit.sheets import sheet as sheet
    from ddim_edit.sheets import strip as strip
    from ddim_edit.solvers import SOLVERS as SOLVERS
    from ddim_edit.solvers import Ddim as Ddim
    from ddim_edit.solvers import Solver as Solver
    from ddim_edit.solvers import State as State
    from ddim_edit.task import Goal as Goal
    from ddim_edit.training import TrainConfig as TrainConfig
    from ddim_edit.training import train as train
    from ddim_edit.video import write_video as write_video

_HOMES = {
    "batch": ("PhotoBatches", "encode_photos"),
    "decoding": ("decode", "sample", "seed_latents"),
    "denoiser": ("Condition", "Denoiser", "MapX0", "Prediction", "PredictionType", "clip", "dynamic_threshold"),
    "errors": ("DdimEditError",),
    "evaluation": ("evaluate_model",),
    "grid": ("Grid",),
    "images": ("find_photos", "read_image", "write_image"),
    "interpolation": ("along", "lerp", "slerp"),
    "inverse": ("Exact", "Explicit", "Recorded", "Refine"),
    "inversion": ("advice", "encode"),
    "latents": ("Latents",),
    "metrics": ("compare", "latent_health"),
    "mixing": ("analogy", "corner_grid", "karcher_mean", "lol"),
    "models": ("load_model",),
    "models.base": ("Codec", "Labels", "Model"),
    "morphing": ("Morph", "morph", "plan_morph"),
    "motion": ("Motion",),
    "noise": ("GivenNoise", "SeededNoise", "gaussian"),
    "ode": ("Step", "integrate", "walk"),
    "recipe": ("Recipe",),
    "schedule": ("Level", "NoiseSchedule"),
    "sheets": ("sheet", "strip"),
    "solvers": ("SOLVERS", "Ddim", "Solver", "State"),
    "task": ("Goal",),
    "training": ("TrainConfig", "train"),
    "video": ("write_video",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ddim_edit' has no attribute {name!r}")
    value = getattr(import_module(f"ddim_edit.{_HOME_OF[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return __all__
