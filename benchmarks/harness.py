"""What all benchmarks share: a peer's own environment, fair alternation, a table, and one JSON line at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="end with one JSON line of figures and ratios")
    return parser


def peer_environment(name: str, requirements: Sequence[str], python: str = sys.executable) -> Path:
    """Return the folder of executables of an environment with the peer in it, made on first use.

    It lies beside the checkout's own environment; a marker file says that the installation was finished.
    """
    folder = ROOT / f".venv-{name}"
    marker = folder / ".requirements"
    if not marker.exists() or marker.read_text() != "\n".join(requirements):
        print(f"installing {', '.join(requirements)} into {folder.name} ...", file=sys.stderr)
        if python == sys.executable:
            venv.create(folder, with_pip=True, clear=True)
        else:
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, *requirements], check=True, stdout=sys.stderr)
        marker.write_text("\n".join(requirements))
    return folder / "bin"


def time_command(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> float:
    """Return the wall time of one run of a command, in seconds; a command that fails ends the benchmark."""
    begun = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return seconds


def alternate(sides: Mapping[str, Callable[[], float]], n_runs: int) -> dict[str, float]:
    """Measure all sides in turn, `n_runs` times after one warm-up, and return the medians."""
    for side in sides.values():
        side()
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(n_runs):
        for name, side in sides.items():
            seen[name].append(side())
    return {name: statistics.median(values) for name, values in seen.items()}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in plain text."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    print(f"{title}  ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)")
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(options: argparse.Namespace, figures: Mapping[str, float | str]) -> None:
    """Print the figures as one JSON line when asked to."""
    if options.json:
        print(json.dumps(dict(figures)))
