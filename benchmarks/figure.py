"""The figure of the benchmarks, ``speed.png``, from whatever ``results.json`` holds."""

from __future__ import annotations

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


def ratios(axes: Axes, results: dict[str, Any]) -> None:
    """Cost over AGeDi's, same network and ours by default, with the aim of each."""
    found = results.get("ratios", {})
    names = [name for name in LABELS if name in found]
    _plain(axes, "cost relative to AGeDi, one thread")
    if not names:
        axes.text(0.5, 0.5, "peers not installed", ha="center", transform=axes.transAxes, color=MUTED)
        return
    works = results.get("works", {})
    for row, name in enumerate(names):
        work = works.get(name, {})
        for suffix, shift, colour in (("", -0.17, BLUE), ("_default", 0.17, GREEN)):
            if name + suffix not in found:
                continue
            value = found[name + suffix]
            if f"{name}_default" not in found:  # measured with our default network alone
                shift, colour = 0.0, GREEN
            axes.barh(row + shift, value, height=0.3, color=colour)
            low, high = work.get(f"ratio{suffix}", {}).get("extremes", (value, value))
            axes.plot([low, high], [row + shift] * 2, color=INK, linewidth=1.2)
            axes.text(0.00014, row + shift + 0.01, f"{value:.2g}", va="center", fontsize=8, color="white")
        target = work.get("target", TARGETS.get(name))
        axes.plot([target] * 2, [row - 0.4, row + 0.4], color=VERMILION, linewidth=1.8, zorder=3)
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(0.0001, 1.3)
    axes.set_xticks([0.001, 0.01, 0.1, 1.0], ["1/1000", "1/100", "1/10", "1"])
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    handles = [
        axes.barh(0, 0, color=BLUE, label="same network"),
        axes.barh(0, 0, color=GREEN, label="our default network"),
        axes.plot([], [], color=VERMILION, linewidth=1.8, label="aim")[0],
    ]
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="upper center",
        bbox_to_anchor=(0.4, -0.05),
        ncols=3,
    )


def scaling(axes: Axes, results: dict[str, Any]) -> None:
    """Time of one denoiser evaluation against the atoms in one cell."""
    _plain(axes, "one denoiser evaluation, one cell")
    for name, colour, label in (("ours", BLUE, "published network"), ("default", GREEN, "our default network")):
        points = results.get("scaling", {}).get(name, [])
        if points:
            atoms = [p["atoms"] for p in points]
            seconds = [p["cpu_s"]["median"] for p in points]
            axes.loglog(atoms, seconds, "o-", color=colour, markersize=4, label=label)
            if name == "ours":
                axes.loglog(
                    atoms,
                    [seconds[-1] * n / atoms[-1] for n in atoms],
                    "--",
                    color=MUTED,
                    linewidth=0.9,
                    label="linear",
                )
    axes.set_xlabel("atoms", color=INK)
    axes.set_ylabel("CPU time / s", color=INK)
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
    """All four panels."""
    figure = Figure(figsize=(10.5, 7.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), height_ratios=(1.7, 0.8, 1.2))
    ratios(figure.add_subplot(grid[:, 0]), results)
    scaling(figure.add_subplot(grid[0, 1]), results)
    relaxation(figure.add_subplot(grid[1, 1]), results)
    demo(figure.add_subplot(grid[2, 1]), results)
    return figure


if __name__ == "__main__":
    draw(load()).savefig(FILE.with_name("speed.png"), dpi=150)
