"""Time and memory of a command with all processes that it starts. Linux only."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def run_measured(command: Sequence[str]) -> tuple[str, float, float, int]:
    """Run a command; return what it printed, its wall and processor time in seconds, and its peak memory in bytes.

    The memory is the largest sum of the proportional set sizes of its processes.
    """
    begun, used = time.perf_counter(), processor_time()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = [0]

        def look() -> None:
            peak[0] = max(peak[0], sum(map(proportional_bytes, tree_of(process.pid))))

        with watching(look):
            printed, _ = process.communicate()
            seconds = time.perf_counter() - begun
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)[:500]} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
    return printed, seconds, processor_time() - used, peak[0]


@contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` up to ten times a second in a thread, until the end of the block."""
    ended = threading.Event()

    def watch() -> None:
        # Linux walks over all pages for the sizes of a process: at most a twentieth of one processor.
        taken = 0.0
        while not ended.wait(max(0.1, 20 * taken)):
            looked = time.perf_counter()
            look()
            taken = time.perf_counter() - looked

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def processor_time() -> float:
    """Seconds that the ended processes which this one started have used, with those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            left += map(int, _read(children).split())
    return found


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process (a page that n processes share counts as an nth); 0 when it has ended."""
    return _rollup(pid).get("Pss", 0)


def own_bytes(pid: int) -> int:
    """Anonymous memory of a process: what it holds itself, without mapped files and shared memory; 0 when it has ended.

    Mapped files are left out since the system takes their pages back when somebody needs the memory.
    """
    return _rollup(pid).get("Anonymous", 0)


def name_of(pid: int) -> str:
    """What the process calls itself."""
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _rollup(pid: int) -> dict[str, int]:
    lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()[1:]
    return {name: int(size.split()[0]) * 1024 for name, size in (line.split(":", 1) for line in lines)}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""
