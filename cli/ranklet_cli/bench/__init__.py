"""The benchmark: the cost of a bundle on this machine, to size hardware and catch slowdowns.

    command.py    ``ranklet bench``
    run.py        the whole benchmark
    bundles.py    load time, cold start, bundles with random weights
    timers.py     back-to-back calls, stages, appended events, requests at random times
    limit.py      bytes that a call must read, and the memory bandwidth
    report.py     the results, and their comparison with an older report
    show.py       a report as text and as a picture

* Requests are random known ids of the bundle, and go through the public ``Ranker``.
* Timers take turns in blocks, so that the noise of a shared machine reaches all of them.
* The same requests also go straight to the engine: the difference is the cost of ids and checks.
"""
