"""C2PA manifests: signed statements inside a file of how it came about (by c2pa-python, the optional extra [c2pa])."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_jax.errors import UserError
from jukebox_jax.export.encoding import Format

# The containers of our formats that C2PA 2 says how to embed a manifest in, as c2pa-python does.
SIGNED_FORMATS = ("wav", "flac", "mp3")
_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Credentials:
    """What a manifest is signed with, in PEM: the chain of certificates, the signer's first, and the private key."""

    certificates: bytes
    key: bytes


def read_credentials(certificate: Path, key: Path) -> Credentials:
    """Reads both from files, and checks that there is something to sign with.

    Raises:
      UserError: c2pa-python is missing, or a file cannot be read.
    """
    try:
        import c2pa  # noqa: F401
    except ImportError:
        raise UserError(
            'C2PA manifests are signed by c2pa-python, which is missing: pip install "jukebox-jax[c2pa]", or leave the '
            "certificate out."
        ) from None
    found = []
    for path, begins in ((certificate, b"CERTIFICATE"), (key, b"PRIVATE KEY")):
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the path.") from None
        if b"-----BEGIN " not in found[-1] or begins not in found[-1]:
            raise UserError(f"{path} holds no {begins.decode().lower()} in PEM: give the file that does.")
    return Credentials(*found)


def check_signable(format: Format) -> None:
    """Raises UserError unless a manifest fits into such a file."""
    if format.name not in SIGNED_FORMATS:
        raise UserError(
            f"A C2PA manifest has no place in {format.name} files: choose {', '.join(SIGNED_FORMATS)}, or leave the "
            "certificate out."
        )


def signed(data: bytes, format: Format, title: str, provenance: Mapping[str, Any], credentials: Credentials) -> bytes:
    """The file with a manifest that says: created by this program, out of a trained model.

    Raises:
      UserError: a format without a place for it, or credentials that nothing can be signed with.
    """
    import c2pa

    check_signable(format)
    name, _, version = str(provenance.get("generator", "jukebox_jax")).partition(" ")
    agent = {"name": name, "version": version or "unknown"}
    created = {"action": "c2pa.created", "digitalSourceType": _AI, "softwareAgent": agent}
    manifest = {
        "claim_generator_info": [agent],
        "title": title,
        "format": format.mime,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
    try:
        algorithm = _algorithm(credentials.key)
        # No time stamp: that would be fetched from an authority on the network.
        info = c2pa.C2paSignerInfo(algorithm, credentials.certificates, credentials.key, None)
        out = io.BytesIO()
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
            builder.sign(signer, format.mime, io.BytesIO(data), out)
    except (c2pa.C2paError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The C2PA manifest cannot be signed ({reason}): give a key in PEM without a password, and the chain of "
            "its certificate, which must be made for signing (key usage digitalSignature, an extended one such as "
            "emailProtection)."
        ) from None
    return out.getvalue()


def _algorithm(key: bytes) -> bytes:
    """C2PA's name of the algorithm of a private key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    private = serialization.load_pem_private_key(key, password=None)
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    raise ValueError("C2PA knows no such key")


_CURVES = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}
