"""The files of a run: a diffusers pipeline folder at every moment, and the state from which the run goes on.

Every file is written whole or not at all, so a run may be killed at any moment.
"""

import csv
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ddim_edit.errors import ModelError, first_line
from ddim_edit.files import write_bytes, write_text
from ddim_edit.training.network import Origin

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

STATE, METRICS, RECORD, CARD = "state.pt", "metrics.csv", "training.json", "README.md"
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
OWN = (STATE, METRICS, CARD, "labels.json", "model_index.json", "unet", "scheduler", "samples")  # beside RECORD
# Identifiers of licences that model cards know, of those that photos come with.
LICENCES = ("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "pddl", "mit", "apache-2.0")


def save_state(state: Mapping[str, object], run: Path) -> None:
    """Write `state.pt`: tensors, numbers and text in dicts and lists, nothing that unpickling could run."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(run / STATE, buffer.getvalue())


def load_state(run: Path) -> dict[str, Any] | None:
    """Read `state.pt`, or None where the run has none yet.

    Raises:
        ModelError: it is damaged, or holds more than tensors.
    """
    path = run / STATE
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}); delete it to begin the run anew") from error
    if not isinstance(found, dict) or not {"config", "photos", "network", "step"} <= found.keys():
        raise ModelError(f"{path} is no state of a run; move it away to begin one")
    return cast(dict[str, Any], found)


def save_model(module: "UNet2DModel", origin: Origin, run: Path) -> None:
    """Write the pipeline folder: network, scheduler, index and, for a class-conditional model, its labels."""
    from safetensors.torch import save

    half = origin.config.store == "fp16"
    weights = {name: _stored(value, half) for name, value in module.state_dict().items()}
    write_bytes(run / WEIGHTS, save(weights, {"format": "pt"}))
    write_text(run / "unet" / "config.json", module.to_json_string())
    _write_json(run / "scheduler" / "scheduler_config.json", origin.scheduler)
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    _write_json(run / "model_index.json", {"_class_name": "DDIMPipeline", **index})
    if origin.labels is not None and origin.labels.names:
        _write_json(run / "labels.json", {"names": origin.labels.names, "null": origin.labels.null})


def read_metrics(run: Path, up_to: int) -> list[dict[str, object]]:
    """The rows that a run wrote up to a step; later ones were written after its last state and will come again."""
    path = run / METRICS
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file) if int(row["step"]) <= up_to]


def write_metrics(rows: Sequence[Mapping[str, object]], run: Path) -> None:
    """Write `metrics.csv`, a line per report."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run / METRICS, text.getvalue())


def write_record(origin: Origin, data: Mapping[str, object], last: Mapping[str, object], run: Path) -> None:
    """Write `training.json`: settings, photos, versions and how far the run is."""
    packages = ("ddim-edit", "torch", "diffusers", "accelerate", "numpy")
    record = {
        "config": origin.config.to_json(),
        "data": data,
        "parameters": origin.module.num_parameters(),
        "last_report": last,
        "versions": {name: version(name) for name in packages},
    }
    _write_json(run / RECORD, record)


def write_card(origin: Origin, data: Mapping[str, object], last: Mapping[str, object], run: Path) -> None:
    """Write `README.md`, the model card: what it is, what it was trained on, and the figures so far."""
    config = origin.config
    classes = f", {origin.labels.count} classes" if origin.labels else ""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in last.items()}
    figures = "\n".join(f"| {name} | {value} |" for name, value in shown.items() if value != "")
    licence = config.licence.lower().replace(" ", "-")
    fine_tuned = f" It was fine-tuned from {config.init}, whose licence holds for it too." if config.init else ""
    text = f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
license: {licence if licence in LICENCES else "other"}
---

# {run.resolve().name}

A `UNet2DModel` of {origin.module.num_parameters() / 1e6:.1f} M parameters for photos of {config.size} x {config.size}
pixels{classes}, trained by `ddim-edit train`. It predicts {config.target}, with T = {config.diffusion_steps}. The
weights are the average over training (EMA {config.ema:g}).{fine_tuned} `training.json` holds every setting,
`metrics.csv` the course.

```python
import ddim_edit as de

model = de.load_model("{run.resolve().name}")
pictures = de.sample(model, [0, 1]{_example(origin)})
```
{_pipeline(origin)}

**Data.** {data["photos"]} photos from {data["source"]}, of which {data["set_aside"]} were set aside to watch the error.
Licence of the photos: {config.licence}.

| last report | |
| --- | --- |
{figures}
"""
    write_text(run / CARD, text)


def _example(origin: Origin) -> str:
    """How samples of a class are asked for, where there are classes; guidance takes a null class too."""
    if origin.labels is None:
        return ""
    guidance = "" if origin.labels.null is None else ", guidance=2"
    label = origin.labels.names[0] if origin.labels.names else 0
    return f", denoiser=model.denoiser({label!r}{guidance})"


def _pipeline(origin: Origin) -> str:
    """Whether diffusers' own pipeline can sample it."""
    if origin.labels is None and not origin.config.learn_sigma and origin.config.target != "x_prev":
        return "`diffusers.DDIMPipeline.from_pretrained` samples it too."
    return (
        '`diffusers.UNet2DModel.from_pretrained(..., subfolder="unet")` loads the network. `DDIMPipeline` cannot\n'
        "sample it, because it knows no classes, learned variances or x_prev."
    )


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    return (value.half() if half and value.is_floating_point() else value).contiguous()


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
