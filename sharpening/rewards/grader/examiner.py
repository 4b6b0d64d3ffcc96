"""One image, one grade: the question, its retries, and another try where the answer cannot be read."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import numpy as np
from openai import AsyncOpenAI, BadRequestError, OpenAIError, UnprocessableEntityError
from PIL import Image
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exception,
    wait_exponential_jitter,
)

from sharpening.rewards.grader.answer import UnreadableAnswer, read_marks
from sharpening.rewards.grader.dialect import Dialect
from sharpening.rewards.grader.endpoint import Endpoint
from sharpening.rewards.grader.failures import NoGrade, failure, seconds_asked_for, words_of_refusal, worth_another_try
from sharpening.rewards.grader.rubric import correction, question
from sharpening.rewards.grader.usage import GraderUsage

logger = logging.getLogger(__name__)

# Jitter keeps callers from coming back all at once; it is added to what the endpoint asks for, too.
PAUSE = wait_exponential_jitter(multiplier=0.5, max=20.0, jitter=0.5)
LONGEST_REPEATED = 2_000  # characters of an unreadable answer that are shown to the model again


@dataclass(frozen=True)
class Patience:
    """How long and how often an image is asked for.

    Attributes:
        timeout_s: seconds of one request.
        deadline_s: seconds of an image, from the first request to the last answer, pauses included.
        max_attempts: requests for one answer, of which all but the last failed on the way.
        max_answers: answers of an image, of which all but the last could not be read.
    """

    timeout_s: float
    deadline_s: float
    max_attempts: int
    max_answers: int


class Examiner:
    """Asks for grades, one image at a time; any number of them may be asked for side by side.

    Attributes:
        dialect: what the endpoint was found to understand.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience, detail: str, seed: int, usage: GraderUsage) -> None:
        """Nothing is sent yet.

        Args:
            endpoint: whom to ask.
            patience: how long and how often.
            detail: resolution at which the model looks.
            seed: seed of the model's sampling.
            usage: what to count in.
        """
        self._endpoint, self._patience, self._detail, self._seed = endpoint, patience, detail, seed
        self._usage = usage
        self.dialect = Dialect()

    async def grade(self, client: AsyncOpenAI, image: np.ndarray, prompt: str) -> float:
        """Ask for one image's grade.

        Args:
            client: a client of the endpoint, which retries nothing by itself.
            image: uint8 `[H, W, 3]`, RGB.
            prompt: the prompt it was made for.

        Returns:
            Mean of the five marks, 0 to 100.

        Raises:
            NoGrade: if this image has none.
            RewardMisconfigured: if no image will have one.
        """  # noqa: DOC502
        deadline = asyncio.get_running_loop().time() + self._patience.deadline_s
        if not _is_unicode(prompt):
            raise NoGrade("rejected", "the prompt is no valid Unicode text")
        # Compressing takes a while for a large image, and lets go of the interpreter.
        url = await asyncio.to_thread(png_data_url, image)
        answers = AsyncRetrying(
            retry=retry_if_exception_type(UnreadableAnswer), stop=stop_after_attempt(self._patience.max_answers),
            before_sleep=self._count_asked_again, reraise=True,
        )  # fmt: skip
        try:
            marks: dict[str, float] = await answers(self._marks, client, question(prompt, url, self._detail), deadline)
        except UnreadableAnswer as error:
            raise NoGrade(error.reason, str(error)) from error
        return sum(marks.values()) / len(marks)

    async def _marks(self, client: AsyncOpenAI, messages: list[dict[str, Any]], deadline: float) -> dict[str, float]:
        """One answer, read; if it cannot be, `messages` grow by what the next try has to say about it."""
        answer = await self._answer(client, messages, deadline)
        try:
            return read_marks(answer)
        except UnreadableAnswer as error:
            messages += correction(answer[:LONGEST_REPEATED], str(error))
            raise

    async def _answer(self, client: AsyncOpenAI, messages: list[dict[str, Any]], deadline: float) -> str:
        """The model's words, with as many requests as they take."""
        left = deadline - asyncio.get_running_loop().time()
        requests = AsyncRetrying(
            retry=retry_if_exception(worth_another_try), wait=wait_exception(seconds_asked_for) + PAUSE,
            stop=stop_before_delay(left) | stop_after_attempt(self._patience.max_attempts),
            before_sleep=self._count_retry, reraise=True,
        )  # fmt: skip
        try:
            return words_of(await requests(self._send, client, messages, deadline))
        except (OpenAIError, TimeoutError) as error:
            failed = failure(error, self._endpoint)
        raise failed  # outside of the handler: the client's error holds the request, and so the key

    async def _send(self, client: AsyncOpenAI, messages: list[dict[str, Any]], deadline: float) -> Any:
        """One request, or one more for each parameter that the endpoint turns out not to know."""
        dialect = self.dialect
        try:
            return await self._request(client, messages, deadline, dialect)
        except (BadRequestError, UnprocessableEntityError) as error:
            lesser = dialect.without_refused(error.response.text)
            if lesser is None:
                raise
            if self.dialect == dialect:  # or another image's question has found it out already
                self.dialect = lesser
                words = self._endpoint.redact(words_of_refusal(error))
                logger.warning("the grader does not know a parameter, asking with %s from now on: %s", lesser, words)
        return await self._send(client, messages, deadline)

    async def _request(
        self, client: AsyncOpenAI, messages: list[dict[str, Any]], deadline: float, dialect: Dialect
    ) -> Any:
        seconds = min(self._patience.timeout_s, deadline - asyncio.get_running_loop().time())
        self._usage.requests += 1
        # The client's own time-out is one of each read: an answer that trickles in would never meet it.
        async with asyncio.timeout(max(0.0, seconds)):
            completion = await self._completion(client, messages, dialect)
        used = getattr(completion, "usage", None)
        self._usage.prompt_tokens += getattr(used, "prompt_tokens", None) or 0
        self._usage.completion_tokens += getattr(used, "completion_tokens", None) or 0
        return completion

    async def _completion(self, client: AsyncOpenAI, messages: list[dict[str, Any]], dialect: Dialect) -> Any:
        try:
            # Plain dictionaries: the client's types for them are a union of dozens.
            sent: Any = messages
            return await client.chat.completions.create(
                model=self._endpoint.model, messages=sent, **dialect.parameters(self._seed)
            )
        except (JSONDecodeError, UnicodeDecodeError) as error:  # a response that says it is JSON and is none
            raise UnreadableAnswer("the response is no JSON") from error

    def _count_retry(self, state: RetryCallState) -> None:
        self._usage.retries += 1

    def _count_asked_again(self, state: RetryCallState) -> None:
        self._usage.asked_again += 1


def words_of(completion: Any) -> str:
    """The model's words.

    Args:
        completion: what the client made of the response, which it does not check: text where it was no JSON.

    Returns:
        The words, perhaps none.

    Raises:
        NoGrade: if the model, or a filter before it, would not answer.
        UnreadableAnswer: if it is no chat completion.
    """
    try:
        choice = completion.choices[0]
        content, refusal, finish = choice.message.content, choice.message.refusal, choice.finish_reason
    except (AttributeError, TypeError, IndexError) as error:
        raise UnreadableAnswer("the response is no chat completion; is the URL that of an API, up to /v1?") from error
    if refusal or finish == "content_filter":
        raise NoGrade("rejected", " ".join(str(refusal or "stopped by a content filter").split())[:300])
    return content if isinstance(content, str) else ""


def _is_unicode(text: str) -> bool:
    """Whether a text can be sent: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def png_data_url(image: np.ndarray) -> str:
    """An image as a data URL, without loss.

    Args:
        image: uint8 `[H, W, 3]`, RGB.

    Returns:
        `data:image/png;base64,…`.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
