"""Command line: `python -m tests.chaos --seed 7 --seconds 300 --kills 30`. Exit status 1 on a violation."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.command_line import command_line

from .invariants import JOBS_END_S
from .run import Options, run
from .troubles import TROUBLES


def main() -> int:
    """Read the options, run, and tell what was found."""
    parser = command_line("chaos", __doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="longest time of the troubles")
    parser.add_argument("--kills", type=int, default=30, help="times that each kind of trouble comes")
    parser.add_argument(
        "--jobs-end", type=float, default=JOBS_END_S, help="seconds in which all jobs must end after the last trouble"
    )
    parser.add_argument("--clients", type=int, default=3, help="clients at a time")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always", help="the store's policy")
    parser.add_argument(
        "--only", nargs="*", choices=sorted(TROUBLES), default=sorted(TROUBLES), help="kinds of trouble"
    )
    parser.add_argument("--keep", type=Path, help="folder for the logs and the journal, which must not exist yet")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary) / "run"
        folder.mkdir(parents=True)
        options = Options(
            seed=given.seed, seconds=given.seconds, kills=given.kills, clients=given.clients, fsync=given.fsync,
            kinds=tuple(given.only), jobs_end_s=given.jobs_end,
        )  # fmt: skip
        return 1 if run(options, folder).violations else 0


if __name__ == "__main__":
    sys.exit(main())
