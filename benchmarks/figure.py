"""The figures ``speed.png`` and ``gpu.png``, from whatever ``results.json`` and ``gpu.json`` hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from results import FILE, load

from adlayer.report.figures import PALETTE

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = PALETTE
INK, MUTED = "#1f2933", "#6b7684"
LABELS = {
    "sampling": "sampling,\nstructure and step",
    "sampling_guided": "sampling with\nforce guidance",
    "structure": "one structure at equal\nor better raw energy",
    "train_denoiser": "training step,\ndenoiser",
    "train_force_field": "training step\nwith force field",
    "memory_sampling": "peak memory,\nsampling",
    "memory_training": "peak memory,\ntraining",
}
GPU_LABELS = {
    "sampling": "sampling",
    "sampling_guided": "sampling with forces",
    "train_denoiser": "training step, denoiser",
    "train_force_field": "training step with forces",
}
TARGETS = {"structure": 1 / 100, "memory_sampling": 0.5, "memory_training": 0.5}
PARTS = ("import", "generate", "refine", "relax", "report")


def _plain(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.tick_params(colors=MUTED, labelsize=9, length=3, which="both")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_axisbelow(True)


def _legend(axes: Axes, **keywords: Any) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, **keywords)


@dataclass(frozen=True)
class Row:
    """Ratios of one work: value, low and high of the same network and of our default one, and the aim."""

    label: str
    sides: dict[str, tuple[float, float, float]]
    target: float


def rows_of(results: dict[str, Any]) -> list[Row]:
    """What ``results.json`` compares."""
    found, works, rows = results.get("ratios", {}), results.get("works", {}), []
    for name in (name for name in LABELS if name in found):
        work, sides = works.get(name, {}), {}
        for side, key in (("same", name), ("default", f"{name}_default")):
            if key in found:
                suffix = key.removeprefix(name)
                low, high = work.get(f"ratio{suffix}", {}).get("extremes", 2 * (found[key],))
                sides[side] = (found[key], low, high)
        if "default" not in sides:  # measured with our default network alone
            sides = {"default": sides["same"]}
        rows.append(Row(LABELS[name], sides, work.get("target", TARGETS.get(name))))
    return rows


def rows_of_gpu(results: dict[str, Any]) -> list[Row]:
    """What ``gpu.json`` compares: times, and the peak memory of those works."""
    works = {name: work for name, work in results.get("works", {}).items() if "peer" in work["sides"]}
    times, memory = [], []
    for name, work in works.items():
        of = {side: work["sides"][side]["wall_s"] for side in ("same", "default", "peer")}
        peer = of.pop("peer")
        sides = {
            side: (
                cost["median"] / peer["median"],
                cost["quartiles"][0] / peer["quartiles"][1],
                cost["quartiles"][1] / peer["quartiles"][0],
            )
            for side, cost in of.items()
        }
        what, where = GPU_LABELS[name.removesuffix(f"_{work['batch']}")], f"{work['batch']} structures"
        times.append(Row(f"{what},\n{where}", sides, work["target"]))
        used = {side: work["sides"][side].get("gpu_mib") for side in ("same", "default", "peer")}
        if all(used.values()):
            ratio = {side: 3 * (used[side] / used["peer"],) for side in ("same", "default")}
            memory.append(Row(f"peak memory, {what},\n{where}", ratio, 0.5))
    return times + memory


def ratios(axes: Axes, title: str, rows: list[Row], lowest: float) -> None:
    """Cost over AGeDi's from ``lowest`` on, same network and ours by default, with the aim of each."""
    _plain(axes, title)
    if not rows:
        axes.text(0.5, 0.5, "peers not installed", ha="center", transform=axes.transAxes, color=MUTED)
        return
    highest = max(1.0, *(high for row in rows for _, _, high in row.sides.values()))
    for k, row in enumerate(rows):
        for side, (value, low, high) in row.sides.items():
            shift = 0.0 if len(row.sides) == 1 else {"same": -0.17, "default": 0.17}[side]
            axes.barh(k + shift, value, height=0.3, color={"same": BLUE, "default": GREEN}[side])
            axes.plot([low, high], [k + shift] * 2, color=INK, linewidth=1.2)
            axes.text(1.4 * lowest, k + shift + 0.01, f"{value:.2g}", va="center", fontsize=8, color="white")
        axes.plot([row.target] * 2, [k - 0.4, k + 0.4], color=VERMILION, linewidth=1.8, zorder=3)
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1.3 * highest)
    ticks = [n for n in (1000, 100, 10) if 1 / n > lowest]
    axes.set_xticks([*(1 / n for n in ticks), 1.0], [*(f"1/{n}" for n in ticks), "1"])
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    handles = [
        axes.barh(0, 0, color=BLUE, label="same network"),
        axes.barh(0, 0, color=GREEN, label="our default network"),
        axes.plot([], [], color=VERMILION, linewidth=1.8, label="aim")[0],
    ]
    _legend(axes, handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.05), ncols=3)


def curve(axes: Axes, points: list[tuple[int, float]], colour: str, label: str, style: str = "o-") -> None:
    """Seconds against atoms."""
    axes.loglog(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)


def linear(axes: Axes, points: list[tuple[int, float]]) -> None:
    """A line through the last point."""
    atoms, seconds = points[-1]
    axes.loglog(
        [n for n, _ in points],
        [seconds * n / atoms for n, _ in points],
        "--",
        color=MUTED,
        linewidth=0.9,
        label="linear",
    )


def scaling(axes: Axes, results: dict[str, Any]) -> None:
    """Time of one denoiser evaluation against the atoms in one cell."""
    _plain(axes, "one denoiser evaluation, one cell")
    for name, colour, label in (("ours", BLUE, "published network"), ("default", GREEN, "our default network")):
        points = [(p["atoms"], p["cpu_s"]["median"]) for p in results.get("scaling", {}).get(name, [])]
        if points:
            curve(axes, points, colour, label)
            if name == "ours":
                linear(axes, points)
    _scaled(axes, "CPU time / s")


def scaling_on_gpu(axes: Axes, results: dict[str, Any]) -> None:
    """The same, of one structure alone and of as many as fill the card, by structure."""
    _plain(axes, "one denoiser evaluation of a structure")
    for name, colour, label in (("same", BLUE, "published network"), ("default", GREEN, "our default network")):
        points = results.get("scaling", {}).get(name, {}).get("points", [])
        if points:
            together = [(p["atoms"], p["s_per_structure"]) for p in points]
            curve(axes, together, colour, f"{label}, card full")
            curve(axes, [(p["atoms"], p["alone_s"]["median"]) for p in points], colour, f"{label}, alone", "o:")
            if name == "same":
                linear(axes, together)
    _scaled(axes, "time / s")


def _scaled(axes: Axes, label: str) -> None:
    axes.set_xlabel("atoms", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(color="#e4e7eb", linewidth=0.7)
    if axes.lines:
        _legend(axes)


def relaxation(axes: Axes, results: dict[str, Any]) -> None:
    """Cost of a relaxation, batched and serial, on the same force field."""
    _plain(axes, "relaxation on the learned force field")
    content = results.get("relaxation", {})
    if content:
        for row, (name, colour) in enumerate((("serial", MUTED), ("batched", BLUE))):
            cost = content[name]["cpu_s"]
            axes.barh(row, cost["median"], height=0.5, color=colour)
            axes.plot(cost["extremes"], [row] * 2, color=INK, linewidth=1.2)
        axes.set_yticks([0, 1], ["ASE's BFGS,\nserial", "ours,\nbatched"], color=INK)
        axes.set_ylim(-0.7, 1.7)
        axes.set_xlabel("CPU seconds per structure", color=INK)


def demo(axes: Axes, results: dict[str, Any]) -> None:
    """What the demo's parts cost."""
    content = results.get("demo", {})
    _plain(axes, f"the demo, {content['n']} structures" if content else "the demo: not measured")
    if not content:
        axes.set(xticks=[], yticks=[])
        return
    for row, (name, colour) in enumerate(zip(PARTS, (MUTED, BLUE, SKY, ORANGE, GREEN), strict=True)):
        seconds = content["parts"][name]["cpu_s"]
        axes.barh(row, seconds, height=0.6, color=colour)
        axes.text(seconds, row, f" {seconds:.1f}", va="center", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(PARTS)), PARTS, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds", color=INK)


def draw(results: dict[str, Any]) -> Figure:
    """All four panels of ``results.json``."""
    figure = _figure(7.0)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), height_ratios=(1.7, 0.8, 1.2))
    title = "cost relative to AGeDi, one thread"
    ratios(figure.add_subplot(grid[:, 0]), title, rows_of(results), 1e-4)
    scaling(figure.add_subplot(grid[0, 1]), results)
    relaxation(figure.add_subplot(grid[1, 1]), results)
    demo(figure.add_subplot(grid[2, 1]), results)
    return figure


def draw_gpu(results: dict[str, Any]) -> Figure:
    """Both panels of ``gpu.json``."""
    figure = _figure(6.0)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
    title = f"cost relative to AGeDi, {results.get('card', {}).get('name', 'a GPU')}"
    ratios(figure.add_subplot(grid[0]), title, rows_of_gpu(results), 1e-2)
    scaling_on_gpu(figure.add_subplot(grid[1]), results)
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(10.5, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


if __name__ == "__main__":
    draw(load()).savefig(FILE.with_name("speed.png"), dpi=150)
    draw_gpu(load(FILE.with_name("gpu.json"))).savefig(FILE.with_name("gpu.png"), dpi=150)
