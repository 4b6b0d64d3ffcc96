"""From a request's bytes to images and prompts; everything here is plain work for a thread, off the event loop."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File

from reward_servers.gateway_options import Limits
from reward_servers.http_schema import one_of, sentence
from reward_servers.images import Refused, read_images

JSON, FORM = "application/json", "multipart/form-data"


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        count: images.
        groups: images of one size each: their places in the request, uint8 `[N, H, W, 3]`, and N prompts.
        rewards: names, each once.
    """

    count: int
    groups: list[tuple[list[int], np.ndarray, list[str]]]
    rewards: list[str]


class BodyReader:
    """Reads bodies of both kinds, within limits."""

    def __init__(self, model: type[BaseModel], limits: Limits, rewards: Sequence[str]) -> None:
        """Remember what is allowed.

        Args:
            model: from `http_schema.request_model`.
            limits: what a request may hold.
            rewards: names it may ask for.
        """
        self._model, self._limits, self._rewards = model, limits, list(rewards)

    def read(self, content_type: str, body: bytes) -> Asked:
        """Read a body.

        Args:
            content_type: the header of that name.
            body: the bytes.

        Returns:
            Decoded images, prompts, and the rewards to ask.

        Raises:
            Refused: if it cannot be read or holds too much.
        """
        header = Message()
        header["content-type"] = content_type
        kind = header.get_content_type() if content_type else ""
        if kind == JSON:
            files, prompts, rewards = self._json(body)
        elif kind == FORM:
            files, prompts, rewards = self._form(str(header.get_param("boundary", "")), body)
        else:
            raise Refused(415, f"the body must be {JSON} or {FORM}; say so in Content-Type")
        images = read_images(files, self._limits)
        return Asked(len(images), _by_size(images, prompts), list(dict.fromkeys(rewards or self._rewards)))

    def _json(self, body: bytes) -> tuple[list[bytes], list[str], list[str]]:
        try:
            asked: Any = self._model.model_validate_json(body)
        except ValidationError as error:
            status = 400 if error.errors()[0]["type"] == "json_invalid" else 422
            raise Refused(status, sentence(error)) from error
        return (
            [_base64(item.image, i) for i, item in enumerate(asked.items)],
            [item.prompt for item in asked.items],
            asked.rewards or [],
        )

    def _form(self, boundary: str, body: bytes) -> tuple[list[bytes], list[str], list[str]]:
        fields: dict[str, list[bytes]] = {"image": [], "prompt": [], "rewards": []}

        def take(name: bytes | None, value: bytes) -> None:
            key = (name or b"").decode("utf-8", "replace")
            if key not in fields:
                raise Refused(422, f"the form has a field '{key[:40]}'; it may have image, prompt and rewards")
            fields[key].append(value)
            if len(fields[key]) > self._limits.max_items:
                raise Refused(422, f"the form has more than {self._limits.max_items} fields named {key}")

        def on_file(file: File) -> None:
            file.file_object.seek(0)
            take(file.field_name, file.file_object.read())
            file.close()

        def on_field(field: Field) -> None:
            take(field.field_name, field.value or b"")

        ended: list[bool] = []
        config = {"MAX_MEMORY_FILE_SIZE": self._limits.max_body_bytes + 1}  # nothing is written to a disk
        try:
            parser = FormParser(
                FORM, on_field, on_file, on_end=lambda: ended.append(True), boundary=boundary.encode(), config=config
            )
            parser.write(body)
            parser.finalize()
            if not ended:  # finalize() does not mind
                raise FormParserError("no end")
        except Refused:
            raise
        except (FormParserError, ValueError, AssertionError) as error:  # the last for parts out of order
            raise Refused(400, "the form is cut off or malformed; send multipart/form-data") from error
        prompts = [_text(value, "prompt", i) for i, value in enumerate(fields["prompt"])]
        rewards = [_text(value, "rewards", i) for i, value in enumerate(fields["rewards"])]
        self._check_form(len(fields["image"]), prompts, rewards)
        return fields["image"], prompts, rewards

    def _check_form(self, images: int, prompts: Sequence[str], rewards: Sequence[str]) -> None:
        if not images or images != len(prompts):
            raise Refused(
                422, f"the form has {images} files named image and {len(prompts)} fields named prompt; send as many "
                "of one as of the other, at least one",
            )  # fmt: skip
        longest = self._limits.max_prompt_characters
        for number, prompt in enumerate(prompts):
            if len(prompt) > longest:
                raise Refused(422, f"prompt {number} has {len(prompt):,} characters; {longest:,} are allowed")
        for name in rewards:
            if name not in self._rewards:
                raise Refused(422, f"there is no reward '{name[:40]}'; there are {one_of(self._rewards)}")


def _by_size(images: list[np.ndarray], prompts: list[str]) -> list[tuple[list[int], np.ndarray, list[str]]]:
    places: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        places.setdefault(image.shape, []).append(number)
    return [
        (numbers, np.stack([images[i] for i in numbers]), [prompts[i] for i in numbers]) for numbers in places.values()
    ]


def _base64(text: str, number: int) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"image {number} is not base64") from error


def _text(value: bytes, name: str, number: int) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"the form's {name} {number} is not UTF-8") from error
