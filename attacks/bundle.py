"""What attacks work on: a copy of the shipped bundle, with secrets beside it."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ranklet.bundle.manifest import FILE_NAMES

SHIPPED = Path(__file__).parents[1] / "models" / "ml-latest-small"
SECRET = b"a secret that no bundle may read or replace\n"


class Bundle:
    """A copy of the shipped bundle.

    Attributes:
        folder: Its folder.
        outside: A folder beside it, of which nothing may be read or written.
        manifest: The document of manifest.json, without its digest.
    """

    def __init__(self, folder: Path) -> None:
        """Copy the shipped bundle and write secrets into a fresh folder."""
        self.folder, self.outside = folder / "bundle", folder / "outside"
        self.become(SHIPPED)
        self.outside.mkdir()
        for name in ("weights.bin", "encode.onnx", "secret.txt"):
            (self.outside / name).write_bytes(SECRET * 100_000)

    def become(self, folder: Path) -> None:
        """Copy a bundle in the place of the one before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_bytes())
        del self.manifest["digest"]

    @contextmanager
    def graph(self, name: str = "encode") -> Iterator[onnx.ModelProto]:
        """Change a graph."""
        path = self.folder / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        yield model
        path.write_bytes(model.SerializeToString())

    @contextmanager
    def array(self, name: str, dtype: str) -> Iterator[np.memmap[Any, Any]]:
        """Change an array in place."""
        array = np.memmap(self.folder / name, dtype, "r+")
        yield array
        array.flush()

    def write(self, name: str, content: bytes) -> None:
        """Write a file anew."""
        (self.folder / name).write_bytes(content)
        self.manifest["files"].setdefault(name, {})

    def sign(self) -> None:
        """Make sizes and digests fit, as whoever can write a bundle does."""
        files = self.manifest.get("files")
        for name, file in files.items() if isinstance(files, dict) else ():
            path = self.folder / name
            if isinstance(file, dict) and name in FILE_NAMES and path.is_file():
                file |= {"size": path.stat().st_size, "sha256": _sha256(path.read_bytes())}
        text = json.dumps(self.manifest, sort_keys=True)
        document = {**self.manifest, "digest": _sha256(text.encode())}
        (self.folder / "manifest.json").write_text(json.dumps(document))

    def watch(self) -> None:
        """Mark the secrets as read long ago: the next read of any process shows.

        OSError: This file system does not note when a file is read.
        """
        for path in self.outside.iterdir():
            os.utime(path, (1, time.time()))
            path.read_bytes()
            if path.stat().st_atime == 1:
                raise OSError(f"{path} does not note reads (noatime): choose another --folder")
            os.utime(path, (1, time.time()))

    def touched(self) -> list[str]:
        """Return the secrets that were read or changed since ``watch``."""
        return [
            path.name
            for path in sorted(self.outside.iterdir())
            if path.stat().st_atime != 1 or path.read_bytes() != SECRET * 100_000
        ]


Make = Callable[[Bundle], None]
ATTACKS: dict[str, Make] = {}


def attack(make: Make) -> Make:
    """Register an attack under the name of its function."""
    ATTACKS[make.__name__] = make
    return make


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
