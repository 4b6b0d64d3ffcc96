"""Where the grader is asked, and with which key; imports nothing heavy, so that command lines can check it."""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from sharpening.rewards.base import RewardMisconfigured

logger = logging.getLogger(__name__)

MODEL = "gpt-4o-mini"
"""The model that is asked where none is named."""

OPENAI_URL = "https://api.openai.com/v1"
_NO_KEY = "none"  # the client insists on one; servers of one's own ignore it


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint. It holds the name of the key's variable, never the key.

    Attributes:
        model: the model's id there.
        url: its base URL, which for most servers ends in `/v1`.
        key_variable: environment variable that holds the API key; servers of one's own may need none.
    """

    model: str
    url: str
    key_variable: str

    @classmethod
    def of(cls, model: str, url: str | None, key_variable: str) -> Endpoint:
        """Check what was given, and complete it from the environment.

        Args:
            model: the model's id.
            url: base URL; `None` for that of the variable `OPENAI_BASE_URL`, or else OpenAI's.
            key_variable: environment variable of the API key.

        Returns:
            The endpoint.

        Raises:
            ValueError: if there is no model, or the URL is none.
            RewardMisconfigured: if the key is missing or malformed.
        """  # noqa: DOC502
        if not model.strip():
            raise ValueError("the grader needs a model; pass its id, such as gpt-4o-mini")
        given = url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        endpoint = cls(model, check_url(given), key_variable)
        endpoint.key()
        endpoint._warn_of_clear_text()
        return endpoint

    def key(self) -> str:
        """The API key, read from the environment at every use.

        Returns:
            The key; a placeholder where none is set.

        Raises:
            RewardMisconfigured: if OpenAI's own endpoint is to be asked without a key, or the key fits no HTTP header.
        """
        key = os.environ.get(self.key_variable, "")
        if not key and urlsplit(self.url).hostname == urlsplit(OPENAI_URL).hostname:
            raise RewardMisconfigured(
                f"the grader at {self.url} needs an API key; set the environment variable {self.key_variable}, or "
                "OPENAI_BASE_URL to a server that needs none"
            )
        # The HTTP client would name a key that it cannot send in its error.
        if not all("!" <= character <= "~" for character in key):
            raise RewardMisconfigured(
                f"the API key in {self.key_variable} has spaces, line ends or other characters that no HTTP header "
                "carries; set it again"
            )
        return key or _NO_KEY

    def redact(self, words: str) -> str:
        """Words of the endpoint or of the HTTP client on one line, without the key should they repeat it."""
        key = os.environ.get(self.key_variable)
        return " ".join((words.replace(key, "***") if key else words).split())[:300]

    def _warn_of_clear_text(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not is_loopback(str(parts.hostname)) and os.environ.get(self.key_variable):
            logger.warning("the key in %s goes to %s in clear text; use https", self.key_variable, self.url)


def check_url(url: str) -> str:
    """Refuse what is no base URL of an endpoint.

    Args:
        url: what should be one.

    Returns:
        It, without a slash at its end.

    Raises:
        ValueError: saying what is wrong, without repeating a password.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError as error:
        raise ValueError("the grader's URL cannot be read; pass one such as http://127.0.0.1:8000/v1") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("the grader's URL names a user or password; pass it without, and the key by the environment")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError("the grader's URL is not of the form http(s)://host[:port]/path, as http://127.0.0.1:8000/v1")
    return url.strip().rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
