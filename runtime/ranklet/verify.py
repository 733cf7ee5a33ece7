"""Verification of a bundle on the target machine: digests, contracts, golden answers."""

import json
from dataclasses import dataclass
from pathlib import Path

from ranklet.bundle.graph import check_graphs
from ranklet.bundle.manifest import GOLDEN, Manifest
from ranklet.engine.sessions import Provider
from ranklet.golden import check_golden
from ranklet.ranker import Ranker
from ranklet.values import folder_path


@dataclass(frozen=True)
class VerifyReport:
    """The result of a successful verification."""

    files: int
    bytes: int
    items: int
    golden: int
    max_score_difference: float
    provider: str


def verify(path: str | Path, *, provider: Provider = "auto", threads: int = 1) -> VerifyReport:
    """Check digests, the graph's contract and the golden answers of a bundle.

    Args:
        path: Folder of the bundle.
        provider: Where the golden answers are computed again.
        threads: As in ``Ranker.load``.

    Raises:
        BundleError: Something is not as the manifest says, or an answer differs.
        ProviderError: CUDA was asked for and does not run.
    """
    path = folder_path(path)
    manifest = Manifest.read(path)
    check_graphs(path, manifest, with_weights=True)
    ranker = Ranker.load(path, provider=provider, threads=threads, check_digests=False)
    differences = check_golden(ranker)
    files = manifest.files
    return VerifyReport(
        files=len(files),
        bytes=sum(file.size for file in files.values()),
        items=len(ranker),
        golden=len(json.loads((path / GOLDEN).read_bytes())),
        max_score_difference=max(differences),
        provider=ranker.provider,
    )
