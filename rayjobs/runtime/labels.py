"""Text for Ray's metrics, whose labels are ASCII: anything else would end the process that sets one."""

import string
from urllib.parse import quote


def label(text: str) -> str:
    """Text as a metric's label.

    Args:
        text: A run's name, a reason, …

    Returns:
        The same; what ASCII lacks is percent-encoded, as in an address.
    """
    return text if text.isascii() else quote(text, safe=string.printable)
