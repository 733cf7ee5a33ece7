"""Attacks by the folder: links, pipes and devices in place of files."""

import os

from attacks.bundle import Bundle, attack


def _instead(bundle: Bundle, name: str) -> str:
    """Remove a file and return its path."""
    (bundle.folder / name).unlink()
    return str(bundle.folder / name)


@attack
def pipe_for_a_graph(bundle: Bundle) -> None:
    """A named pipe: whoever opens it waits for ever."""
    bundle.sign()
    os.mkfifo(_instead(bundle, "encode.onnx"))


@attack
def pipe_for_the_manifest(bundle: Bundle) -> None:
    """A named pipe in place of the manifest."""
    os.mkfifo(_instead(bundle, "manifest.json"))


@attack
def device_for_weights(bundle: Bundle) -> None:
    """/dev/zero never ends."""
    os.symlink("/dev/zero", _instead(bundle, "weights.bin"))


@attack
def folder_for_a_graph(bundle: Bundle) -> None:
    """A folder in place of a file."""
    os.mkdir(_instead(bundle, "score.onnx"))


@attack
def loop_of_links(bundle: Bundle) -> None:
    """A link to itself."""
    path = _instead(bundle, "append.onnx")
    os.symlink(path, path)


@attack
def link_to_nowhere(bundle: Bundle) -> None:
    """A link whose target is not there: a writer would make it."""
    os.symlink(bundle.outside / "new", _instead(bundle, "README.md"))


@attack
def zip_for_a_folder(bundle: Bundle) -> None:
    """An archive expands (attacks/torch_dos of safetensors); of a bundle nothing is unpacked."""
    bundle.write("weights.bin", b"PK\x05\x06" + bytes(18))
    bundle.sign()


@attack
def pickle_for_a_file(bundle: Bundle) -> None:
    """CVE-2025-32434: a pickle runs code when it is loaded; no file of a bundle is one."""
    bundle.write("golden.json", b"cos\nsystem\n(S'touch outside'\ntR.")
    bundle.sign()


@attack
def file_that_is_not_listed(bundle: Bundle) -> None:
    """A library beside the graphs, which onnxruntime could be told to load: it is not read."""
    (bundle.folder / "libcustom.so").write_bytes(b"\x7fELF")
    bundle.sign()
