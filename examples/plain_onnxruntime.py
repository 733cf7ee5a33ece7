"""Rank with numpy and onnxruntime alone, as a program in any language can.

python plain_onnxruntime.py models/ml-latest-small 1,2571 [k]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, history = Path(sys.argv[1]), sys.argv[2].split(",")
k = int(sys.argv[3]) if len(sys.argv) > 3 else 10
manifest = json.loads((folder / "manifest.json").read_text())

# Items are numbered from 1 in the order of their ids; 0 pads histories on the right.
if manifest["id_type"] == "int64":
    ids = [str(number) for number in np.fromfile(folder / "items.i64", "<i8")]
else:  # all texts, one after another, and where each of them ends
    texts = (folder / "items.utf8").read_bytes()
    ends = np.fromfile(folder / "items.ends.i64", "<i8")
    ids = [texts[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
index = {name: number for number, name in enumerate(ids, 1)}
events = [index[name] for name in history if name in index]  # oldest first, of any length
if not events:
    sys.exit("no item of this history is in the bundle: show what is popular, see popularity.f32")

inputs = {"history": np.array([events]), "k": np.array([min(k, len(ids))])}
if "since" in [tensor["name"] for tensor in manifest["programs"]["model"]["inputs"]]:
    inputs |= {"since": np.zeros_like(inputs["history"]), "until": np.array([0])}  # unknown times
if manifest.get("kinds"):  # unknown kinds of events; what is asked for is the kind of the training
    asked = [kind == manifest["target"] for kind in ["", *manifest["kinds"]]]
    inputs |= {"kind": np.zeros_like(inputs["history"]), "objective": np.array([asked], np.float32)}
model = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
items, scores = model.run(["items", "scores"], inputs)
for number, score in zip(items[0], scores[0], strict=True):
    print(f"{ids[number - 1]}\t{score:.5f}")
