"""Frames between the explorer and the engine process: a length, a kind, a request id, a body.

    u32 length of the rest | u8 kind | u64 request id | body

The body is `codec` bytes, or UTF-8 JSON for FAILURE. A frame longer than FRAME_CAP is refused before it is read, so a
broken peer costs an error and never memory.
"""

from __future__ import annotations

import enum
import struct

from memloc_core.errors import MemlocError

HEADER = struct.Struct(">IBQ")
FRAME_CAP = 1 << 30


class Kind(enum.IntEnum):
    ASK = 1  # to the engine: a request
    CANCEL = 2  # to the engine: stop working on the request of that id
    PROGRESS = 3  # from the engine: a Progress
    ANSWER = 4  # from the engine: an Answer; the last frame of its id
    FAILURE = 5  # from the engine: {"error": class name, "message": text}; the last frame of its id
    PAUSE = 6  # to the engine: take no further step of the request of that id
    RESUME = 7  # to the engine: go on with it


class FrameError(MemlocError):
    """The other side sent something that is no frame."""


def pack(kind: Kind, request_id: int, body: bytes = b"") -> bytes:
    """One frame; raises FrameError where the body is over FRAME_CAP."""
    if len(body) > FRAME_CAP:
        raise FrameError(f"A message of {len(body):,} bytes is over the limit of {FRAME_CAP:,}.")
    return HEADER.pack(len(body) + HEADER.size - 4, kind, request_id) + body


def unpack_header(header: bytes) -> tuple[Kind, int, int]:
    """(kind, request id, length of the body still to be read) of HEADER.size bytes; raises FrameError."""
    length, kind, request_id = HEADER.unpack(header)
    size = length - (HEADER.size - 4)
    if not 0 <= size <= FRAME_CAP:
        raise FrameError(f"A frame claims a body of {size:,} bytes.")
    try:
        return Kind(kind), request_id, size
    except ValueError:
        raise FrameError(f"A frame has the unknown kind {kind}.") from None
