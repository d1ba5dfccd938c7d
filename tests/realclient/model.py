"""A stand-in for the model behind a real client: it calls the tools that a test has planned, and keeps what it saw.

The client takes the address of its model from the environment; this one listens on the loopback. Without a planned call
it answers "OK". Each session has a model of its own, so a test knows which session was shown what.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A call of one of the client's tools."""

    tool: str
    given: dict[str, object]


class ScriptedModel:
    """Serves the Messages API until it is closed.

    `requests` are the conversations that the client has sent, oldest first, each as one text that holds all that the
    model is shown except tools and system prompt. Requests without tools (titles, say) are answered and not kept.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.tools: list[str] = []
        self._planned: deque[Call] = deque()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"model": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def plan(self, *calls: Call) -> None:
        """Adds calls, one for each of the next requests."""
        with self._lock:
            self._planned.extend(calls)

    @property
    def shown(self) -> str:
        """The newest conversation, whole; "" before the first."""
        with self._lock:
            return self.requests[-1] if self.requests else ""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> ScriptedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The content block that answers a request."""
        with self._lock:
            if not request.get("tools"):
                return {"type": "text", "text": "OK"}
            self.tools = [str(tool.get("name")) for tool in request["tools"]]
            self.requests.append("\n".join(_text(message["content"]) for message in request["messages"]))
            if not self._planned:
                return {"type": "text", "text": "OK"}
            call = self._planned.popleft()
            return {"type": "tool_use", "id": f"toolu_{next(self._ids):08d}", "name": call.tool, "input": call.given}


def _text(content: object) -> str:
    """What the model reads of a message's content; calls of its own are left out."""
    if isinstance(content, str):
        return content
    parts = []
    for block in content if isinstance(content, list) else ():
        if block.get("type") == "text":
            parts.append(block["text"])
        elif block.get("type") == "tool_result":
            parts.append(f"<result>{_text(block.get('content'))}</result>")
    return "\n".join(parts)


class _Handler(BaseHTTPRequestHandler):
    model: ScriptedModel
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send("application/json", b"{}")

    do_GET = do_HEAD

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if "count_tokens" in self.path or "/messages" not in self.path:
            self._send("application/json", b'{"input_tokens": 1}')
            return
        block = self.model.answer(request)
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.get("model"),
            "content": [block],
            "stop_reason": "tool_use" if block["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        if request.get("stream"):
            self._send("text/event-stream", _events(message, block))
        else:
            self._send("application/json", json.dumps(message).encode())

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _events(message: dict[str, Any], block: dict[str, Any]) -> bytes:
    """A message as the API streams it."""
    text = block["type"] == "text"
    empty = {**block, "text": ""} if text else {**block, "input": {}}
    delta = (
        {"type": "text_delta", "text": block["text"]}
        if text
        else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    )
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    ]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
