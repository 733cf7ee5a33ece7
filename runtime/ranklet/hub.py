"""Bundles on the Hugging Face Hub; the extra ``hub`` installs what this needs.

A bundle that was downloaded once is a folder of links in the cache of the hub, and is found there
without a network (``HF_HUB_OFFLINE=1``).
"""

from pathlib import Path
from typing import Any

from ranklet.bundle.manifest import FILE_NAMES, MANIFEST, SIGNATURE, Manifest
from ranklet.errors import BundleError
from ranklet.extras import pip_install
from ranklet.values import show

FILES = [MANIFEST, SIGNATURE, *sorted(FILE_NAMES)]


def _library() -> Any:  # noqa: ANN401 (a module)
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise BundleError(f"huggingface_hub is not installed: {pip_install('hub')}") from error
    return huggingface_hub


def download(name: str, revision: str | None = None, digest: str | None = None) -> Path:
    """Return the folder of a bundle, which is downloaded where it is not in the cache.

    Args:
        name: ``"owner/name"``.
        revision: A branch, tag or commit; None: the main branch.
        digest: That of the manifest, to refuse any other bundle.

    Raises:
        BundleError: There is none, it can't be reached, or it has another digest.
    """
    library = _library()
    try:
        path = library.snapshot_download(name, revision=revision, allow_patterns=FILES)
    except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
        at = "" if revision is None else f" at {show(revision)}"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(f"{show(name)}{at} can't be loaded from the hub: {reason[0]}") from error
    folder = Path(path)
    if digest is not None and (found := Manifest.read(folder).digest) != digest:
        raise BundleError(f"{show(name)} has the digest {found}, not {show(digest)}")
    return folder


def upload(bundle: Path, name: str, *, private: bool = False) -> str:
    """Put a bundle on the hub in one commit, and return the address of that commit.

    Raises:
        BundleError: The bundle is damaged, or the hub refuses it.
    """
    library = _library()
    Manifest.read(bundle)
    try:
        library.create_repo(name, private=private, exist_ok=True)
        commit = library.upload_folder(
            repo_id=name,
            folder_path=bundle,
            allow_patterns=FILES,
            delete_patterns="*",  # what the bundle of an earlier commit had
            commit_message="Bundle of ranklet",
        )
    except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
        raise BundleError(f"{show(name)} was not pushed: {error}") from error
    return str(commit.commit_url)
