"""A run as a table on screen, as the README's markdown and as a plot. All three come from the same JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import OURS, Row, summarise

if TYPE_CHECKING:
    from rich.console import Console

TITLES = {
    "ct": ("C-STORE, 512 KiB CT slices", "instances/s", "association"),
    "small": ("C-STORE, 32 KiB objects in series", "instances/s", "association"),
    "small-studies": ("C-STORE, 32 KiB objects, a study each", "instances/s", "association"),
    "frames": ("DICOMweb, 512 KiB frames", "frames/s", "client"),
}


def print_tables(run: dict[str, Any], console: Console) -> None:
    """Every scenario as a table, then what the figures do not show."""
    from rich.table import Table

    rows = summarise(run["cells"])
    for scenario in _scenarios(rows):
        title, unit, who = TITLES[scenario]
        table = Table(title=f"{title}: {unit}, median (lowest to highest)", title_justify="left")
        for name in ("server", f"{who}s", unit, "p50 ms", "p99 ms", "CPU ms each", "peak MiB"):
            table.add_column(name, justify="left" if name == "server" else "right")
        table.add_column("ours / it", justify="right")
        table.add_column("not stored, lost, remarks")
        for row in (row for row in rows if row.scenario == scenario):
            table.add_row(
                _label(run, row.server),
                str(row.parallel),
                f"{row.rate:,.0f} ({row.rate_low:,.0f} to {row.rate_high:,.0f})",
                f"{row.p50_ms:.1f}",
                f"{row.p99_ms:.1f}",
                "" if row.cpu_ms is None else f"{row.cpu_ms:.2f}",
                f"{row.peak_pss_bytes / 2**20:,.0f}",
                ratio_text(row),
                remarks(row),
                style="bold" if row.server == OURS else None,
            )
        console.print(table)
    machine = run["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {machine['file_system']}, "
        f"{machine['date']}, load before {machine['load_before']}"
    )


def ratio_text(row: Row) -> str:
    """`2.31×`, with its lower bound and the number of pairs when there are enough of them for one."""
    if row.ratio is None:
        return ""
    bound = f" (≥ {row.ratio_low:.2f}, {row.pairs} pairs)" if row.ratio_low is not None else ""
    return f"{row.ratio:.2f}×{bound}"


def remarks(row: Row) -> str:
    """Failures, losses and doubts, in words; empty when there is nothing to say."""
    parts = [f"{number} × {name}" for name, number in sorted(row.failures.items())]
    if row.lost:
        parts.append(f"{row.lost} acknowledged objects missing")
    if row.note:
        parts.append(row.note)
    for error in row.errors[:1]:
        lines = error.splitlines()
        parts.append(lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}")
    return "; ".join(parts)


def markdown(run: dict[str, Any]) -> str:
    """The README's tables: a server a line, a column for each parallelism."""
    rows = summarise(run["cells"])
    machine = run["machine"]
    out = []
    for scenario in _scenarios(rows):
        title, unit, who = TITLES[scenario]
        mine = [row for row in rows if row.scenario == scenario and row.parallel]
        degrees = sorted({row.parallel for row in mine})
        heads = [f"{degree} {who}{'s' if degree > 1 else ''}" for degree in degrees]
        out.append(f"**{title}, {unit}** (in brackets: Hounsfield's rate over the server's)\n")
        out.append(f"| server | {' | '.join(heads)} | CPU ms each | peak memory | when it says success |")
        out.append(f"|---|{'---:|' * (len(heads) + 2)}---|")
        for server in dict.fromkeys(row.server for row in mine):
            cells = {row.parallel: row for row in mine if row.server == server}
            figures = [_figure(cells.get(degree)) for degree in degrees]
            busiest = cells[max(cells)]
            cpu = "" if busiest.cpu_ms is None else f"{busiest.cpu_ms:.2f}"
            peak = max(row.peak_pss_bytes for row in cells.values()) / 2**20
            label = _label(run, server)
            label = f"**{label}**" if server == OURS else label
            durable = run["servers"].get(server, {}).get("durable", "")
            lost = sum(row.lost or 0 for row in cells.values())
            refused = sum(sum(row.failures.values()) for row in cells.values())
            if lost or refused:
                durable += f"; in this run {refused} failed and {lost} acknowledged were missing"
            out.append(f"| {label} | {' | '.join(figures)} | {cpu} | {peak:,.0f} MiB | {durable} |")
        out.append("")
    settings = run["settings"]
    out.append(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['distribution']}, {machine['file_system']}; "
        f"{machine['date'][:10]}; medians of {settings['rounds']} rounds of {settings['seconds']:g} s, "
        f"servers interleaved, one after another on the same machine as the load generator."
    )
    return "\n".join(out) + "\n"


def plot(run: dict[str, Any], path: Path) -> None:
    """Bars of the median rates, one panel per scenario, whiskers from the lowest to the highest round."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in summarise(run["cells"]) if row.parallel]
    scenarios = _scenarios(rows)
    figure, axes = plt.subplots(len(scenarios), 1, figsize=(10, 4.2 * len(scenarios)), squeeze=False)
    for axis, scenario in zip(axes[:, 0], scenarios, strict=True):
        title, unit, who = TITLES[scenario]
        mine = [row for row in rows if row.scenario == scenario]
        degrees = sorted({row.parallel for row in mine})
        servers = list(dict.fromkeys(row.server for row in mine))
        height = 0.8 / len(degrees)
        shades = plt.get_cmap("Blues")(
            [0.45 + 0.4 * n / max(1, len(degrees) - 1) for n in range(len(degrees))]
        )
        for index, degree in enumerate(degrees):
            found = {row.server: row for row in mine if row.parallel == degree}
            values = [found[server].rate if server in found else 0.0 for server in servers]
            low = [found[s].rate - found[s].rate_low if s in found else 0.0 for s in servers]
            high = [found[s].rate_high - found[s].rate if s in found else 0.0 for s in servers]
            places = [place + index * height for place in range(len(servers))]
            label = f"{degree} {who}{'s' if degree > 1 else ''}"
            bars = axis.barh(
                places, values, height * 0.92, xerr=[low, high], label=label, color=shades[index]
            )
            axis.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=8)
        axis.set_yticks([place + 0.4 - height / 2 for place in range(len(servers))])
        for text, server in zip(
            axis.set_yticklabels([_label(run, server) for server in servers]), servers, strict=True
        ):
            text.set_fontweight("bold" if server == OURS else "normal")
        axis.invert_yaxis()
        axis.set_xlabel(f"{unit}, median; whiskers: lowest and highest round")
        axis.set_title(title, loc="left")
        axis.legend(loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    machine = run["machine"]
    caption = f"{machine['cpu']}, {machine['cores']} cores, {machine['file_system']}, {machine['date'][:10]}"
    figure.text(0.01, 0.002, caption, fontsize=8)
    figure.tight_layout(rect=(0, 0.01, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _figure(row: Row | None) -> str:
    if row is None or not row.rounds:
        return "n/a"
    text = f"{row.rate:,.0f}"
    if row.ratio is None:
        return text
    bound = f", ≥ {row.ratio_low:.2f}" if row.ratio_low is not None and row.pairs >= 15 else ""
    return f"{text} ({row.ratio:.2f}×{bound})"


def _label(run: dict[str, Any], server: str) -> str:
    label: str = run["servers"].get(server, {}).get("label", server)
    return label


def _scenarios(rows: Sequence[Row]) -> list[str]:
    return [name for name in TITLES if any(row.scenario == name and row.parallel for row in rows)]
