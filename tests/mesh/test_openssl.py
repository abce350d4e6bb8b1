"""The private names of pyOpenSSL: that they are there, and what happens on the day they are not."""

from __future__ import annotations

import pytest

from mesh import openssl


def test_this_pyopenssl_has_every_name() -> None:
    assert openssl.missing_names() == []
    assert openssl.available()


def test_a_name_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_NAMES", (*openssl._NAMES, "SSL_never_was"))
    assert openssl.missing_names() == ["lib.SSL_never_was"]


def test_a_pyopenssl_without_the_private_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", gone)
    assert openssl.missing_names() == ["No module named 'OpenSSL._util'"]
