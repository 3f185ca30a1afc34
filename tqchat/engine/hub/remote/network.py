"""Proxy, certificate, endpoint and token settings of this machine, and what is wrong with them."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqchat.engine.hub.remote.download_errors import DownloadFailed

TOKENS_PAGE = "https://huggingface.co/settings/tokens"

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def endpoint() -> str:
    """The hub's address.

    Raises:
        DownloadFailed: if HF_ENDPOINT is no web address.
    """
    from huggingface_hub import constants

    address = str(constants.ENDPOINT)
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise DownloadFailed(
            f"HF_ENDPOINT is {address!r}, which is no web address; it must begin with https:// or http://."
        )
    return address


def check_environment() -> None:
    """Check the environment variables that an HTTP client reads.

    Raises:
        DownloadFailed: with a sentence that names the variable.
    """
    address = endpoint()
    for scheme, proxy in _proxies().items():
        _check_proxy(_variable_of(scheme, proxy), proxy)
    if urlsplit(address).scheme != "https":
        return
    for name, exists in (("SSL_CERT_FILE", Path.is_file), ("SSL_CERT_DIR", Path.is_dir)):
        place = os.environ.get(name)
        if place and not exists(Path(place)):
            raise DownloadFailed(
                f"{name} is {place!r}, which is not there; correct it, or unset it "
                "to use the usual certificates."
            )


def token() -> tuple[str | None, str]:
    """The Hugging Face token, and the variable or file that it comes from.

    Raises:
        DownloadFailed: if it holds characters that cannot be sent.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None, ""
    variables = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    source = next(
        (name for name in variables if os.environ.get(name, "").strip()), str(constants.HF_TOKEN_PATH)
    )
    try:
        found = get_token()
    except (OSError, ValueError) as error:
        raise DownloadFailed(
            f"The token in {source} cannot be read ({_reason(error)}); log in again with `hf auth login`."
        ) from error
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise DownloadFailed(
            f"The token in {source} holds characters that no token has; copy it again from {TOKENS_PAGE}."
        )
    return found, source


def session() -> Any:
    """The HTTP client of huggingface_hub.

    Raises:
        DownloadFailed: if this machine's settings do not let one be made.
    """
    from huggingface_hub import get_session

    try:
        return get_session()
    except ssl.SSLError as error:
        raise DownloadFailed(
            f"The certificates that {_certificate_variable()} names cannot be read "
            f"({error.reason or error}); correct it, or unset it to use the usual ones."
        ) from error
    except Exception as error:  # of the HTTP client, which differs by version
        raise DownloadFailed(
            f"The proxy settings (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be used "
            f"({_reason(error)}); correct or unset them."
        ) from error


def describe(repo: str, error: BaseException, *, searching: bool = False) -> DownloadFailed:
    """A connection that failed, as a sentence that names what to see to.

    Args:
        repo: What was to be fetched, as the subject of a sentence.
        searching: Whether it was a search, which needs the hub whatever is on this machine.
    """
    from huggingface_hub import constants

    address = str(constants.ENDPOINT)
    host = urlsplit(address).hostname or address
    proxy = _proxy_variable_for(address)
    causes = list(_chain(error))
    names = {type(one).__name__ for one in causes}
    text = " ".join(str(one) for one in causes)
    if any(isinstance(one, ssl.SSLError) for one in causes) or "CERTIFICATE_VERIFY_FAILED" in text:
        return DownloadFailed(
            f"The certificate of {host} is not trusted here: if a company's proxy inspects the traffic, put "
            "the path of its certificate into SSL_CERT_FILE; on a hotel's network, log in with a browser."
        )
    if "ProxyError" in names:
        if "407" in text:
            return DownloadFailed(
                f"The proxy in {proxy or 'the system settings'} wants a user name and a password (407): "
                "write them into it as http://user:password@host:port."
            )
        return DownloadFailed(
            f"The proxy in {proxy or 'the system settings'} does not let {repo} through ({_reason(error)}); "
            f"correct it, or add {host} to NO_PROXY."
        )
    if "TooManyRedirects" in names or "UnsupportedProtocol" in names:
        return portal(repo)
    if names & {
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
        "ConnectTimeout",
        "TimeoutException",
        "TimeoutError",
    }:
        where = f"the proxy in {proxy}" if proxy and "ConnectTimeout" in names else host
        return DownloadFailed(
            f"{repo} could not be fetched: {where} did not answer in time; try again later."
        )
    if proxy:
        lead = "The" if searching else f"{repo} is not (wholly) on this machine, and the"
        return DownloadFailed(
            f"{lead} proxy in {proxy} cannot be reached: correct or unset it, or add {host} to NO_PROXY."
        )
    unknown = any(isinstance(one, socket.gaierror) for one in causes) or "Name or service not known" in text
    problem = f" (the name {host} is not known here)" if unknown else f" at {host}"
    remedy = "check the connection" if _is_default(address) else "check HF_ENDPOINT and the connection"
    if searching:
        return DownloadFailed(f"Hugging Face cannot be reached{problem}: {remedy}.")
    return DownloadFailed(
        f"{repo} is not (wholly) on this machine and Hugging Face cannot be reached{problem}: "
        f"{remedy}, or choose a model folder."
    )


def portal(repo: str) -> DownloadFailed:
    """The sentence for a web page where the hub's answer should be."""
    from huggingface_hub import constants

    address = str(constants.ENDPOINT)
    page = f"open {address} in a browser and log in to the network there"
    mirror = "" if _is_default(address) else ", or check HF_ENDPOINT"
    return DownloadFailed(
        f"{repo} could not be fetched: a web page came instead of the hub's answer, as on networks that want "
        f"a login; {page}{mirror}."
    )


def is_timeout_or_lost(error: BaseException) -> bool:
    """Whether a connection was lost or slow, so that a retry may help."""
    lost = {"ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectTimeout", "WriteError", "ConnectError"}
    return not any(isinstance(one, ssl.SSLError | socket.gaierror) for one in _chain(error)) and any(
        type(one).__name__ in lost for one in _chain(error)
    )


def is_client_error(error: BaseException) -> bool:
    """Whether an error comes from the HTTP client, not all of whose errors have a common class."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "h11")


def _check_proxy(variable: str, proxy: str) -> None:
    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(address)
        host, scheme = parts.hostname, parts.scheme.lower()
        _ = parts.port
    except ValueError:
        raise DownloadFailed(
            f"{variable} is no proxy address (its port or host cannot be read); it must look like "
            "http://host:port."
        ) from None
    if not host or scheme not in _PROXY_SCHEMES:
        raise DownloadFailed(f"{variable} is no proxy address; it must look like http://host:port.")
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise DownloadFailed(
            f"{variable} names a SOCKS proxy, for which a library is missing: run `pip install socksio` in "
            "tqchat's environment, or use an HTTP proxy."
        )


def _proxies() -> dict[str, str]:
    """Proxies by scheme, as the HTTP client finds them: the environment's, else the system's."""
    found = urllib.request.getproxies()
    if "*" in found.get("no", "").replace(" ", "").split(","):
        return {}
    return {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}


def _variable_of(scheme: str, proxy: str) -> str:
    for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()):
        if os.environ.get(name) == proxy:
            return name
    return f"the system's {scheme} proxy"


def _proxy_variable_for(address: str) -> str | None:
    """Name of the variable whose proxy is used for an address, if any."""
    parts = urlsplit(address)
    proxies = _proxies()
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if scheme not in proxies or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return _variable_of(scheme, proxies[scheme])


def _certificate_variable() -> str:
    return next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "OpenSSL")


def _is_default(address: str) -> bool:
    return address == "https://huggingface.co"


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") or type(error).__name__
