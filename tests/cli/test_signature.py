"""``ranklet sign`` and ``ranklet verify --key``: whose bundle this is, file by file."""

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import call, run
from ranklet import Ranker

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def write_keys(
    path: Path, key: Key, password: serialization.KeySerializationEncryption = PLAIN
) -> tuple[Path, Path]:
    private, public = path.with_suffix(".pem"), path.with_suffix(".pub")
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, password))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(PEM, kind))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "ours", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    run("sign", bundle, "--key", keys[0])
    return bundle


def test_a_signed_bundle_is_verified_ranks_and_may_be_moved(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = signed.rename(tmp_path / "elsewhere")
    assert f"signed by the owner of {keys[1]}" in run("verify", moved, "--key", keys[1]).stdout
    assert len(Ranker.load(moved, provider="cpu").rank([], k=3).items) == 3
    run("verify", moved)


def test_a_signed_bundle_of_links_is_verified(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A cache of a hub has links to its files, a deployment one to the folder."""
    links = tmp_path / "links"
    links.mkdir()
    for file in signed.iterdir():
        (links / file.name).symlink_to(file)
    (tmp_path / "current").symlink_to(links)
    run("verify", links, "--key", keys[1])
    run("verify", tmp_path / "current", "--key", keys[1])


def test_a_signed_bundle_may_be_replaced(signed: Path) -> None:
    item = Ranker.load(signed, provider="cpu").ids[0]
    run("catalogue", "remove", signed, item, "--replace")
    assert not (signed / "model.sig").exists()


def test_signing_again_replaces_the_signature(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = write_keys(tmp_path / "new", ec.generate_private_key(ec.SECP384R1()))
    run("sign", signed, "--key", private)
    run("verify", signed, "--key", public)
    assert call("verify", signed, "--key", keys[1]).exit_code == 3


def test_a_bundle_without_a_signature_is_refused(
    tiny_bundle: Path, keys: tuple[Path, Path]
) -> None:
    result = call("verify", tiny_bundle, "--key", keys[1])
    assert (result.exit_code, "model.sig is missing: the bundle is not" in result.output) == (
        3,
        True,
    )


def rewrite_weights(bundle: Path) -> None:
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[-1] ^= 1
    (bundle / "weights.bin").write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (rewrite_weights, "Hash mismatch for 'weights.bin'"),
    "another model card": (lambda b: (b / "README.md").write_text("ours"), "for 'README.md'"),
    "a file more": (lambda b: (b / "more.txt").touch(), "Extra files found .* more.txt"),
    "a hidden file more": (lambda b: (b / ".gitignore").touch(), "Extra files .* .gitignore"),
    "a file less": (lambda b: (b / "README.md").unlink(), "Missing files .* README.md"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_not_as_it_was_signed_is_named(
    signed: Path, keys: tuple[Path, Path], change: Callable[[Path], object], message: str
) -> None:
    change(signed)
    result = call("verify", signed, "--key", keys[1])
    assert result.exit_code == 3
    assert message.split(" .* ")[-1] in result.output


def test_a_manifest_that_is_consistent_with_other_files_is_no_signature(
    signed: Path, keys: tuple[Path, Path], sign_again: Callable[[Path], None]
) -> None:
    rewrite_weights(signed)
    sign_again(signed)
    result = call("verify", signed, "--key", keys[1])
    assert (result.exit_code, "Hash mismatch for 'manifest.json'" in result.output) == (3, True)


@pytest.fixture
def sign_again() -> Callable[[Path], None]:
    from ranklet import Manifest
    from ranklet.bundle.folder import describe_files

    def make(bundle: Path) -> None:
        manifest = Manifest.read(bundle, check_digests=False)
        Manifest(**{**vars(manifest), "files": describe_files(bundle)}).write(bundle)

    return make


def test_the_key_of_another_is_refused(signed: Path, tmp_path: Path) -> None:
    _, public = write_keys(tmp_path / "theirs", ec.generate_private_key(ec.SECP256R1()))
    result = call("verify", signed, "--key", public)
    assert (result.exit_code, f"by the owner of {public}: Key mismatch" in result.output) == (
        3,
        True,
    )


def forged(signed: Path) -> None:
    """Change what was signed, and keep the signature."""
    path = signed / "model.sig"
    document = json.loads(path.read_text())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"]).replace(b"README", b"readme")
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(document))


ODD: dict[str, Callable[[Path], object]] = {
    "forged": forged,
    "empty": lambda b: (b / "model.sig").write_bytes(b""),
    "cut": lambda b: (b / "model.sig").write_bytes((b / "model.sig").read_bytes()[:-40]),
    "binary": lambda b: (b / "model.sig").write_bytes(bytes(range(256))),
    **{
        text[:9]: lambda b, text=text: (b / "model.sig").write_text(text)  # type: ignore[misc]
        for text in ("{}", "[]", "null", "7", '{"verificationMaterial": {}}', "[" * 10**5)
    },
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_signature_is_refused_in_one_line(
    signed: Path, keys: tuple[Path, Path], change: Callable[[Path], object]
) -> None:
    change(signed)
    result = call("verify", signed, "--key", keys[1], "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"Error: {signed / 'model.sig'} is no signature of this bundle")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 900


KEYS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "RSA": lambda path: write_keys(path, rsa.generate_private_key(65537, 2048)),
    "Ed25519": lambda path: write_keys(path, ed25519.Ed25519PrivateKey.generate()),
    "secp256k1": lambda path: write_keys(path, ec.generate_private_key(ec.SECP256K1())),
    "no key": lambda path: (path.write_text("key"), path)[1:] * 2,  # type: ignore[dict-item]
}


@pytest.mark.parametrize("make", KEYS.values(), ids=KEYS)
def test_a_key_of_another_kind_is_refused(
    signed: Path, tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]
) -> None:
    private, public = make(tmp_path / "odd")
    result = call("sign", signed, "--key", private)
    assert (result.exit_code, f"can't be signed with {private}" in result.output) == (4, True)
    result = call("verify", signed, "--key", public)
    assert (result.exit_code, f"{public} is no public key on a" in result.output) == (4, True)


def test_a_key_with_a_password_is_refused(signed: Path, tmp_path: Path) -> None:
    secret = serialization.BestAvailableEncryption(b"word")
    private, _ = write_keys(tmp_path / "odd", ec.generate_private_key(ec.SECP256R1()), secret)
    result = call("sign", signed, "--key", private)
    assert (result.exit_code, "Password was not given" in result.output) == (4, True)


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for command, key in zip(("sign", "verify"), keys, strict=True):
        result = call(command, signed, "--key", key)
        assert (result.exit_code, "[sign]" in result.output) == (1, True)


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    before = (signed / "model.sig").read_bytes()
    rewrite_weights(signed)
    result = call("sign", signed, "--key", keys[0])
    assert (result.exit_code, "is not what the manifest says" in result.output) == (3, True)
    assert (signed / "model.sig").read_bytes() == before
