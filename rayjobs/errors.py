"""Errors that end a job, each with one line for the user and an exit code for the shell."""

from collections.abc import Sequence


class JobError(Exception):
    """A job cannot go on; the message is one line for the user.

    Attributes:
        exit_code: What the process returns to its shell.
    """

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class OptionError(JobError):
    """An option (or what it points to) is wrong; raised before anything heavy starts.

    Args:
        option: The option's name, without dashes.
        problem: What is wrong.
        remedy: What to do about it.
    """

    exit_code = 2

    def __init__(self, option: str, problem: str, remedy: str) -> None:
        self.option, self.problem, self.remedy = option, problem, remedy
        super().__init__(f"--{option}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str, str]]:
        return OptionError, (self.option, self.problem, self.remedy)


class ArgumentError(OptionError):
    """The same of an argument that is given by its place, and is named as `--help` names it: RUN, not --run."""

    def __init__(self, option: str, problem: str, remedy: str) -> None:
        super().__init__(option, problem, remedy)
        self.args = (f"{option.upper()}: {problem}; {remedy}",)


def refuse_together(errors: Sequence[OptionError]) -> None:
    """Refuse several options in one message, so that nobody meets them one start after another.

    Args:
        errors: What is wrong; nothing happens where they are none.

    Raises:
        OptionError: The first one, whose remedy goes on with the others; those that share its words are only named.
    """
    if not errors:
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        names = groups.setdefault((error.problem, error.remedy), [])
        if error.option not in names:
            names.append(error.option)
    said = []
    for (problem, remedy), (first, *more) in groups.items():
        likewise = f" (likewise {', '.join(f'--{name}' for name in more)})" if more else ""
        said.append((first, problem, remedy + likewise))
    (option, problem, remedy), *others = said
    raise OptionError(option, problem, " | ".join([remedy, *(f"--{o}: {p}; {r}" for o, p, r in others)]))


class RunStopped(JobError):
    """A run that had started had to stop: a reward stayed down, a loss was not finite, the disk filled up.

    Args:
        reason: What happened.
        resume: The command-line flags that continue from the last checkpoint; empty when there is none yet.
    """

    def __init__(self, reason: str, resume: str = "") -> None:
        self.reason, self.resume = reason, resume
        how = f"continue from the last checkpoint with {resume}" if resume else "no checkpoint was written yet"
        super().__init__(f"the run stopped: {reason}; {how}")

    def __reduce__(self) -> tuple[type["RunStopped"], tuple[str, str]]:
        return RunStopped, (self.reason, self.resume)


def reason_of(error: Exception) -> tuple[str, str]:
    """What is wrong and what to do, of an error that may only say what is wrong.

    Args:
        error: One whose message reads "what is wrong; what to do".

    Returns:
        Both parts, for an `OptionError`.
    """
    problem, _, remedy = str(error).rpartition("; ")
    return (problem, remedy) if problem else (str(error), "correct it, or name another")
