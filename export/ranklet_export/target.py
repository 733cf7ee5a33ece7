"""Target of a bundle: what a new bundle may take the place of."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ranklet.bundle.manifest import FILE_NAMES, MANIFEST, SIGNATURE
from ranklet.errors import BundleError
from ranklet.files.atomic import atomic_folder
from ranklet.values import reason, show


@contextmanager
def new_bundle(bundle: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of ``bundle`` in the end, or vanishes.

    Raises:
        BundleError: As ``check_target``, of what is there in the end.
    """
    try:
        with atomic_folder(bundle, replace=replace) as folder:
            yield folder
            check_target(bundle, replace=replace)  # it may be hours since the first check
    except FileExistsError as error:
        raise BundleError(_taken(bundle)) from error


def check_target(bundle: Path, *, replace: bool) -> None:
    """Check that a bundle may be written here before the work begins.

    Raises:
        BundleError: The path is not UTF-8, or something is there that must not be replaced.
    """
    try:
        str(bundle.resolve()).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"{bundle.resolve()} is not UTF-8, which onnx needs: rename it"
        ) from error
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{bundle} can't be written: {reason(error)}") from error
    if not bundle.exists():
        return
    if not replace:
        raise BundleError(_taken(bundle))
    try:
        if not (bundle / MANIFEST).is_file():  # a pipe would be waited for
            raise ValueError
        manifest = json.loads((bundle / MANIFEST).read_bytes())
        is_bundle = {"format", "files", "items"} <= set(manifest)
        named = set(manifest["files"])  # also by an older format
        parts = FILE_NAMES | {MANIFEST, SIGNATURE} | named
        strange = sorted({path.name for path in bundle.iterdir()} - parts)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        is_bundle = False
    if not is_bundle:
        raise BundleError(f"{bundle} is not a bundle, so it is not replaced")
    if strange:
        raise BundleError(
            f"{bundle} is not replaced: it holds {show(strange[0])}, which is no part of a bundle"
        )


def _taken(bundle: Path) -> str:
    return f"{bundle} exists: choose another folder, or replace it (--replace)"
