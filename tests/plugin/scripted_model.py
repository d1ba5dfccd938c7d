"""A stand-in for the model behind a real client: it calls one tool, and keeps what the client tells it of the result.

The client takes the address of its model from the environment; this one listens on the loopback. Each conversation gets
the call that is set, then a short text.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class ScriptedModel:
    """Serves the Messages API until it is closed. `call` is the tool and its input for the next conversation."""

    def __init__(self) -> None:
        self.call: tuple[str, dict[str, object]] = ("", {})
        self.results: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"model": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ScriptedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The content block that answers a request."""
        blocks = [
            block
            for message in request.get("messages", [])
            if isinstance(message["content"], list)
            for block in message["content"]
        ]
        results = [_text(block.get("content")) for block in blocks if block.get("type") == "tool_result"]
        self.results += results
        if results or not request.get("tools"):
            return {"type": "text", "text": "OK"}
        name, given = self.call
        return {"type": "tool_use", "id": "toolu_00000001", "name": name, "input": given}


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
        stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
        message = {
            **{
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": request.get("model"),
                "content": [block],
            },
            **{"stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}},
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


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return str(content)
