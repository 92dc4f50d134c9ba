"""Writes the description of a class from a few of its images (docs/method.md, section 1)."""

import logging
from collections.abc import Sequence

from fgvr.agents import prompts
from fgvr.knowledge.classes import DescribeRequest, Description
from fgvr.protocols import MLLM

log = logging.getLogger(__name__)


class Describer:
    """Asks the MLLM for one description per class. An empty answer is recorded as failed; no placeholder enters the library."""

    def __init__(self, mllm: MLLM, *, max_new_tokens: int) -> None:
        self._mllm = mllm
        self._max_new_tokens = max_new_tokens

    def __call__(self, requests: Sequence[DescribeRequest]) -> list[Description]:
        replies = self._mllm.generate(
            [request.pictures for request in requests],
            [prompts.describe_class(request.name, request.superclass) for request in requests],
            system=prompts.SYSTEM,
            max_new_tokens=self._max_new_tokens,
        )
        described = [_read(reply) for reply in replies]
        for request, description in zip(requests, described, strict=True):
            log.debug("%s: %s", request.name, description.text or "no description")
        return described


def _read(reply: str) -> Description:
    text = " ".join(reply.split())
    return Description(text) if text else Description("", "failed")
