"""Inference of a bundle's graphs on onnxruntime: encode, append, score.

This module runs before the others import onnxruntime, which reads the environment set here.
"""

import importlib.util
import os

from ranklet.extras import pip_install

if importlib.util.find_spec("onnxruntime") is None:
    raise ImportError(
        f"ranklet needs onnxruntime, and none is installed: {pip_install('cpu')} "
        "(or the extra gpu for CUDA, never both)"
    )
# From 1.32 on onnxruntime reports each process to its maker, keeps an id of the device on disk, and
# warns if it can't. Its own switch comes too late: only this variable is read during the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
