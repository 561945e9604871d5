"""The public library: ask the inference daemon of this machine over its Unix socket.

`Client` blocks, `AsyncClient` is awaited; both raise the classes of `appliance.errors` by the daemon's kinds. Importing
this package takes no engine, no screen and no HTTP library.
"""

from appliance.client.aio import AsyncClient, AsyncStream
from appliance.client.client import DEFAULT_SOCKET, Client, Stream, default_socket
from appliance.client.types import (
    Answer,
    Caller,
    Choice,
    Health,
    Limits,
    Memory,
    Message,
    ModelInfo,
    Options,
    ParameterCounts,
    Piece,
    Problem,
    RequestCounts,
    Status,
    Timings,
    TokenCounts,
    Usage,
)

__all__ = [
    "DEFAULT_SOCKET",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Caller",
    "Choice",
    "Client",
    "Health",
    "Limits",
    "Memory",
    "Message",
    "ModelInfo",
    "Options",
    "ParameterCounts",
    "Piece",
    "Problem",
    "RequestCounts",
    "Status",
    "Stream",
    "Timings",
    "TokenCounts",
    "Usage",
    "default_socket",
]
