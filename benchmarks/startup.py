"""How long `evalkit --help` and `import evalkit` take, beside lm-eval's in an environment of its own.

python benchmarks/startup.py --json
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import alternate, arguments, finish, peer_environment, show, time_command

PEER = "lm-eval==0.4.13"


def main() -> None:
    """Measure both sides in turn and print the medians."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    mine, peer = Path(sys.executable).parent, peer_environment("peer-lm-eval", [PEER])
    seconds = alternate(
        {
            "evalkit_help": lambda: time_command([mine / "evalkit", "--help"]),
            "peer_help": lambda: time_command([peer / "lm-eval", "--help"]),
            "evalkit_import": lambda: time_command([mine / "python", "-c", "import evalkit"]),
            "peer_import": lambda: time_command([peer / "python", "-c", "import lm_eval"]),
        },
        n_runs=7,
    )
    figures = {f"{name}_s": round(value, 4) for name, value in seconds.items()}
    for what in ("help", "import"):
        figures[f"{what}_speedup"] = round(seconds[f"peer_{what}"] / seconds[f"evalkit_{what}"], 2)
    show(
        "Start-up, median of 7",
        ("", "evalkit", PEER, "ratio"),
        [
            (
                name,
                f"{seconds[f'evalkit_{key}']:.3f} s",
                f"{seconds[f'peer_{key}']:.3f} s",
                f"{figures[key + '_speedup']}x",
            )
            for name, key in (("--help", "help"), ("import", "import"))
        ],
    )
    finish(options, figures)


if __name__ == "__main__":
    main()
