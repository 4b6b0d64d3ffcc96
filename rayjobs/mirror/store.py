"""What lies at an address, through pyarrow's file systems: whole files, put, got, listed and removed.

Credentials come from the environment, as each storage's own tools take them. Requests are repeated by pyarrow's own
clients; what then still fails is a `StoreError`.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayjobs.errors import OptionError

RENAMES = ("local", "hdfs")  # file systems with folders to make and a rename; to the others a file comes whole
PARTIAL = ".partial"
GCS_PATIENCE_S = 60  # Google's client repeats a request for 15 minutes otherwise, also the first one
LONGEST = 240  # characters of what a library says
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role; AWS_ENDPOINT_URL for an "
    "S3 that is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or the machine's service account",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS or the machine's service account",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or the machine's identity",
    "abfss": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or the machine's identity",
    "hdfs": "JAVA_HOME, HADOOP_HOME and CLASSPATH",
    "viewfs": "JAVA_HOME, HADOOP_HOME and CLASSPATH",
}
"""What each storage's client reads off the environment."""


class StoreError(Exception):
    """The storage did not do what it was asked; the message is one line without secrets."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn whatever pyarrow raises into a `StoreError`.

    Yields:
        Nothing.

    Raises:
        StoreError: In place of any exception.
    """
    try:
        yield
    except Exception as error:
        raise StoreError(_said(error)) from error


def _said(error: Exception) -> str:
    """What a client said, in one line: of Amazon's the error's name and its sentence."""
    from rayjobs.tracking.secrets import scrub  # its package imports what is heavy

    text = " ".join(scrub(str(error)).split())
    found = re.search(r"AWS Error (\w+)(?: \(HTTP status \d+\))? during \w+ operation: (.*)", text)
    if found:
        text = f"{found[1]}: {re.sub(r' ?.Request ID: .*', '', found[2])}"
    return text[:LONGEST].rstrip(". ") or type(error).__name__


class Store:
    """A folder at an address.

    Args:
        address: In its normal form.

    Attributes:
        address: The same.
    """

    def __init__(self, address: str) -> None:
        from pyarrow import fs

        self.address = address
        uri = address
        if address.startswith(("gs:", "gcs:")) and "retry_limit_seconds" not in uri:
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={GCS_PATIENCE_S}"
        with store_errors():
            self._there, base = fs.FileSystem.from_uri(uri)
        self._base = str(base).rstrip("/")
        self._here = fs.LocalFileSystem()
        self._renames = self._there.type_name in RENAMES

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def files(self, under: str = "") -> dict[str, int]:
        """Sizes of all files.

        Args:
            under: A folder; the whole by default.

        Returns:
            Bytes by name, relative to the address; nothing where nothing is.
        """
        from pyarrow import fs

        with store_errors():
            selector = fs.FileSelector(self._path(under), recursive=True, allow_not_found=True)
            found = [info for info in self._there.get_file_info(selector) if info.type == fs.FileType.File]
        start = len(self._base) + 1
        return {info.path[start:]: int(info.size) for info in found if not info.path.endswith(PARTIAL)}

    def read(self, name: str) -> bytes | None:
        """A small file's contents.

        Args:
            name: The file.

        Returns:
            What it holds; `None` where there is none.
        """
        with store_errors():
            try:
                with self._there.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def put(self, source: Path, name: str) -> None:
        """Copy a file to the address; what was there of that name is replaced.

        Args:
            source: The file here.
            name: Its name there.
        """
        path = self._path(name)
        with store_errors():
            if self._renames:
                self._there.create_dir(path.rpartition("/")[0], recursive=True)
            to = path + PARTIAL if self._renames else path
            self._copy(self._here, str(source), self._there, to)
            if self._renames:
                self._make_way(path)
                self._there.move(to, path)

    def _make_way(self, path: str) -> None:
        """HDFS renames to no name that is taken; a local file system replaces the file at once."""
        if self._there.type_name == "hdfs":
            try:
                self._there.delete_file(path)
            except FileNotFoundError:
                return

    def get(self, name: str, target: Path) -> None:
        """Copy a file from the address.

        Args:
            name: Its name there.
            target: The file here, which has its name once it is whole; folders are made.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + PARTIAL)
        try:
            with store_errors():
                self._copy(self._there, self._path(name), self._here, str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def _copy(source: Any, path: str, target: Any, to: str) -> None:
        from pyarrow import fs

        fs.copy_files(path, to, source_filesystem=source, destination_filesystem=target, use_threads=False)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Args:
            name: The file.
        """
        with store_errors():
            try:
                self._there.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all that is in it, if it is there.

        Args:
            name: The folder.
        """
        with store_errors():
            try:
                self._there.delete_dir(self._path(name))
            except FileNotFoundError:
                return

    def try_writing(self) -> None:
        """Write a tiny file and remove it again."""
        name = f".sharpening-{secrets.token_hex(6)}"
        with store_errors():
            path = self._path(name)
            if self._renames:
                self._there.create_dir(self._base, recursive=True)
            with self._there.open_output_stream(path) as stream:
                stream.write(b"\0")
            self._there.delete_file(path)


def open_store(option: str, address: str) -> Store:
    """Open an address that can be written to.

    Args:
        option: The option that it was passed with.
        address: In its normal form.

    Returns:
        The store.

    Raises:
        OptionError: If it cannot be reached or written to.
    """
    try:
        store = Store(address)
        store.try_writing()
    except StoreError as error:
        hint = CREDENTIALS.get(address.partition("://")[0])
        told = f" (from the environment: {hint})" if hint else ""
        raise OptionError(
            option, f"cannot write to {address} ({error})",
            f"make sure that it is there, that this machine reaches it and that its credentials may write{told}",
        ) from error  # fmt: skip
    return store
