"""Error of the round trip against evaluations, method by method: the table and the figure of the README.

    python benchmarks/inversion.py ../shared/data/garments64_test.npz -o inversion      # every method, all photos
    python benchmarks/inversion.py ../shared/data/garments64_test.npz -o inversion --only budget --limit 8
    python benchmarks/inversion.py -o inversion                              # table and figure from the rows

Every setting is one `ddim-edit roundtrip --json` run, whose lines are kept in `rows.jsonl`; settings whose photos are
all there are not run again, so that an interrupted benchmark goes on. The figure is `pareto.png`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ddim_edit.files import atomic

# name, what is compared, the options
SETTINGS: list[tuple[str, str, str]] = [
    *(("explicit", f"source, leading, S = {s}", f"-n {s} --inverse explicit --spacing leading") for s in (10, 20, 50)),
    *(
        ("explicit", f"source, quadratic, S = {s}", f"-n {s} --inverse explicit --spacing quadratic")
        for s in (10, 20, 50)
    ),
    ("explicit", "target, quadratic, S = 10", "-n 10 --inverse explicit --guess target --spacing quadratic"),
    ("explicit", "target, quadratic, S = 50", "-n 50 --inverse explicit --guess target --spacing quadratic"),
    *(
        ("long", f"source, {spacing}, S = {s}", f"-n {s} --inverse explicit --spacing {spacing}")
        for s, spacing in ((100, "leading"), (200, "leading"), (200, "quadratic"), (500, "leading"), (1000, "leading"))
    ),
    ("budget", "exact, S = 8, budget 10", "-n 8 --budget 10"),
    *(("budget", f"exact, S = 10, budget {n}", f"-n 10 --budget {n}") for n in (12, 20, 30, 40)),
    *(("long", f"exact, S = 20, budget {n}", f"-n 20 --budget {n}") for n in (50, 100)),
    ("goal", "exact, S = 10, every byte", "-n 10 --target 8bit"),
    ("goal", "exact, S = 20, every byte (default)", "-n 20 --target 8bit"),
    ("solvers", "ab2 both ways, S = 40", "-n 40 --solver ab2 --inverse explicit --spacing quadratic"),
    ("solvers", "dpm++2m both ways, S = 40", "-n 40 --solver dpm++2m --inverse explicit --spacing quadratic"),
    ("solvers", "midpoint both ways, S = 20", "-n 20 --solver midpoint --inverse explicit --spacing quadratic"),
    ("solvers", "heun both ways, S = 20", "-n 20 --solver heun --inverse explicit --spacing quadratic"),
    ("solvers", "ab2 refined, S = 20, every byte", "-n 20 --solver ab2 --inverse refine"),
    ("pairs", "leapfrog (pair), S = 10", "-n 10 --solver leapfrog"),
    ("pairs", "leapfrog (pair), S = 20", "-n 20 --solver leapfrog"),
    ("pairs", "lattice (pair), S = 20", "-n 20 --solver lattice"),
]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(photos: list[str], options: str, limit: int | None, extra: list[str]) -> Iterator[dict]:
    command = [sys.executable, "-m", "ddim_edit", "roundtrip", *photos, "--json", *options.split(), *extra]
    command += ["--limit", str(limit)] if limit else []
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return (json.loads(line) for line in lines)


def measure(args: argparse.Namespace, rows_file: Path) -> None:
    done = {(row["setting"], row["photos"], row["model"]) for row in rows_of(rows_file)}
    for group, setting, options in SETTINGS:
        if (args.only and group != args.only) or (setting, args.limit, args.model) in done:
            continue
        found = list(run(args.photos, options, args.limit, ["--model", args.model]))
        known = {"group": group, "setting": setting, "photos": args.limit, "model": args.model}
        with rows_file.open("a") as file:  # all photos of a setting at once: what is there is whole
            file.writelines(json.dumps(known | row) + "\n" for row in found)
        print(table_row(setting, found), flush=True)


def mean(rows: list[dict], *keys: str) -> float:
    values = []
    for row in rows:
        for key in keys:
            row = row[key]
        values.append(row)
    return statistics.fmean(values)


COLUMNS = (
    *("method", "photos", "evaluations to encode", "to decode", "mean MSE", "worst MSE", "PSNR of the mean"),
    *("photos whole", "rms of x_T", "excess kurtosis"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|"


def table_row(setting: str, rows: list[dict]) -> str:
    from ddim_edit.metrics import psnr_of_mean

    whole = sum(row["changed_8bit"] == 0 for row in rows)
    return (
        f"| {setting} | {len(rows)} | {mean(rows, 'evaluations', 'encode'):.0f} "
        f"| {mean(rows, 'evaluations', 'decode'):.0f} "
        f"| {mean(rows, 'mse'):.1e} | {max(row['mse'] for row in rows):.1e} "
        f"| {psnr_of_mean([row['mse'] for row in rows]):.1f} dB | {whole} "
        f"| {mean(rows, 'latent', 'rms'):.3f} | {mean(rows, 'latent', 'excess_kurtosis'):.2f} |"
    )


def draw(settings: dict[str, list[dict]], path: Path) -> None:
    """Error against evaluations, both log; the colour says how far x_T is from Gaussian."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=130, layout="constrained")
    axis = figure.subplots()
    kurtosis = [mean(rows, "latent", "excess_kurtosis") for rows in settings.values()]
    shapes = {"explicit": "s", "long": "s", "budget": "o", "goal": "*", "solvers": "^", "pairs": "D"}
    for (setting, rows), colour in zip(settings.items(), kurtosis, strict=True):
        x, y = mean(rows, "evaluations", "encode"), max(mean(rows, "mse"), 1e-16)
        shape = shapes[rows[0]["group"]]
        points = axis.scatter(
            x, y, c=[colour], vmin=min(kurtosis), vmax=max(kurtosis), marker=shape, s=70, cmap="viridis", zorder=3
        )
        # Neighbours put their names to either side.
        to_the_left = "target" in setting or "default" in setting
        offset = (-7, -3) if to_the_left else (6, -9 if "quadratic" in setting else 1)
        side = "right" if to_the_left else "left"
        axis.annotate(setting, (x, y), xytext=offset, ha=side, textcoords="offset points", fontsize=7)
    axis.margins(x=0.45)  # room for the names
    axis.set(xscale="log", yscale="log", xlabel="network evaluations to encode a photo", ylabel="mean MSE on [0, 1]")
    figure.colorbar(points, label="excess kurtosis of x_T (a Gaussian has 0)")
    axis.grid(alpha=0.3, which="both")
    with atomic(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--output", "-o", type=Path, default=Path("inversion"))
    parser.add_argument("--only", choices=sorted({group for group, _, _ in SETTINGS}))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="small")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    rows_file = args.output / "rows.jsonl"
    print(HEAD)
    if args.photos:
        measure(args, rows_file)
    settings: dict[str, list[dict]] = {}
    for row in rows_of(rows_file):
        settings.setdefault(row["setting"], []).append(row)
    if not args.photos:
        print("\n".join(table_row(setting, rows) for setting, rows in settings.items()))
    if settings:
        draw(settings, args.output / "pareto.png")


if __name__ == "__main__":
    main()
