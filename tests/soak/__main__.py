"""Command line: `python -m tests.soak --minutes 2 --clients 4`. Exit status 1 if memory grows, or at an error."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.command_line import command_line

from .run import Options, run


def main() -> int:
    """Read the options, run, and tell what was found."""
    defaults = Options(seed=0)
    parser = command_line("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="time of the load")
    parser.add_argument("--clients", type=int, default=defaults.clients, help="clients at a time")
    parser.add_argument("--categories", type=int, default=defaults.categories, help="of each client")
    parser.add_argument("--warm-up", type=float, help="minutes in which memory may grow; a third of the time if absent")
    parser.add_argument("--backbone", default=defaults.backbone, help="as EXEMPLAR_BACKBONE")
    parser.add_argument("--max-growth", type=float, default=defaults.max_growth, help="of resident memory, as a share")
    given = parser.parse_args()
    options = Options(
        seed=given.seed, minutes=given.minutes, clients=given.clients, categories=given.categories,
        backbone=given.backbone, max_growth=given.max_growth, warm_up_minutes=given.warm_up,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder))
    return 1 if report.errors or report.too_much(options) else 0


if __name__ == "__main__":
    sys.exit(main())
