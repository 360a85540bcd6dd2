"""Cameras over TLS: what is recorded, what is refused, in which words, and how often it is tried again."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.camera import Camera, pictures
from tests.support.ingest import Ear, Stage

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import SourceError, SourceUnreachableError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.lean import LeanEngine, tls
from nvrstore.limits import STOP_S
from nvrstore.media.nal import split_lengths

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)
HERE = x509.IPAddress(ip_address("127.0.0.1"))


@dataclass(frozen=True)
class Authority:
    """Who signs certificates. `file`: what goes into `ca_file`."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    file: Path


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def authority(folder: Path, name: str = "authority") -> Authority:
    """One that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(name)).public_key(key.public_key()).serial_number(1)
    built = built.not_valid_before(now - 10 * DAY).not_valid_after(now + 10 * DAY)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = built.sign(key, hashes.SHA256())
    file = folder / f"{name}.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return Authority(key, signed, file)


def certificate(
    folder: Path,
    by: Authority | None = None,
    *,
    names: tuple[x509.GeneralName, ...] = (HERE,),
    begins: timedelta = -DAY,
    ends: timedelta = DAY,
) -> Path:
    """A camera's certificate with its key, in one file: signed by somebody, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    issuer = named("camera") if by is None else by.certificate.subject
    built = x509.CertificateBuilder().subject_name(named("camera")).issuer_name(issuer).public_key(key.public_key()).serial_number(7)
    built = built.not_valid_before(now + begins).not_valid_after(now + ends)
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = built.sign(key if by is None else by.key, hashes.SHA256())
    path = folder / "camera.pem"
    plain = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + plain)
    return path


@contextmanager
def session(url: str, **request: Any) -> Iterator[Ear]:
    """Who hears a running source; stopped and gone at the end."""
    ear = Ear()
    source = LeanEngine()(SourceRequest("gate", lambda: Endpoint(url), **{"timeout_s": 10.0, **request}), ear, SYSTEM_CLOCK)
    source.start()
    try:
        yield ear
    finally:
        source.stop()
        assert source.join(STOP_S)


def whole(ear: Ear) -> bool:
    """Whether the samples are the camera's first pictures, all of them, in order."""
    expected = pictures()
    return all(split_lengths(sample.data) == next(expected) for sample in ear.of())


def test_a_camera_over_tls_is_recorded(tmp_path: Path) -> None:
    """Its self-signed certificate is not looked at, as with the other engine."""
    with Camera(tls=certificate(tmp_path), on_play=lambda peer: peer.play(200)) as camera, session(camera.url) as ear:
        ear.hear(200)
        assert whole(ear)


@pytest.mark.parametrize("own", [False, True], ids=["authority", "self-signed"])
def test_a_certificate_that_is_good_is_recorded_with(tmp_path: Path, own: bool) -> None:
    """`tls_verify` with the authority in `ca_file`, or with the camera's own self-signed certificate there."""
    by = None if own else authority(tmp_path)
    path = certificate(tmp_path, by)
    options = {"tls_verify": "1", "ca_file": str(path if by is None else by.file)}
    with Camera(tls=path, on_play=lambda peer: peer.play(60)) as camera, session(camera.url, options=options) as ear:
        ear.hear(60)
        assert whole(ear)


@pytest.mark.parametrize(
    ("fields", "known", "words", "hint"),
    [
        ({"names": (x509.DNSName("camera"),)}, True, "for another address", "name"),
        ({"names": (x509.IPAddress(ip_address("10.0.0.5")),)}, True, "for another address", "name"),
        ({"begins": -5 * DAY, "ends": -DAY}, True, "has expired", "new certificate"),
        ({"begins": DAY, "ends": 5 * DAY}, True, "not valid yet", "clock"),
        ({}, False, "authority of its certificate is not known", "ca_file"),
    ],
    ids=["name", "address", "expired", "early", "stranger"],
)
def test_a_certificate_that_does_not_pass_is_refused_in_words(
    tmp_path: Path, fields: dict[str, Any], known: bool, words: str, hint: str
) -> None:
    """What is wrong with it, and the next step; nothing is said to the camera, and no login is shown to it."""
    by = authority(tmp_path)
    ca_file = by.file if known else authority(tmp_path, "other").file
    with (
        Camera(tls=certificate(tmp_path, by, **fields)) as camera,
        session(camera.url, options={"tls_verify": "1", "ca_file": str(ca_file)}) as ear,
    ):
        error = ear.end()
        assert isinstance(error, SourceUnreachableError)
        assert words in error.message
        assert camera.url in error.message
        assert hint in error.hint
        assert not camera.requests


def test_a_wrong_host_name_is_told_as_one(tmp_path: Path) -> None:
    """Where the URL has a name and not an address."""
    by = authority(tmp_path)
    path = certificate(tmp_path, by, names=(x509.DNSName("camera"),))
    with Camera(tls=path) as camera:
        url = camera.url.replace("127.0.0.1", "localhost")
        with session(url, options={"tls_verify": "1", "ca_file": str(by.file)}) as ear:
            error = ear.end()
    assert "for another name" in error.message
    assert "URL" in error.hint


def test_a_self_signed_certificate_is_told_as_one(tmp_path: Path) -> None:
    """The hint says into which option it belongs."""
    with Camera(tls=certificate(tmp_path)) as camera, session(camera.url, options={"tls_verify": "1"}) as ear:
        error = ear.end()
    assert "signed by itself" in error.message
    assert "ca_file" in error.hint


def test_a_file_of_certificates_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Before anything is connected to."""
    (tmp_path / "nonsense").write_text("nonsense")
    for name in ("nothing", "nonsense"):
        with session("rtsps://127.0.0.1:1/main", options={"ca_file": str(tmp_path / name)}) as ear:
            assert "ca_file" in ear.end().message


def test_a_port_that_speaks_no_tls_is_told(tmp_path: Path) -> None:
    """And the other way round."""
    with Camera() as camera, session(camera.url.replace("rtsp:", "rtsps:"), timeout_s=0.3) as ear:
        assert isinstance(ear.end(), SourceError)
    with Camera(tls=certificate(tmp_path)) as camera, session(camera.url.replace("rtsps:", "rtsp:"), timeout_s=0.3) as ear:
        assert isinstance(ear.end(), SourceError)


def test_a_refused_certificate_makes_no_storm_of_tries() -> None:
    """An hour with a camera whose certificate does not pass: tries get rarer, and there is one open gap."""
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_code, refused.verify_message = 10, "certificate has expired"
    error = tls.failed(refused, "rtsps://10.0.0.5/main")
    stage = Stage()
    for _ in range(3600):
        stage.run(1.0, step_s=1.0)
        for source in stage.puppets.made:
            source.end(error)
    assert len(stage.puppets.made) < 200
    assert len(stage.book.gaps()) == 1
    assert "has expired" in stage.supervisor.status().reason
