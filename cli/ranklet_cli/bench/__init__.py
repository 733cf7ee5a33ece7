"""Measure what a bundle costs on this machine, to choose hardware and to see what got slower.

    report.py     what a benchmark found, as rows of plain values
    run.py        the whole of it
    bundles.py    open bundles and time that; make some of random weights
    cases.py      calls one after another
    single.py     one request: where its time goes, and what one more event costs
    waiting.py    requests that arrive at random and wait in line
    limit.py      bytes that a call must read, and how fast this machine reads
    comparing.py  a report beside an older one
    table.py      a report as text
    drawing.py    a report as a picture
    hardware.py   what this machine is
    processes.py  fresh processes, and the memory of one

* Requests are random known ids of the bundle, and go through the public ``Ranker``.
* Whatever is timed takes turns in blocks, so that the noise of a shared machine hits all alike.
* The same requests also go straight to the session: the difference is what Python costs.
"""

from ranklet.machine import describe_machine, machine
from ranklet_cli.bench.comparing import compare
from ranklet_cli.bench.drawing import plot
from ranklet_cli.bench.report import BenchReport, read_report
from ranklet_cli.bench.run import benchmark
from ranklet_cli.bench.table import format_table

__all__ = [
    "BenchReport",
    "benchmark",
    "compare",
    "describe_machine",
    "format_table",
    "machine",
    "plot",
    "read_report",
]
