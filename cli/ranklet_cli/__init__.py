"""The command line: declare options, call the library, print.

    main.py       entry point, which names a missing click or onnxruntime
    group.py      command group, and the exit status of each error
    options.py    shared options, parameter types and output
    tables.py     columns of text
    open.py       settings, event logs, runs and bundles named on the command line
    bench/        benchmark of a bundle

* Heavy imports stay inside the commands, so that help and ranking work without torch.
* With ``--json``, stdout holds one JSON document; progress and notes go to stderr.
* Shell completion is click's: ``eval "$(_RANKLET_COMPLETE=bash_source ranklet)"``.
"""
