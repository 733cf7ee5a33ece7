"""``ranklet sign``, and the check of ``ranklet verify --key``: who made a bundle.

The signature is that of the package model-signing: an ECDSA key, and the SHA-256 of every file in
the folder. Its own commands read it, and make and check signatures of sigstore in the same place.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ranklet.bundle.manifest import SIGNATURE, Manifest
from ranklet.errors import BundleError, InputError, RankletError
from ranklet.files.atomic import atomic_write
from ranklet_cli.options import FILE, FOLDER, json_flag, print_json

# What model-signing raises for odd keys (of RSA, encrypted) and odd signatures, which it reads key
# by key; a longer list would be its pydantic, protobuf and json.
DIGESTS = re.compile(r": Expected .*?\)\\?', Actual .*?\)\\?'")  # binary, in its list of files
ODD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--key", type=FILE, required=True, help="Private key, PEM, on a NIST curve.")
@json_flag
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign every file of a BUNDLE with a private key, into model.sig beside them.

    \b
    Examples:
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
      ranklet sign models/ml-latest-small --key key.pem
      ranklet verify models/ml-latest-small --key key.pub
    """
    from model_signing import signing

    Manifest.read(bundle)  # what is damaged is not signed
    with _named(InputError, f"{bundle} can't be signed with {key}"):
        config = signing.Config().use_elliptic_key_signer(private_key=key)
        with TemporaryDirectory() as folder:
            path = Path(folder, SIGNATURE)
            config.set_hashing_config(_all_others()).sign(bundle, path)
            atomic_write(bundle / SIGNATURE, path.read_bytes())
    if as_json:
        return print_json({"path": bundle / SIGNATURE})
    click.echo(f"{bundle / SIGNATURE}; check it with ranklet verify {bundle} --key PUBLIC.pem")


def check_signature(bundle: Path, key: Path) -> None:
    """Check that the owner of a key signed all files of a bundle as they are.

    Raises:
        BundleError: There is no signature, or one of another key or of other files.
        InputError: The key can't be used.
    """
    from model_signing import verifying

    path = bundle / SIGNATURE
    if not path.is_file():
        raise BundleError(f"{path} is missing: the bundle is not signed")
    with _named(InputError, f"{key} is no public key on a NIST curve"):
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    with _named(BundleError, f"{path} is no signature of this bundle by the owner of {key}"):
        config.set_hashing_config(_all_others()).verify(bundle, path)


def _all_others() -> Any:
    """Return what is signed: all files but the signature, those of git too, and links as files."""
    from model_signing import hashing

    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    return config.set_allow_symlinks(True)


@contextmanager
def _named(kind: type[RankletError], what: str) -> Iterator[None]:
    """Turn the errors of model-signing into one of ours, and keep its warnings off stdout."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        with redirect_stdout(sys.stderr):
            yield
    except (*ODD, InvalidSignature, UnsupportedAlgorithm) as error:
        reason = DIGESTS.sub("", str(error)).replace("\\'", "'").partition("\n")[0]
        raise kind(f"{what}: {reason[:300] or type(error).__name__}") from error
