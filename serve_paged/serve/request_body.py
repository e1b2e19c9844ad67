"""Reads a request's body up to a limit."""

from starlette.requests import Request

from serve_paged.core.errors import InvalidRequest

# Several times what the longest contexts hold as text or token ids. The body is parsed in one piece on the event loop:
# the worst JSON of this size (lists of tiny lists) stalls all streams for about a second, text for milliseconds.
MAX_BODY_BYTES = 4 * 2**20


class BodyTooLarge(InvalidRequest):
    """The body is longer than the server reads (HTTP 413)."""


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as the limit is known to be exceeded."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():  # a chunked body declares no length
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES // 2**20} MiB")
