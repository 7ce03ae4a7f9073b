"""`make bench`: runs all benchmarks, prints tables and writes benchmarks/results.json.

A ratio compares the service with the baseline (`benchmarks/plain.py`), or two cases of the service, on the same machine
in the same run.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from app.settings import Settings
from app.wiring import compute_threads

from .listing import listing_rows
from .many import many_rows
from .measure import table
from .method import crf_rows, embedded_tower_rows, large_rows
from .peers import peer_rows
from .presence import presence_row
from .service import service_rows
from .start import start_rows

RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    """Run all benchmarks."""
    console = Console(width=180)
    torch.set_num_threads(compute_threads(Settings()))
    stages, service = service_rows(console)
    service += [*many_rows(console), *listing_rows(console), *start_rows()]
    console.print(table("The service, embedded backbone", service))
    with console.status("measuring the baseline takes minutes"):
        method = [*crf_rows(), presence_row(), *embedded_tower_rows(), *large_rows()]
    console.print(table("The method against the baseline", method))
    with console.status("measuring the peers takes minutes"):
        peers = peer_rows()
    console.print(table("Peers, random weights: only time is compared", peers))
    results = {
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "segment": stages,
        "ratios": [asdict(row) | {"met": row.met} for row in (*service, *method, *peers)],
    }
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    console.print(f"Written to {RESULTS.name}.")


if __name__ == "__main__":
    main()
