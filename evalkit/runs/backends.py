"""Opens what a run's options name: transformers in this process, a vLLM server of our own, or a running server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evalkit.errors import ModelError, SpecError
from evalkit.files import to_json
from evalkit.progress import say, warn
from evalkit.runs.client import Client, get_json, post_json
from evalkit.runs.engine import Engine
from evalkit.runs.provenance import ModelFingerprint, fingerprint_folder, fingerprint_model, package_versions
from evalkit.runs.served import FOREIGN_STOP_LIMIT, ServedEngine
from evalkit.runs.server import SERVED_NAME, STOP_LIMIT, VllmServer
from evalkit.runs.spec import RunSpec


@dataclass(frozen=True)
class Backend:
    """A model that is ready to answer.

    Attributes
    ----------
    engine, tokenizer
        What answers, and what turns texts into tokens; None for a chat endpoint, which takes messages.
    fingerprint
        Of the model.
    identity
        What of the engine can change an answer: name, version, flags.
    generation_config
        What the checkpoint's own file of that name says.
    stop_limit
        Most stop strings that the server takes; None for any number.
    address
        Of a server that somebody else runs; recorded, and part of the identity only where it has to be.
    """

    engine: Engine
    tokenizer: Any
    fingerprint: ModelFingerprint
    identity: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    stop_limit: int | None = None
    address: str | None = None

    @property
    def answer_key(self) -> str:
        """Hash of everything about the model and the engine that can change an answer.

        The names do not count where the weights are known: the same weights elsewhere give the same answers.
        """
        known = asdict(self.fingerprint)
        if known["weights_sha256"]:
            known |= {"name": None, "path": None}
        # Where a text ends is the checkpoint's to say; its other generation settings are not applied.
        ends = self.generation_config.get("eos_token_id")
        return hashlib.sha256(to_json([known, self.identity, ends])).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a record of the run should say about the engine."""
        where = {} if self.address is None else {"address": self.address}
        return {**self.identity, **where, **self.engine.describe()}


@contextlib.contextmanager
def open_backend(spec: RunSpec) -> Iterator[Callable[[], Backend]]:
    """Begin to make `spec.model` ready on `spec.backend`, and end what was started for it.

    A server needs a while: it is launched at once, and the function that is yielded waits for it. Other work has its
    place between.

    Raises
    ------
    ModelError
        (by the function) The model cannot be loaded, or the server does not start or answer.
    """
    if spec.backend == "hf":
        yield lambda: _open_hf(spec)
    elif spec.backend == "openai":
        yield lambda: _open_foreign(spec)
    else:
        server = make_server(spec)
        try:
            server.launch()
            yield lambda: on_server(server, spec)
        finally:
            server.stop()


def _open_hf(spec: RunSpec) -> Backend:
    from evalkit.runs.hf import HfEngine, load_hf_model

    say(f"loading {spec.model}")
    loaded = load_hf_model(spec, spec.tokenizer)
    fingerprint = fingerprint_model(spec.model, loaded, tokenizer_name=spec.tokenizer)
    # Before the engine replaces it.
    config = loaded.model.generation_config.to_diff_dict() if loaded.model.can_generate() else {}
    engine = HfEngine(
        loaded,
        batch_size=None if spec.batch_size == "auto" else spec.batch_size,
        share_contexts=spec.scoring == "auto",
    )
    versions = {name: package_versions().get(name) for name in ("transformers", "torch")}
    identity = {"engine": "transformers", "versions": versions, "device": str(loaded.device)}
    return Backend(engine, loaded.tokenizer, fingerprint, identity, config)


def make_server(spec: RunSpec, *, swappable: bool = False) -> VllmServer:
    """A vLLM server for `spec`, not started yet.

    Raises
    ------
    SpecError
        The engine flags name a tokenizer, of which this side would not know.
    """
    args = shlex.split(spec.vllm_args)
    if any(word.split("=")[0] == "--tokenizer" for word in args):
        raise SpecError(
            "this names the server's tokenizer, and prompts become tokens on this side",
            where=f"--vllm-args '{spec.vllm_args}'",
            do="Give --tokenizer to evalkit run: then both sides have it",
        )
    return VllmServer(
        spec.model,
        spec.out / "server.log",
        python=spec.vllm_python,
        args=[*args, *(("--tokenizer", spec.tokenizer) if spec.tokenizer else ())],
        dtype=spec.dtype,
        trust_remote_code=spec.trust_remote_code,
        swappable=swappable,
        startup_timeout=spec.startup_timeout,
    )


def on_server(server: VllmServer, spec: RunSpec) -> Backend:
    """The checkpoint that `server` serves, as soon as it does."""
    server.start()
    version = server.version()
    client = Client(
        lambda: server.address,
        key=server.key,
        concurrency=spec.concurrency,
        max_retries=spec.max_retries,
        timeout=spec.timeout,
        revive=server.revive,
    )
    shared = _has_cached_prompts(server.address, SERVED_NAME, server.key) if spec.scoring == "auto" else False
    tokenizer = load_tokenizer(spec)
    engine = ServedEngine(
        client,
        SERVED_NAME,
        server.max_model_len(),
        stop_limit=STOP_LIMIT,
        token_logprobs=spec.scoring == "auto",
        all_parameters=True,
        cached_prompt_logprobs=shared,
        tokenizer=tokenizer,
    )
    fingerprint = fingerprint_folder(spec.model, tokenizer, dtype=spec.dtype, tokenizer_name=spec.tokenizer)
    identity = {"engine": "vllm", "versions": {"vllm": version}, "flags": server.flags}
    return Backend(engine, tokenizer, fingerprint, identity, _generation_config(spec.model), STOP_LIMIT)


def _open_foreign(spec: RunSpec) -> Backend:
    """A server that somebody else runs; the key is read from OPENAI_API_KEY.

    Its address is part of its identity, that is, of the journal's keys, in two cases. Where the weights are unknown,
    nothing but address and name tells models apart. And in a journal that several runs share: a server does not tell
    its flags, so two servers may well run equal weights in different precisions, and comparing them is a good reason
    for two runs. In a run's own journal known weights are enough: the server may have moved when the run is resumed.
    """
    if not spec.base_url:
        raise SpecError("no server is named", where="--backend openai", do="Give --base-url http://HOST:PORT")
    base = spec.base_url.rstrip("/").removesuffix("/v1")
    key = os.environ.get("OPENAI_API_KEY")
    models = get_json(f"{base}/v1/models", key=key)
    try:
        cards = {str(card["id"]): card for card in models["data"]}
    except (KeyError, TypeError):
        raise ModelError("this is no OpenAI-compatible server", where=base, do="Check --base-url") from None
    name = spec.served_model or next(iter(cards), "")
    if name not in cards:
        known = ", ".join(cards) or "none"
        raise ModelError(f"the server does not serve '{name}'", where=base, do=f"It serves: {known}")
    chat = spec.endpoint == "chat"
    version = _version(base, key)
    is_vllm = version is not None and spec.scoring == "auto" and not chat
    max_length = cards[name].get("max_model_len")
    tokenizer = None if chat else load_tokenizer(spec)
    if max_length is None:
        max_length = 1 << 20 if tokenizer is None else min(int(tokenizer.model_max_length), 1 << 20)
    engine = ServedEngine(
        Client(lambda: base, key=key, concurrency=spec.concurrency, max_retries=spec.max_retries, timeout=spec.timeout),
        name,
        int(max_length),
        token_logprobs=is_vllm,
        all_parameters=version is not None,
        cached_prompt_logprobs=is_vllm and _has_cached_prompts(base, name, key),
        chat=chat,
        tokenizer=tokenizer,
        guidance=_guidance(version) if chat else None,
    )
    fingerprint = fingerprint_folder(spec.model, tokenizer, dtype="served", tokenizer_name=spec.tokenizer)
    if fingerprint.weights_sha256 is None:
        warn(
            f"the weights behind {base} are unknown: answers are kept under its address and the name '{name}', so do "
            "not serve another model there under the same name with the same journal"
        )
    say(f"using {name} on {base}" + (f" (vLLM {version})" if version else ""))
    identity = {"engine": "openai", "versions": {"server": version}, "served_model": name}
    if fingerprint.weights_sha256 is None or spec.journal is not None:
        identity["address"] = base
    config = _generation_config(spec.model)
    return Backend(engine, tokenizer, fingerprint, identity, config, FOREIGN_STOP_LIMIT, base)


def load_tokenizer(spec: RunSpec) -> Any:
    """The tokenizer that turns prompts into token ids on this side.

    Raises
    ------
    ModelError
        It cannot be loaded.
    """
    from transformers import AutoTokenizer

    name = spec.tokenizer or spec.model
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # each tokenizer library has errors of its own
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"the tokenizer cannot be loaded ({lines[0] if lines else type(error).__name__})",
            where=str(name),
            do="Give --tokenizer with the model's folder or hub name, or --endpoint chat for a chat server",
        ) from error


def _generation_config(model: str) -> dict[str, Any]:
    """What the checkpoint's generation_config.json says, if it is there."""
    import json

    try:
        found = json.loads((Path(model).expanduser() / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(base: str, key: str | None) -> str | None:
    """vLLM's version; None for another server."""
    reply = _answer(lambda: get_json(f"{base}/version", key=key))
    return str(reply["version"]) if isinstance(reply, dict) and "version" in reply else None


def _guidance(version: str | None) -> str | None:
    """The field by which this version of vLLM holds an answer to given choices."""
    if version is None:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    is_old = numbers is not None and (int(numbers[1]), int(numbers[2])) < (0, 11)
    return "guided_choice" if is_old else "structured_outputs"


def _has_cached_prompts(base: str, name: str, key: str | None) -> bool:
    """Whether the server's token-in-token-out endpoint is open and tells how much came from its cache."""
    sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "skip_reading_prefix_cache": False}
    body = {"model": name, "token_ids": [1, 2], "sampling_params": sampling}
    reply = _answer(lambda: post_json(f"{base}/inference/v1/generate", body, key=key))
    try:
        return "cached_tokens" in reply["usage"]["prompt_tokens_details"]
    except (KeyError, TypeError):
        return False


def _answer(ask: Callable[[], Any]) -> Any:
    """Ask a question that a server may not know; None when it says so.

    A server that is only in trouble is asked again: what it can do decides how the run is made.
    """
    for pause in (0.5, 2.0, None):
        try:
            return ask()
        except ModelError as error:
            if error.what.startswith("HTTP 4"):
                return None
            if pause is None:
                raise
            time.sleep(pause)
    return None
