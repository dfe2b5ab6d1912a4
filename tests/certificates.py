"""Certificates for tests: an authority of the test's own, and what it vouches for."""

import ssl
from pathlib import Path

import trustme


class Authority:
    """One certificate authority; `file` holds its certificate in PEM, for those who shall trust it."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self._name = name
        self.file = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def server(self, *names: str) -> ssl.SSLContext:
        """What a server with a certificate for these names or addresses uses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context

    def server_files(self, *names: str) -> tuple[Path, Path]:
        """The same as files in PEM: the certificate, and its key."""
        issued = self._ca.issue_cert(*names)
        certificate, key = (self._directory / f"{self._name}-server.{what}" for what in ("crt", "key"))
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key
