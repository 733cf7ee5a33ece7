"""Attacks by the manifest: paths, numbers and shapes that lie."""

import json
from typing import Any

from attacks.bundle import Bundle, attack


def _tensor(bundle: Bundle, program: str, way: str, name: str) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = bundle.manifest["programs"][program][way]
    return next(tensor for tensor in tensors if tensor["name"] == name)


@attack
def file_in_parent_folder(bundle: Bundle) -> None:
    """CVE-2024-5187: a file whose name leads out of the folder, to be read or overwritten."""
    bundle.manifest["files"]["../outside/secret.txt"] = {"size": 1, "sha256": ""}
    bundle.sign()


@attack
def file_at_absolute_path(bundle: Bundle) -> None:
    """Path traversal by an absolute name: joining it to a folder gives the name alone."""
    bundle.manifest["files"][str(bundle.outside / "secret.txt")] = {"size": 1, "sha256": ""}
    bundle.sign()


@attack
def program_in_parent_folder(bundle: Bundle) -> None:
    """CVE-2024-27318: a graph in ``sub/../../outside``, which a naive prefix check lets through."""
    bundle.manifest["programs"]["encode"]["file"] = "sub/../../outside/encode.onnx"
    bundle.sign()


@attack
def table_in_another_file(bundle: Bundle) -> None:
    """The item table is said to lie outside of the bundle, so its bytes would become scores."""
    bundle.manifest["table"]["file"] = "../outside/weights.bin"
    bundle.sign()


@attack
def table_in_the_ids(bundle: Bundle) -> None:
    """The item table is said to lie in another file of the bundle."""
    bundle.manifest["table"]["file"] = "titles.utf8"
    bundle.sign()


@attack
def table_elsewhere_in_its_file(bundle: Bundle) -> None:
    """The mapped table is another part of the weights than the one that the graphs use."""
    bundle.manifest["table"]["offset"] = 4096
    bundle.sign()


@attack
def table_behind_its_file(bundle: Bundle) -> None:
    """CVE-2024-27319: an offset behind the end reads what lies there in memory."""
    bundle.manifest["table"]["offset"] = 2**40
    bundle.sign()


@attack
def table_before_its_file(bundle: Bundle) -> None:
    """A negative offset reads what lies before the mapping."""
    bundle.manifest["table"]["offset"] = -4096
    bundle.sign()


@attack
def table_whose_size_wraps(bundle: Bundle) -> None:
    """Rows times columns is a small number in 64 bits (safetensors: ValidationOverflow)."""
    bundle.manifest["table"] |= {"rows": 2**32, "columns": 2**32}
    bundle.manifest |= {"items": 2**32 - 1, "width": 2**32}
    bundle.sign()


@attack
def items_beyond_memory(bundle: Bundle) -> None:
    """A catalogue of 2**62 items: a bias for each would be allocated before anything is read."""
    bundle.manifest["items"] = 2**62
    bundle.manifest["table"]["rows"] = 2**62 + 1
    bundle.sign()


@attack
def history_of_millions(bundle: Bundle) -> None:
    """Histories of 2**24 events: the first request took 20 seconds, and gigabytes."""
    bundle.manifest["max_length"] = 2**24
    bundle.manifest["programs"]["encode_long"]["lengths"][1] = 2**24
    bundle.manifest["programs"]["encode_rows"]["lengths"][1] = 2**24
    bundle.sign()


@attack
def shortest_history_of_billions(bundle: Bundle) -> None:
    """A warm-up ranks the shortest history of each program: here one of 2**40 events."""
    bundle.manifest["programs"]["encode_rows"]["lengths"][0] = 2**40
    bundle.sign()


@attack
def state_of_billions(bundle: Bundle) -> None:
    """A kept user has a state of 2**40 rows."""
    for way, name in (("inputs", "key_0"), ("outputs", "new_key_0")):
        _tensor(bundle, "append", way, name)["shape"][1] = 2**40
    bundle.sign()


@attack
def heads_of_billions(bundle: Bundle) -> None:
    """An explanation reads the attention of 2**40 heads."""
    _tensor(bundle, "encode_rows", "outputs", "attention")["shape"][1] = 2**40
    bundle.sign()


@attack
def many_users_are_billions(bundle: Bundle) -> None:
    """The check of codes scores as many users as the manifest says: 2**40."""
    bundle.manifest["programs"]["score_many"]["least_users"] = 2**40
    bundle.sign()


@attack
def axis_is_true(bundle: Bundle) -> None:
    """An axis of ``true``, which is an integer to Python."""
    _tensor(bundle, "append", "inputs", "events")["shape"][1] = True
    bundle.sign()


@attack
def axis_is_an_object(bundle: Bundle) -> None:
    """An axis that is an object, and raises where it is hashed or compared."""
    _tensor(bundle, "score", "inputs", "bias")["shape"][1] = {"a": 1}
    bundle.sign()


@attack
def axis_of_70_bits(bundle: Bundle) -> None:
    """An axis that no array can have."""
    _tensor(bundle, "score", "inputs", "bias")["shape"][1] = 2**70
    bundle.sign()


@attack
def bias_is_too_short(bundle: Bundle) -> None:
    """Fewer scored rows than items: the last items would be looked up behind the array."""
    for program in ("score", "score_many"):
        _tensor(bundle, program, "inputs", "bias")["shape"][1] = 64
    bundle.sign()


@attack
def history_of_floats(bundle: Bundle) -> None:
    """The manifest says that histories are floats, and the graph takes integers."""
    _tensor(bundle, "encode", "inputs", "history")["type"] = "tensor(float)"
    bundle.sign()


@attack
def kinds_that_no_graph_knows(bundle: Bundle) -> None:
    """Kinds of events that no graph takes: an input is missing at the first request."""
    bundle.manifest |= {"kinds": ["view", "buy"], "target": "buy"}
    bundle.sign()


@attack
def rounding_is_nan(bundle: Bundle) -> None:
    """Proofs compare with an error bound: with NaN each comparison is false."""
    bundle.manifest["rounding"]["row_error"] = float("nan")
    bundle.sign()


@attack
def rounding_is_negative(bundle: Bundle) -> None:
    """A negative error bound would prove every answer exact."""
    bundle.manifest["rounding"] = {"row_error": -1e9, "row_norm": -1e9}
    bundle.sign()


@attack
def number_beyond_floats(bundle: Bundle) -> None:
    """1e999 is infinity to Python, and no JSON for the next program."""
    bundle.manifest["quality"] = {"NDCG@10": float("inf")}
    bundle.sign()


@attack
def nested_deeply(bundle: Bundle) -> None:
    """Lists nested deeper than the stack (json_recursion_depth_limit of Triton)."""
    bundle.sign()
    path = bundle.folder / "manifest.json"
    deep = "[" * 50_000 + "]" * 50_000
    path.write_text(path.read_text().replace('"quality": {', f'"quality": {{"x": {deep}, ', 1))


@attack
def nested_a_little(bundle: Bundle) -> None:
    """Lists that the reader of JSON survives, and that a copy of them does not."""
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    bundle.manifest["training"]["model"]["x"] = deep
    text = json.dumps(bundle.manifest, sort_keys=True)
    (bundle.folder / "manifest.json").write_text(text)


@attack
def repeated_key(bundle: Bundle) -> None:
    """safetensors: a key twice, of which one program reads the first and another the last."""
    bundle.sign()
    path = bundle.folder / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"items": 1, ', 1))


@attack
def integer_of_digits(bundle: Bundle) -> None:
    """An integer of 900,000 digits, whose conversion takes quadratic time (CVE-2020-10735)."""
    bundle.sign()
    path = bundle.folder / "manifest.json"
    path.write_text(path.read_text().replace("9724", "9" * 900_000, 1))


@attack
def half_a_character(bundle: Bundle) -> None:
    """A lone surrogate in a text that is printed: the terminal's codec raises."""
    bundle.manifest["programs"]["encode"]["purpose"] = "\ud800"
    bundle.sign()


@attack
def manifest_of_gigabytes(bundle: Bundle) -> None:
    """A sparse manifest of a terabyte costs nothing (safetensors caps its header at 100 MB)."""
    bundle.sign()
    with (bundle.folder / "manifest.json").open("ab") as file:
        file.truncate(1 << 40)


@attack
def facts_of_another_form(bundle: Bundle) -> None:
    """Figures and settings for people that are lists, texts and null."""
    bundle.manifest["training"] = {"model": [], "train": 1.5}
    bundle.manifest["data"] |= {"digest": 1.5, "events": "many", "recent": [1]}
    bundle.sign()


@attack
def times_of_another_form(bundle: Bundle) -> None:
    """The unit of times is a list: it raises where a time is checked."""
    bundle.manifest["data"]["reading"] = {"time_unit": ["s"], "checked_unit": {}}
    bundle.sign()


@attack
def pool_of_everything(bundle: Bundle) -> None:
    """The pool is 2**62 items: odd, and the right answer is every item."""
    bundle.manifest["pool"] = {"factor": 2**62, "minimum": 2**62}
    bundle.sign()


@attack
def newer_format(bundle: Bundle) -> None:
    """A format of the future, whose fields mean something else."""
    bundle.manifest["format"] = 10**4_000
    bundle.sign()
