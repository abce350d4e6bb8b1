"""Charts of the results as SVG, by hand: small panels of bars, one for each metric."""

from __future__ import annotations

import statistics
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.report import TITLES, Rounds, peers_of, values

HIGHER = (
    *("rps_1", "rps_32", "rps_256", "new_connections"),
    *("new_connections_resumed", "bulk_up", "bulk_down", "bulk_up_8"),
)
LOWER = (
    *("p99_32", "paced_p99", "storm_p99", "bulk_p99"),
    *("cpu_per_1k_requests", "cpu_per_gb", "rss_per_idle_connection", "rss_idle"),
)
COLOURS = {"remora": "#0b6e4f", "envoy": "#a23b72"}
OTHER = "#8d99ae"
COLUMNS, WIDTH, BAR, HEAD, GAP, NAME = 4, 250, 17, 34, 18, 92


def write_charts(folder: Path, rounds: Rounds) -> None:
    """Write throughput.svg and cost.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "throughput.svg").write_text(_chart("higher is better", HIGHER, rounds))
    (folder / "cost.svg").write_text(_chart("lower is better", LOWER, rounds))


def _chart(title: str, metrics: tuple[str, ...], rounds: Rounds) -> str:
    peers = peers_of(rounds)
    shown = [metric for metric in metrics if any(values(rounds, peer, metric) for peer in peers)]
    high = HEAD + len(peers) * BAR + GAP
    width = COLUMNS * WIDTH
    height = 30 + -(-len(shown) // COLUMNS) * high
    panels = [
        _panel(metric, rounds, peers, place % COLUMNS * WIDTH, 30 + place // COLUMNS * high)
        for place, metric in enumerate(shown)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            '<g font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="8" y="18" font-size="13" fill="#333333">medians, {escape(title)}</text>',
            *panels,
            "</g>\n</svg>\n",
        ]
    )


def _panel(metric: str, rounds: Rounds, peers: list[str], left: int, top: int) -> str:
    medians = {
        peer: statistics.median(seen) for peer in peers if (seen := values(rounds, peer, metric))
    }
    room, most = WIDTH - NAME - 62, max(medians.values()) or 1
    title = (
        f'<text x="{left + 8}" y="{top + 20}" font-weight="bold">{escape(TITLES[metric])}</text>'
    )
    lines = [title]
    for row, (peer, value) in enumerate(medians.items()):
        y = top + HEAD + row * BAR
        length = max(value / most * room, 1)
        number = f"{value:,.0f}" if most >= 100 else f"{value:.3g}"
        colour = COLOURS.get(peer, OTHER)
        lines += [
            f'<text x="{left + NAME - 6}" y="{y + 9}" text-anchor="end">{escape(peer)}</text>',
            f'<rect x="{left + NAME}" y="{y}" width="{length:.1f}" height="11" fill="{colour}"/>',
            f'<text x="{left + NAME + length + 5:.1f}" y="{y + 9}">{number}</text>',
        ]
    return "\n".join(lines)
