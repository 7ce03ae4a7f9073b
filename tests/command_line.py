"""Command lines of the long tests: chaos, fuzz and soak."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser
from random import SystemRandom


def command_line(name: str, description: str | None) -> ArgumentParser:
    """Options of `python -m tests.<name>`, with `--seed`; has SIGTERM end what the process has started, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = ArgumentParser(prog=f"python -m tests.{name}", description=description)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10_000), help="of all choices")
    return parser
