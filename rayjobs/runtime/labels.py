"""Text for labels of Ray's metrics, its own and ours, which are ASCII: another one ends the process that sets it."""

import string
from urllib.parse import quote


def label(text: str) -> str:
    """Text as Ray can name something after it.

    Args:
        text: A run's name, a reason, …

    Returns:
        The same; what ASCII lacks is percent-encoded, as in an address.
    """
    return text if text.isascii() else quote(text, safe=string.printable)
