"""A small OpenAI-compatible server for tests: each request's trouble is scripted, and every request is recorded.

It is no substitute for a real server: it answers with hashes of the prompt instead of a model's words, and knows just
the fields that evalkit sends. What a real vLLM makes of evalkit's requests is tested with a real vLLM, elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

N_TOKENS = 258
"""Size of the vocabulary: that of the tiny model in conftest.py."""
BLOCK = 4
"""Tokens in one block of the prefix cache."""
MEANINGLESS = -777.0
"""What stands for the log-probability of a token that came from the cache."""
N_WORDS = 6


@dataclass(frozen=True)
class Request:
    """What arrived: `number` counts the posts from 0, `attempt` the equal ones that came before."""

    number: int
    attempt: int
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def key(self) -> str:
        """Equal for equal requests."""
        return f"{self.path} {json.dumps(self.body, sort_keys=True)}"


@dataclass(frozen=True)
class Reply:
    """What goes back: after `delay` seconds, with a Content-Length that may be a lie."""

    content: bytes
    status: int = 200
    declared_length: int | None = None
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Request], Reply | None]
"""Says what happens to a request; None answers it as it should be."""


def says(value: Any, status: int = 200, **more: Any) -> Reply:
    """A reply in JSON."""
    return Reply(json.dumps(value).encode(), status, **more)


def refuses(status: int, message: str = "no", **more: Any) -> Reply:
    """An error as OpenAI's server words it."""
    return says({"error": {"message": message, "type": "stub", "code": status}}, status, **more)


def hangs(seconds: float = 60.0) -> Reply:
    """Nothing for a long time."""
    return Reply(b"", delay=seconds)


def breaks_off() -> Reply:
    """Half an answer, then the connection is closed."""
    return Reply(b'{"choices": [{"te', declared_length=500)


def text_after(prompt: Any, seed: int | None = None) -> str:
    """The stub's whole text after a prompt: six words of six letters."""
    digest = hashlib.sha256(json.dumps([prompt, seed]).encode()).hexdigest()
    return " ".join(digest[begin : begin + 6] for begin in range(0, 6 * N_WORDS, 6))


def favourite(prefix: Sequence[int]) -> int:
    """The likeliest token after `prefix`."""
    return _hash(list(prefix)) % N_TOKENS


def logprob(prefix: Sequence[int], token: int) -> float:
    """The log-probability of `token` after `prefix`."""
    return -0.25 if token == favourite(prefix) else -1.0 - 8.0 * _hash([*prefix, -1, token]) / 2**64


def loglikelihood(context: Sequence[int], continuation: Sequence[int]) -> float:
    """The log-probability of a whole continuation."""
    whole = [*context, *continuation]
    return sum(logprob(whole[:place], whole[place]) for place in range(len(context), len(whole)))


def _hash(value: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:8], "little")


class StubServer:
    """The server, on 127.0.0.1 and a free port. Use it in a `with` block.

    Parameters
    ----------
    script
        What happens to each post instead of an answer.
    write
        The text after a prompt (token ids or messages) with a seed.
    version
        What /version says; None for a server that is not vLLM: it has neither that route nor vLLM's additions.
    key
        The bearer token that it asks for; None for an open server.
    delay
        Seconds that each answer takes.
    scores
        The log-probability of a token after a prefix where vLLM's additions are used, in case it is to be another.
    unspeakable
        Whether the numbers of cached places are such that JSON cannot carry them.
    """

    model = "stub"

    def __init__(
        self,
        script: Script = lambda _: None,
        *,
        write: Callable[[Any, int | None], str] = text_after,
        version: str | None = "0.18.0",
        key: str | None = None,
        delay: float = 0.0,
        scores: Callable[[Sequence[int], int], float] = logprob,
        unspeakable: bool = False,
        max_model_len: int = 2048,
    ) -> None:
        self.script, self.write, self.version, self.key, self.delay = script, write, version, key, delay
        self.scores, self.unspeakable, self.max_model_len = scores, unspeakable, max_model_len
        self.requests: list[Request] = []
        self.answered: Counter[str] = Counter()
        self.most_in_flight = 0
        self._in_flight = 0
        self._seen: Counter[str] = Counter()
        self._cache: set[tuple[int, ...]] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._connections: set[socket.socket] = set()
        self._http: _Http | None = None

    # -- Lifetime ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> StubServer:
        self._ending.clear()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.port = int(self._http.server_address[1])
        return self

    def __exit__(self, *_: object) -> None:
        """End as a killed server does: open connections break."""
        self._ending.set()
        http, self._http = self._http, None
        assert http is not None
        http.shutdown()
        http.server_close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for one in connections:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- What was recorded ---------------------------------------------------------------------------------------------

    @property
    def posts(self) -> list[Request]:
        return [one for one in self.requests if one.method == "POST"]

    @property
    def bodies(self) -> list[Any]:
        return [one.body for one in self.posts]

    # -- One request ---------------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Reply:
        """Record a request and say what goes back."""
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            body = json.loads(content) if content else None
            number = sum(one.method == "POST" for one in self.requests)
            request = Request(number, 0, method, path, headers, body)
            request = Request(number, self._seen[request.key], method, path, headers, body)
            self._seen[request.key] += 1
            self.requests.append(request)
        try:
            scripted = self.script(request) if method == "POST" else None
            reply = scripted or self._answer(request)
            self._ending.wait(reply.delay + self.delay)
        finally:
            with self._lock:
                self._in_flight -= 1
        if method == "POST" and scripted is None and reply.status == 200:
            with self._lock:
                self.answered[request.key] += 1
        return reply

    def _answer(self, request: Request) -> Reply:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refuses(401, "Unauthorized")
        routes: dict[tuple[str, str], Callable[[Any], Reply]] = {
            ("GET", "/health"): lambda _: Reply(b""),
            ("GET", "/v1/models"): lambda _: self._models(),
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat,
        }
        if self.version is not None:
            routes["GET", "/version"] = lambda _: says({"version": self.version})
            routes["POST", "/inference/v1/generate"] = self._tokens_in_tokens_out
        route = routes.get((request.method, request.path))
        return route(request.body) if route else refuses(404, "Not Found")

    def _models(self) -> Reply:
        card = {"id": self.model, "object": "model"}
        return says({"data": [card | ({"max_model_len": self.max_model_len} if self.version else {})]})

    def _completions(self, body: Any) -> Reply:
        if "logprobs" not in body:
            return self._generation(body, body["prompt"], "text")
        if body.get("echo"):
            return self._echo(body["prompt"])
        return self._next_token(body)

    def _chat(self, body: Any) -> Reply:
        choices = (body.get("structured_outputs") or {}).get("choice") or body.get("guided_choice")
        if choices and self.version is not None:
            return self._choice(body["messages"], choices)
        return self._generation(body, body["messages"], "message")

    def _generation(self, body: Any, prompt: Any, kind: str) -> Reply:
        words = self.write(prompt, body.get("seed")).split(" ")
        kept = words[: body["max_tokens"]]
        text, reason = " ".join(kept), "stop" if len(kept) == len(words) else "length"
        for stop in body.get("stop", ()):
            if stop in text:
                text, reason = text.split(stop)[0], "stop"
        choice = {"text": text} if kind == "text" else {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(kept)}
        return says({"choices": [{"index": 0, **choice, "finish_reason": reason}], "usage": usage})

    def _choice(self, prompt: Any, choices: list[str]) -> Reply:
        """One of the choices, whatever the model would rather write, and the log-probabilities of all of them."""
        known = {one: -0.5 - _hash([prompt, one]) / 2**63 for one in choices}
        best = max(known, key=lambda one: known[one])
        likeliest = [{"token": "I", "logprob": -0.25}, *({"token": one, "logprob": known[one]} for one in choices)]
        place = {"token": best, "logprob": known[best], "top_logprobs": likeliest}
        choice = {"message": {"role": "assistant", "content": best}, "logprobs": {"content": [place]}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
        return says({"choices": [{"index": 0, **choice, "finish_reason": "stop"}], "usage": usage})

    def _echo(self, prompt: list[int]) -> Reply:
        """The prompt's log-probabilities and those of the one token that is generated; each with the likeliest."""
        whole = [*prompt, favourite(prompt)]
        values: list[float | None] = [None]
        tables: list[dict[str, float] | None] = [None]
        for place in range(1, len(whole)):
            prefix, token = whole[:place], whole[place]
            values.append(logprob(prefix, token))
            best = favourite(prefix)
            tables.append({f"token_id:{one}": logprob(prefix, one) for one in (token, best)})
        tokens = [f"token_id:{token}" for token in whole]
        return _scored({"tokens": tokens, "token_logprobs": values, "top_logprobs": tables}, len(prompt))

    def _next_token(self, body: Any) -> Reply:
        prompt, best = body["prompt"], favourite(body["prompt"])
        if self.version is None:
            # A server that knows neither field: it names tokens by their text, and only the likeliest.
            table, tokens = {"word": -0.25}, ["word"]
        else:
            table = {f"token_id:{one}": self.scores(prompt, one) for one in [best, *body["logprob_token_ids"]]}
            tokens = [f"token_id:{best}"]
        return _scored({"tokens": tokens, "token_logprobs": [-0.25], "top_logprobs": [table]}, len(prompt))

    def _tokens_in_tokens_out(self, body: Any) -> Reply:
        """As vLLM with prefix caching: blocks that were seen before are not computed, and have no log-probabilities."""
        prompt, sampling = body["token_ids"], body["sampling_params"]
        blocks = [tuple(prompt[:end]) for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        with self._lock:
            # The last token is always computed.
            known = [len(one) for one in blocks if one in self._cache and len(one) < len(prompt)]
            self._cache.update(blocks)
        cached = 0 if sampling["skip_reading_prefix_cache"] else max(known, default=0)
        if cached and self.unspeakable:
            return refuses(400, "Out of range float values are not JSON compliant: nan")
        places: list[Any] = [None]
        for place in range(1, len(prompt)):
            prefix, token = prompt[:place], prompt[place]
            value = MEANINGLESS if place <= cached else self.scores(prefix, token)
            rank = 1 if token == favourite(prefix) else 2
            places.append({str(token): {"logprob": value, "rank": rank, "decoded_token": None}})
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
        return says({"prompt_logprobs": places, "choices": [{"token_ids": [favourite(prompt)]}], "usage": usage})


def _scored(logprobs: Any, n_prompt: int) -> Reply:
    usage = {"prompt_tokens": n_prompt, "completion_tokens": 1}
    return says({"choices": [{"index": 0, "text": "", "logprobs": logprobs}], "usage": usage})


class _Http(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with stub._lock:
                stub._connections.add(self.connection)

        def finish(self) -> None:
            with stub._lock:
                stub._connections.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = stub.handle(self.command, self.path, headers, content)
            length = len(reply.content) if reply.declared_length is None else reply.declared_length
            self.close_connection = self.close_connection or length != len(reply.content) or stub._ending.is_set()
            lines = [f"HTTP/1.1 {reply.status} Scripted", f"Content-Length: {length}"]
            lines += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in reply.headers.items())]
            lines += ["Connection: close"] if self.close_connection else []
            # One write: head and body in two would wait for each other.
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + reply.content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
