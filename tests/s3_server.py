"""An S3 over HTTP on this machine's loopback (moto's), and a client of its own to look into it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOFTHETEST", "AWS_SECRET_ACCESS_KEY": "s3cretOfTheBucket"}


@dataclass(frozen=True)
class S3:
    """A server with one bucket.

    Attributes:
        url: its address.
        client: boto3's, which shares nothing with pyarrow's.
    """

    url: str
    client: Any

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be given to use it."""
        return KEYS | {"AWS_ENDPOINT_URL_S3": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def files(self, run: str = "") -> dict[str, bytes]:
        """Contents of the objects of a run, by their names in it, also while they change.

        Folders that pyarrow marks are no objects.
        """
        start = f"{run}/" if run else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=start)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", []) if entry["Key"][-1] != "/"]
        found = {}
        for name in names:
            with suppress(self.client.exceptions.NoSuchKey):
                found[name.removeprefix(start)] = self._read(name)
        return found

    def names(self, run: str) -> set[str]:
        """The same names, without contents."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{run}/")
        return {entry["Key"].removeprefix(f"{run}/") for page in pages for entry in page.get("Contents", [])}

    def _read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def remove_bucket(self) -> None:
        """Take the bucket away: every request fails at once from now on."""
        for name in self.files():
            self.client.delete_object(Bucket=BUCKET, Key=name)
        for name in [e["Key"] for e in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]:
            self.client.delete_object(Bucket=BUCKET, Key=name)
        self.client.delete_bucket(Bucket=BUCKET)

    def make_bucket(self) -> None:
        """Make it anew."""
        self.client.create_bucket(Bucket=BUCKET)

    def check_keys(self, free: str) -> None:
        """Have the server check keys and signatures after so many requests; `inf` for never."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=free.encode()).raise_for_status()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, with an empty bucket, for this process and those it starts."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    found = S3(f"http://{host}:{port}", None)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=found.url, region_name="us-east-1")
    found = S3(found.url, client)
    httpx.post(f"{found.url}/moto-api/reset").raise_for_status()
    found.make_bucket()
    try:
        yield found
    finally:
        server.stop()
