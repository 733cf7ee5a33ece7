"""The command line: declare options, call the library, print.

    main.py       the entry point; it names a missing click or onnxruntime
    group.py      the group of commands, and the exit status of each error
    options.py    options, parameter types and output that commands share
    tables.py     columns of text
    open.py       settings, event logs, runs and bundles that a command names
    bench/        the benchmark of a bundle

* Heavy imports stay inside the commands, so that help and ranking work without torch.
* With ``--json`` stdout holds one JSON document and nothing else; progress and notes go to stderr.
* Shell completion is click's: ``eval "$(_RANKLET_COMPLETE=bash_source ranklet)"``.
"""
