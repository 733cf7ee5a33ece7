"""The graphs of a bundle on onnxruntime: encode, append, score.

This is run before any module of the engine imports onnxruntime, which reads what stands here.
"""

import importlib.util
import os

if importlib.util.find_spec("onnxruntime") is None:
    raise ImportError(
        "ranklet needs onnxruntime, and none is installed: pip install 'ranklet[cpu]' "
        "(or 'ranklet[gpu]' for CUDA, never both)"
    )
# From 1.32 on onnxruntime tells its maker of each process, keeps an id of the device on disk, and
# warns where it can't. Its own switch comes too late: only this is read while it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
