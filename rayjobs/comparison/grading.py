"""The multimodal grader of a comparison: whether it answers, and what the report says of it."""

from typing import Any

from rayjobs.comparison.options import CompareOptions
from rayjobs.comparison.results import Store
from rayjobs.errors import OptionError
from sharpening.rewards import RewardUnavailable, load_reward

CHECK_ATTEMPTS = 3  # enough for a wrong address to show; a run's own questions have more patience
NONE = "the grader is a multimodal model behind an endpoint, and none was given (--grader_url)"


def grader_options(options: CompareOptions) -> dict[str, Any] | None:
    """How a judging actor makes its grader.

    Args:
        options: The comparison's options, resolved.

    Returns:
        Keyword arguments of the scorer, without the key; `None` where nothing is graded.
    """
    if options.grader_url is None:
        return None
    return {"model": options.grader_model, "base_url": options.grader_url}


def check_grader(options: CompareOptions) -> None:
    """Have one image graded before anything is trained.

    Args:
        options: The comparison's options, resolved.

    Raises:
        OptionError: If there is no grade.
    """
    wanted = grader_options(options)
    if wanted is None:
        return
    try:
        grader: Any = load_reward("grader", **wanted, max_attempts=CHECK_ATTEMPTS)
        grader.check()
    except (RewardUnavailable, ValueError) as error:
        problem, _, remedy = str(error).partition("; ")
        raise OptionError("grader_url", problem, remedy or "see docs/grader.md") from error


def grader_note(options: CompareOptions) -> list[str]:
    """Who graded, as a sentence for the report; none where nobody did."""
    if options.grader_url is None:
        return []
    return [
        f"The grader is {options.grader_model}, asked for the images of the main table and of the sweeps: the mean of "
        "its five marks, 0 to 100, by a rubric of this project (docs/grader.md). It may answer otherwise when it is "
        "asked again."
    ]


def without_grades(options: CompareOptions, store: Store) -> dict[str, str]:
    """Why the grader's column is empty, or which images it lacks.

    Args:
        options: The comparison's options, resolved.
        store: What was measured.

    Returns:
        The sentence under the column's name; nothing where every image that was to be graded is.
    """
    if options.grader_url is None:
        return {"grader": NONE}
    failed = store.ungraded()
    if not failed:
        return {}
    graded = sum(row.grader is not None for row in store.judgements())
    reasons = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
    total = failed.total()
    return {"grader": f"{total} of {graded + total} images have no grade ({reasons}), and their prompts are left out"}
