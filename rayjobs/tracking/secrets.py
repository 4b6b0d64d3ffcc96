"""Taking secrets out of what other libraries say before it reaches a log."""

import os
import re

NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
IN_URL = re.compile(r"(://)[^/\s@]+@")
SHORTEST = 6  # characters; shorter values would cut holes into ordinary words


def scrub(text: str) -> str:
    """Hide values of environment variables that hold secrets, and credentials in addresses.

    Args:
        text: Any text, such as an error of a library.

    Returns:
        The text with `***` in their place.
    """
    for name, value in os.environ.items():
        if NAME.search(name.upper()) and len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return IN_URL.sub(r"\1***@", text)
