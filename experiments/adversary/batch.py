"""Rows of the evidence on several replicates, two at a time, each in a process of its own.

    python experiments/adversary/batch.py --rows sft recommended --replicates 0-9 --part test --hours 2.5

Rows that stand in the results already are skipped, and none is started after ``--hours``: the same command goes on.
Replicates come one after the other, so that all rows of one share its cached warm-ups. Logs: ``runs/adversary/logs``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rows import HERE, ROWS, lines_of

LOGS = Path("runs/adversary/logs")


def replicates(text: str) -> list[int]:
    """``0-3`` and ``100,102``, mixed."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--replicates", type=replicates, required=True)
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--jobs", type=int, default=2, help="at a time; each takes one core")
    parser.add_argument("--hours", type=float, default=2.5)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"no row {unknown[0]}: choose of {', '.join(ROWS)}")
    queue = [
        (row, replicate)
        for replicate in arguments.replicates
        for row in arguments.rows
        if replicate not in lines_of(arguments.results / arguments.part, row)
    ]
    LOGS.mkdir(parents=True, exist_ok=True)
    end, total = time.monotonic() + 3600 * arguments.hours, len(queue)
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    failed = 0
    while running or (queue and time.monotonic() < end):
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                failed += process.returncode != 0
                print(f"{time.strftime('%H:%M')} {job[0]} {job[1]}: exit code {process.returncode}", flush=True)
        busy = {replicate for _, replicate in running}  # its warm-ups are made once, by the first of its rows
        ready = [job for job in queue if job[1] not in busy]
        if ready and len(running) < arguments.jobs and time.monotonic() < end:
            row, replicate = ready[0]
            queue.remove(ready[0])
            command = [sys.executable, str(HERE / "run.py"), row, str(replicate), "--part", arguments.part]
            log = (LOGS / f"{row}-{replicate}-{arguments.part}.log").open("w")
            running[row, replicate] = subprocess.Popen(
                [*command, "--results", str(arguments.results)], stdout=log, stderr=subprocess.STDOUT
            )
        else:
            time.sleep(1)
    print(f"{total - len(queue) - failed} of {total} rows made, {failed} failed (logs: {LOGS}), {len(queue)} left")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
