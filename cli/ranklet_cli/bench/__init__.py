"""The benchmark: the cost of a bundle on this machine, to size hardware and catch slowdowns.

    command.py    ``ranklet bench``
    run.py        the whole benchmark
    bundles.py    load time, cold start, bundles with random weights
    timers.py     back-to-back calls, stages, appended events, requests at random times
    limit.py      the lower bound of a call by memory bandwidth
    report.py     the results, and their comparison with an older report
    show.py       a report as text and as a picture

* Requests are random ids of the catalogue and go through the public ``Ranker``.
* Timers take turns in blocks, so that all of them share the noise of the machine.
* The same requests also go straight to the engine: the difference is the cost of ids and checks.
"""
