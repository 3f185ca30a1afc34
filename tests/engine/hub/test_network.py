"""Network settings and answers of the hub: one sentence each, which names what to mend."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from tests.engine.hub.stand_in_hub import REPO, Hub, serving
from tqchat.engine.hub.remote import network, transport
from tqchat.engine.hub.remote.download_errors import DownloadFailed
from tqchat.engine.hub.resolve import resolve
from tqchat.errors import TqchatError

TOKENS = "https://huggingface.co/settings/tokens"


@pytest.fixture(autouse=True)
def no_network_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    close_session()
    yield
    close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the waits that the hub asked for; nothing waits."""
    found: list[float] = []

    def back_off(amount: float, growing: bool, cancelled: object) -> None:
        if not growing:
            found.append(amount)

    monkeypatch.setattr(transport, "back_off", back_off)
    return found


@pytest.fixture
def hub(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> Iterator[Hub]:
    with serving(llama_folder, tmp_path / "hub-cache", monkeypatch) as hub:
        yield hub


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def sentence() -> str:
    with pytest.raises(TqchatError) as caught:
        resolve(REPO)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert isinstance(caught.value, DownloadFailed)
    return text


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# Settings of this machine.


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", ["ALL_PROXY names a SOCKS proxy", "pip install socksio"]),
        ("https_proxy", "socks5h://127.0.0.1:9", ["https_proxy names a SOCKS proxy"]),
        ("HTTP_PROXY", "http://127.0.0.1:notaport", ["HTTP_PROXY is no proxy address", "http://host:port"]),
        ("HTTPS_PROXY", "http://127.0.0.1:99999", ["HTTPS_PROXY is no proxy address"]),
        ("HTTPS_PROXY", "http://[::1", ["HTTPS_PROXY is no proxy address"]),
        ("HTTPS_PROXY", "ftp://127.0.0.1:9", ["HTTPS_PROXY is no proxy address"]),
        ("HTTPS_PROXY", "http://:9", ["HTTPS_PROXY is no proxy address"]),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    monkeypatch.setattr(network, "find_spec", lambda _: None)
    monkeypatch.setenv(variable, value)
    text = sentence()
    assert all(word in text for word in words)
    assert hub.requests == []


def test_a_proxys_password_is_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:x")
    assert "secret" not in sentence()


def test_no_proxy_for_everything_ignores_the_proxies(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    assert resolve(REPO).is_dir()


def test_an_unreachable_proxy_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{free_port()}")
    text = sentence()
    assert "the proxy in HTTP_PROXY cannot be reached" in text
    assert "NO_PROXY" in text
    assert hub.requests == []


def test_a_missing_certificate_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_endpoint(monkeypatch, f"https://127.0.0.1:{free_port()}")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    text = sentence()
    assert text.startswith("SSL_CERT_FILE is ")
    assert "not there" in text


def test_an_unreadable_certificate_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_endpoint(monkeypatch, f"https://127.0.0.1:{free_port()}")
    (tmp_path / "bad.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bad.pem"))
    assert "The certificates that SSL_CERT_FILE names cannot be read" in sentence()


def test_an_untrusted_certificate_names_the_variable() -> None:
    error = ConnectionError("failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")
    text = str(network.describe(REPO, error))
    assert "is not trusted here" in text
    assert "SSL_CERT_FILE" in text


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ftp://hub", "https://", "https://hub:port"])
def test_an_endpoint_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    use_endpoint(monkeypatch, address)
    assert sentence().startswith(f"HF_ENDPOINT is {address!r}")


def test_an_unreachable_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    use_endpoint(monkeypatch, f"http://127.0.0.1:{free_port()}")
    text = sentence()
    assert "cannot be reached at 127.0.0.1" in text
    assert "HF_ENDPOINT" in text


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    use_endpoint(monkeypatch, "http://no-such-host.invalid")
    assert "the name no-such-host.invalid is not known here" in sentence()


def test_no_answer_in_time_is_said(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "127.0.0.1 did not answer in time" in sentence()


def test_a_cache_that_cannot_be_written_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    text = sentence()
    assert f"cannot be stored in {tmp_path}/file/hub" in text
    assert "HF_HUB_CACHE" in text


# Tokens.


def test_a_token_of_other_characters_is_refused_before_it_is_sent(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x\u00e9")
    text = sentence()
    assert text.startswith("The token in HF_TOKEN holds characters")
    assert TOKENS in text
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_an_expired_token_does_not_hide_a_public_model(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    hub.answer = lambda _, token: (status, {}, b"{}") if token else None
    assert (resolve(REPO) / "model.safetensors").is_file()
    assert [token for _, token in hub.authorizations if token] == ["Bearer hf_stale"]


def test_a_refused_token_for_a_model_that_needs_one_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    said = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.answer = lambda *_: (401, said, b"{}")
    text = sentence()
    assert text.startswith("The token in HF_TOKEN was refused (Invalid credentials in Authorization header)")
    assert TOKENS in text


def test_a_token_file_is_named(hub: Hub) -> None:
    Path(constants.HF_TOKEN_PATH).write_text("hf_stale\n")
    hub.answer = lambda *_: (401, {}, b"{}")
    assert f"The token in {constants.HF_TOKEN_PATH} was refused" in sentence()


def test_a_token_file_of_other_bytes_is_named(hub: Hub) -> None:
    Path(constants.HF_TOKEN_PATH).write_bytes(b"\xff\xfe")
    assert sentence().startswith(f"The token in {constants.HF_TOKEN_PATH} ")
    assert hub.requests == []


def test_a_token_without_the_right_to_a_file_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    said = {"X-Error-Message": "Forbidden: you need the gated-repos scope"}
    hub.answer = lambda path, _: (403, said, b"{}") if "/resolve/" in path else None
    text = sentence()
    assert "The token in HF_TOKEN does not give access" in text
    assert "gated-repos scope" in text
    assert TOKENS in text


def test_a_message_of_the_hub_cannot_reach_the_terminal_raw(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    hub.answer = lambda *_: (403, {"X-Error-Message": "a\x1b]52;c;evil\x07 b"}, b"{}")
    assert "\x1b" not in sentence()


def test_a_gated_model_names_the_page_and_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answer = lambda *_: (403, {"X-Error-Code": "GatedRepo"}, b"{}")
    text = sentence()
    assert f"open {hub.url}/{REPO} in a browser" in text
    assert "hf auth login" in text
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "the account of the token in HF_TOKEN" in sentence()


def test_a_refusal_without_a_token_asks_for_a_login(hub: Hub) -> None:
    hub.answer = lambda *_: (403, {}, b"{}")
    assert "run `hf auth login`" in sentence()


def test_a_private_or_unknown_model_is_said(hub: Hub) -> None:
    hub.answer = lambda *_: (401, {"X-Error-Code": "RepoNotFound"}, b"{}")
    assert f"There is no model {REPO} on Hugging Face that you may see" in sentence()


# Rate limits, server errors, captive portals.


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_rate_limit_is_waited_for(hub: Hub, waits: list[float], where: str) -> None:
    answers = [(429, {"Retry-After": "7"}, b"{}")]
    hub.answer = lambda path, _: answers.pop() if where in path and answers else None
    assert resolve(REPO).is_dir()
    assert waits == [7]


def test_a_lasting_rate_limit_says_when(hub: Hub, waits: list[float]) -> None:
    hub.answer = lambda *_: (429, {"Retry-After": "600"}, b"{}")
    text = sentence()
    assert "(429)" in text
    assert "in 10 minutes" in text
    assert waits == []
    hub.answer = lambda *_: (429, {"RateLimit": '"api";r=0;t=90'}, b"{}")
    assert "in 90 s" in sentence()
    hub.answer = lambda *_: (429, {"Retry-After": formatdate(4e9, usegmt=True)}, b"{}")
    assert "minutes" in sentence()
    hub.answer = lambda *_: (429, {"Retry-After": "9" * 5000}, b"{}")
    assert "in some minutes" in sentence()


def test_a_server_error_is_tried_again(hub: Hub) -> None:
    answers = [(502, {}, b""), (503, {}, b"")]
    hub.answer = lambda *_: answers.pop() if answers else None
    assert resolve(REPO).is_dir()
    hub.answer = lambda *_: (500, {}, b"")
    assert "Hugging Face answers 500" in _again()


def _again() -> str:
    with pytest.raises(TqchatError) as caught:
        resolve("somebody/tiny-other")
    return str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "text/html"}, b"<html>Log in to the hotel</html>"),
        (200, {"Content-Type": "application/json"}, b'{"login": "here"}'),
        (200, {}, b"[]"),
        (200, {}, b"[" * 100_000),
        (511, {}, b"<html>"),
    ],
)
def test_a_web_page_in_place_of_the_listing_is_a_login_page(
    hub: Hub, answer: tuple[int, dict[str, str], bytes]
) -> None:
    hub.answer = lambda *_: answer
    text = sentence()
    assert "a web page came instead of the hub's answer" in text
    assert f"open {hub.url} in a browser" in text


def test_a_web_page_in_place_of_weights_is_a_login_page(hub: Hub, tmp_path: Path) -> None:
    page = (200, {"Content-Type": "text/html"}, b"<html>Log in to the hotel</html>")
    hub.answer = lambda path, _: page if path.endswith("model.safetensors") else None
    assert "a web page came" in sentence()
    assert all(not path.stat().st_size for path in (tmp_path / "hub-cache").rglob("*.incomplete"))


def test_endless_redirects_are_a_login_page(hub: Hub) -> None:
    hub.answer = lambda path, _: (302, {"Location": f"{hub.url}{path}"}, b"")
    assert "a web page came" in sentence()
