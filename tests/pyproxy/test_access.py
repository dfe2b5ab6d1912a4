import os
import socket
import ssl
from pathlib import Path

import pytest

from pyproxy.access import Access, Refused, admitted, why
from pyproxy.config import BackendAccess
from tests.certificates import Authority

FILE = "backend.password_file: expected"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file for passwords, of the right owner and mode."""
    path = tmp_path / "passwords"
    path.touch(mode=0o600)
    return path


def access(file: Path, username: str = "") -> Access:
    return Access(BackendAccess(username=username, password_file=str(file)))


# --- passwords --------------------------------------------------------------------------------------------------------


def test_without_a_file_there_is_no_auth() -> None:
    assert Access(BackendAccess()).auths() == []
    assert Access(BackendAccess()).problems() == []


@pytest.mark.parametrize(
    ("content", "passwords"),
    [
        (b"secret", [b"secret"]),
        (b"secret\n", [b"secret"]),
        (b"new\nold\n", [b"new", b"old"]),
        (b"new\r\nold\r\n", [b"new", b"old"]),
        (b" a b\t\n", [b" a b\t"]),
        (b"\xff\x00\xc3\n", [b"\xff\x00\xc3"]),
    ],
)
def test_a_line_is_a_password_byte_for_byte_and_the_first_is_tried_first(
    file: Path, content: bytes, passwords: list[bytes]
) -> None:
    file.write_bytes(content)
    assert access(file).auths() == [[b"AUTH", each] for each in passwords]


def test_a_user_of_an_acl_is_named(file: Path) -> None:
    file.write_bytes(b"secret\n")
    assert access(file, "jürgen").auths() == [[b"AUTH", "jürgen".encode(), b"secret"]]


def test_the_file_is_read_again_each_time(file: Path) -> None:
    file.write_bytes(b"one\n")
    entry = access(file)
    assert entry.auths() == [[b"AUTH", b"one"]]
    file.write_bytes(b"two\n")
    assert entry.auths() == [[b"AUTH", b"two"]]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "one password, or two on two lines, got an empty line"),
        (b"\n", "one password, or two on two lines, got an empty line"),
        (b"a\n\nb\n", "one password, or two on two lines, got an empty line"),
        (b"a\nb\nc\n", "one password, or two on two lines, got 3 lines"),
        (b"x" * 16385, "at most 16384 bytes a line, got more"),
    ],
)
def test_a_file_that_is_wrong_is_said_to_be(file: Path, content: bytes, got: str) -> None:
    file.write_bytes(content)
    assert access(file).problems() == [f"{FILE} {got}"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_read_or_write_is_refused(file: Path, mode: int) -> None:
    file.write_bytes(b"secret\n")
    file.chmod(mode)
    assert access(file).problems() == [f"{FILE} a file for its owner only (chmod 600), got mode {mode:03o}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_somebody_else_is_refused(file: Path) -> None:
    file.write_bytes(b"secret\n")
    os.chown(file, 65534, -1)
    assert access(file).problems() == [f"{FILE} a file of user 0 or root, got one of 65534"]


def test_a_file_that_is_not_there_is_refused(file: Path) -> None:
    file.unlink()
    assert access(file).problems() == [f"{FILE} a readable file, got no such file or directory"]


def test_a_pipe_is_refused_and_not_waited_for(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)
    assert access(file).problems() == [f"{FILE} a regular file, got something else"]


def test_no_password_is_shown_by_what_knows_it(file: Path) -> None:
    file.write_bytes(b"secret\nsecret\nsecret\n")
    entry = access(file)
    assert "secret" not in repr(entry) + str(vars(entry)) + str(entry.problems())


# --- answers to AUTH --------------------------------------------------------------------------------------------------

WRONG = [b"WRONGPASS invalid username-password pair or user is disabled.", b"ERR invalid password"]


def test_ok_lets_in() -> None:
    assert admitted(b"", left=[]) is True


@pytest.mark.parametrize("error", WRONG)
def test_a_wrong_password_leads_to_the_next(error: bytes) -> None:
    assert admitted(error, left=["another"]) is False


@pytest.mark.parametrize("error", WRONG)
def test_a_wrong_last_password_is_refused(error: bytes) -> None:
    with pytest.raises(Refused, match=r"^refused the password of backend\.password_file"):
        admitted(error, left=[])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            b"ERR AUTH <password> called without any password configured for the default user. Are you sure?",
            "asks for no password, and backend.password_file has one",
        ),
        (
            b"ERR Client sent AUTH, but no password is set",
            "asks for no password, and backend.password_file has one",
        ),
        (b"ERR unknown command 'AUTH', with args beginning with: 'secret'", "did not accept AUTH (ERR)"),
        (b"secret secret", "did not accept AUTH (an answer that is none to it)"),
    ],
)
def test_any_other_answer_is_refused_and_never_repeated(error: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        admitted(error, left=["another"])
    assert str(caught.value) == reason


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_without_tls_there_is_no_context() -> None:
    assert Access(BackendAccess()).tls() is None


def test_certificate_and_name_are_verified_and_nothing_below_1_2_is_spoken(tmp_path: Path) -> None:
    context = Access(BackendAccess(tls=True, tls_ca=str(Authority(tmp_path).file))).tls()
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_only_the_named_authority_is_trusted(tmp_path: Path) -> None:
    context = Access(BackendAccess(tls=True, tls_ca=str(Authority(tmp_path).file))).tls()
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_an_authority_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    none = Access(BackendAccess(tls=True, tls_ca=str(tmp_path / "none.pem")))
    assert none.problems() == ["backend.tls_ca: expected a readable file, got no such file or directory"]
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    other = Access(BackendAccess(tls=True, tls_ca=str(garbage)))
    assert other.problems() == ["backend.tls_ca: expected certificates in PEM, got something else"]


# --- what went wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (ConnectionError("no connection within 1 s"), "no connection within 1 s"),
        (ConnectionResetError(), "closed the connection"),
        (Refused("answered ECHO with -NOPERM"), "answered ECHO with -NOPERM"),
    ],
)
def test_a_reason_is_in_the_systems_words_and_never_empty(error: OSError, reason: str) -> None:
    assert why(error) == reason
