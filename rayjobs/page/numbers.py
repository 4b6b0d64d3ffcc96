"""Numbers as the page words them, and the ticks of its axes."""

import math
from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"


def decimals_for(values: Iterable[float]) -> int:
    """Decimals that tell numbers apart: three significant digits of their span.

    Args:
        values: Finite numbers.

    Returns:
        0 to 9.
    """
    numbers = list(values)
    if not numbers:
        return 2
    span = max(numbers) - min(numbers) or max(map(abs, numbers))
    return min(9, max(0, 2 - math.floor(math.log10(span)))) if span > 0 else 2


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """A number with so many decimals, thousands apart, with a true minus.

    Args:
        value: The number.
        decimals: Digits behind the point.
        sign: Whether a plus is shown.

    Returns:
        Such as `+1 234.50`, with a narrow space.
    """
    text = f"{abs(value):,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    zero = float(f"{value:.{decimals}f}") == 0
    return (MINUS if value < 0 and not zero else "+" if sign else "") + text


def seconds(value: float) -> str:
    """A duration: `0.42 s`, `57 s`, `5 min 17 s`, `3 h 05 min`."""
    if value < 10:
        return f"{value:.2f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float) -> str:
    """Bytes in binary units: `1.19 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def ticks(low: float, high: float, wanted: int = 5, whole: bool = False) -> list[float]:
    """Round numbers within a range.

    Args:
        low: Lower end.
        high: Upper end, above the lower.
        wanted: About how many.
        whole: Whether only whole numbers will do.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten, rising.
    """
    rough = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(count: int, most: int) -> Sequence[int]:
    """Places to keep of a long list, evenly spread, the first and the last among them.

    Args:
        count: Length of the list.
        most: Places at most, at least two.

    Returns:
        Rising places.
    """
    if count <= most:
        return range(count)
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
