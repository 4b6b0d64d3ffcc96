"""Addresses of object storage, such as `s3://bucket/run`: which there are, and what none may hold.

Nothing here connects to anything; `rayjobs.mirror.store` does.
"""

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from rayjobs.errors import OptionError

SCHEMES = ("s3", "gs", "gcs", "abfss", "abfs", "hdfs", "viewfs", "file")
"""What `pyarrow.fs.FileSystem.from_uri` understands."""
NAMED = "s3://bucket/run, gs://bucket/run, abfss://container@account.dfs.core.windows.net/run, hdfs:// or file://"
KEPT = ":/?&=%@+,;~()!*'$"  # what `normal` leaves as it is; pyarrow wants the rest percent-encoded
SECRET_NAME = re.compile(r"key|secret|token|password|^sig$|sas|credential(?!_kind)", re.IGNORECASE)


def is_address(value: str | None) -> bool:
    """Whether an option's value is an address rather than a folder."""
    return value is not None and "://" in value


def refuse_address(option: str, value: str | None) -> None:
    """Refuse an address where a job writes to a folder alone.

    Args:
        option: The option.
        value: Its value.

    Raises:
        OptionError: If it is an address.
    """
    if is_address(value):
        raise OptionError(
            option, f"{_hidden(str(value))} is an address, and this job writes to a folder",
            "mount storage that every node sees and pass its folder; copy the run afterwards, see docs/cluster.md",
        )  # fmt: skip


def normal(option: str, value: str) -> str:
    """An address in the one form that is shown, kept and compared.

    Args:
        option: The option that it was passed with.
        value: As passed.

    Returns:
        The address, percent-encoded and without a slash at its end.

    Raises:
        OptionError: If there is no such storage, or the address names no run or carries credentials.
    """
    address = quote(value.strip(), safe=KEPT)
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        raise OptionError(option, f"there is no storage '{parts.scheme}://'", f"pass a folder, or {NAMED}")
    user, at, host = parts.netloc.rpartition("@")
    names = [item.partition("=")[0] for item in parts.query.split("&")]
    # In s3:// and gs:// what stands before the @ is a key; in abfss:// it is a container, in hdfs:// a user.
    carries = at and (":" in unquote(user) or parts.scheme == "s3" or (parts.scheme[0] == "g" and user != "anonymous"))
    if carries or any(SECRET_NAME.search(name) for name in names):
        raise OptionError(option, "the address holds a key", "leave it out, and pass it in the environment")
    path = "/".join(part for part in parts.path.split("/") if part)
    if not path or ".." in path.split("/"):
        raise OptionError(option, f"{address} names no run", f"pass a name in it as well: {NAMED}")
    slash = "/" if parts.netloc or parts.scheme == "file" else ""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{slash}{path}{query}"


def joined(address: str, name: str) -> str:
    """The address of something in what an address names."""
    start, mark, query = address.partition("?")
    return f"{start}/{name}{mark}{query}"


def name_of(address: str) -> str:
    """The last part of an address: the run's name."""
    return unquote(urlsplit(address).path.rstrip("/").rpartition("/")[2])


def split_checkpoint(address: str) -> tuple[str, str | None]:
    """The run's address in that of a run, of its checkpoints or of one of them.

    Args:
        address: In its normal form.

    Returns:
        The run's address, and the checkpoint's name if it was one.
    """
    start, mark, query = address.partition("?")
    found = re.fullmatch(r"(.+?)/checkpoints(?:/([^/]+))?", start)
    return (f"{found[1]}{mark}{query}", found[2]) if found else (address, None)


def overlaps(address: str, folder: Path) -> bool:
    """Whether a `file://` address lies in a folder, or the folder in it: copying would never end."""
    parts = urlsplit(address)
    if parts.scheme != "file":
        return False
    there, here = Path(unquote(parts.path)).resolve(), folder.resolve()
    return there == here or here in there.parents or there in here.parents


def _hidden(value: str) -> str:
    """An address without what may be a secret in it."""
    return re.sub(r"://[^/]*@", "://", value.partition("?")[0])
