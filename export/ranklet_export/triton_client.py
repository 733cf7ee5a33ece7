"""Ask a ranklet model on a Triton server what comes next. It lies beside config.pbtxt.

pip install 'tritonclient[http]'
python client.py localhost:8000 1,2571 [k]
"""

import json
import sys
from pathlib import Path

import numpy as np
from tritonclient import http

folder, (address, history) = Path(__file__).parent, sys.argv[1:3]
k = int(sys.argv[3]) if len(sys.argv) > 3 else 10
manifest = json.loads((folder / "manifest.json").read_text())

# Items are numbered from 1 in the order of their ids.
if manifest["id_type"] == "int64":
    ids = [str(number) for number in np.fromfile(folder / "items.i64", "<i8")]
else:
    texts, ends = (
        (folder / "items.utf8").read_bytes(),
        np.fromfile(folder / "items.ends.i64", "<i8"),
    )
    ids = [texts[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
index = {name: number for number, name in enumerate(ids, 1)}
events = [index[name] for name in history.split(",") if name in index]  # oldest first
if not events:
    sys.exit("no item of this history is in the catalogue: show what is popular")

arrays = {"history": np.array([events]), "k": np.array([[min(k, len(ids))]])}
for tensor in manifest["programs"]["model"]["inputs"]:  # times and kinds of events are unknown
    if tensor["name"] in ("since", "kind"):
        arrays[tensor["name"]] = np.zeros_like(arrays["history"])
    elif tensor["name"] == "until":
        arrays["until"] = np.zeros((1, 1), np.int64)
    elif tensor["name"] == "objective":
        asked = [kind == manifest["target"] for kind in ["", *manifest["kinds"]]]
        arrays["objective"] = np.array([asked], np.float32)
inputs = []
for name, array in arrays.items():
    inputs.append(http.InferInput(name, array.shape, "FP32" if array.dtype == "f4" else "INT64"))
    inputs[-1].set_data_from_numpy(array)
answer = http.InferenceServerClient(address).infer(folder.name, inputs)
for item, score in zip(answer.as_numpy("items")[0], answer.as_numpy("scores")[0], strict=True):
    sys.stdout.write(f"{ids[item - 1]}\t{score:.5f}\n")
