"""The transformers backend: lm-eval's own HFLM behind a journal, so that scores are its and no answer is lost."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evalkit.errors import ModelError
from evalkit.runs.journal import Journal, request_key
from evalkit.runs.spec import RunSpec


def load_hf_model(spec: RunSpec) -> Any:
    """Load the model with lm-eval's HFLM.

    Raises
    ------
    ModelError
        The checkpoint is not whole, or the name cannot be had from the hub.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ModelError(
            f"the transformers backend is not installed ({error})", do="pip install 'evalkit-harness[hf]'"
        ) from None
    try:
        return HFLM(
            pretrained=spec.model,
            dtype=spec.dtype,
            batch_size=spec.batch_size,
            device=spec.device or _best_device(),
            trust_remote_code=spec.trust_remote_code,
        )
    except Exception as error:  # transformers, safetensors and torch each have errors of their own for a bad file
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"the model cannot be loaded ({type(error).__name__}: {lines[0] if lines else 'no message'})",
            where=spec.model,
            do="Check that it is a whole transformers checkpoint, or that the hub can be reached",
        ) from error


def _best_device() -> str:
    """A GPU where torch can use one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_model_path(model: str) -> None:
    """Tell a missing folder from a name on the hub before transformers asks the network about it.

    Raises
    ------
    ModelError
        It is written like a path and there is nothing, or what is there is no checkpoint folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                "the folder holds no checkpoint (no config.json)", where=model, do="Give the checkpoint's own folder"
            )
    elif path.exists():
        raise ModelError("this is a file, not a checkpoint folder", where=model, do="Give the folder")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/"):
        raise ModelError("there is no such folder", where=model, do="Check the path")


class JournaledLM(LM):  # type: ignore[misc]
    """An lm-eval model that asks the journal first, and writes down each answer as it comes.

    Requests that the journal knows are not sent. The others go to the backend as one list, so that batches, and
    with them the last digit, are what lm-eval's own command would make of them.
    """

    def __init__(self, backend: Any, journal: Journal, model_key: str, on_answer: Callable[[], None]) -> None:
        super().__init__()
        self.backend = backend
        self.n_requests = 0
        self.n_from_journal = 0
        self._journal, self._model_key, self._on_answer = journal, model_key, on_answer
        self._seed, self._repeat = 0, 0

    def begin_pass(self, seed: int, repeat: int) -> None:
        """Say which seed and repeat the next requests belong to."""
        self._seed, self._repeat = seed, repeat

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score each continuation after its context: (log-likelihood in nats, whether it is the greedy one)."""
        return [(value, bool(greedy)) for value, greedy in self._answer("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Score each text from its beginning, in nats."""
        return self._answer("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate a text for each context."""
        return self._answer("generate_until", requests)

    def _answer(self, method: str, requests: Sequence[Instance]) -> list[Any]:
        keys = self._keys(method, requests)
        known = self._journal.find(keys)
        missing = [number for number, key in enumerate(keys) if key not in known]
        self.n_requests += len(requests)
        self.n_from_journal += len(requests) - len(missing)
        for _ in range(len(requests) - len(missing)):
            self._on_answer()
        if missing:
            asked = [requests[number] for number in missing]
            hook = _Recorder(self._journal, [keys[number] for number in missing], asked, self._on_answer)
            self.backend.set_cache_hook(hook)
            answers = getattr(self.backend, method)(asked, disable_tqdm=True)
            hook.finish(method, answers)
            known.update((keys[number], answer) for number, answer in zip(missing, answers, strict=True))
        return [known[key] for key in keys]

    def _keys(self, method: str, requests: Sequence[Instance]) -> list[str]:
        counts: Counter[str] = Counter()
        keys = []
        for request in requests:
            text = _text(request.args)
            sampled = method == "generate_until" and is_sampled(request.args[1])
            keys.append(
                request_key(
                    self._model_key,
                    method,
                    list(request.args),
                    seed=self._seed if sampled else None,
                    repeat=self._repeat if sampled else None,
                    occurrence=counts[text] if sampled else 0,
                )
            )
            counts[text] += 1
        return keys

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, with which lm-eval keys what depends on it."""
        return str(self.backend.tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Wrap a conversation in the model's chat template."""
        return str(self.backend.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))


def is_sampled(gen_kwargs: dict[str, Any]) -> bool:
    """Whether a generation with these settings draws random numbers; lm-eval is greedy unless told otherwise."""
    do_sample = gen_kwargs.get("do_sample")
    return bool(do_sample) if do_sample is not None else float(gen_kwargs.get("temperature") or 0.0) > 0


class _Recorder:
    """What HFLM tells about each answer as it comes (its `cache_hook`)."""

    def __init__(
        self, journal: Journal, keys: Sequence[str], requests: Sequence[Instance], on_answer: Callable[[], None]
    ) -> None:
        self._journal, self._on_answer = journal, on_answer
        self._requests = requests
        self._keys = keys
        self._waiting: defaultdict[str, deque[str]] = defaultdict(deque)
        for key, request in zip(keys, requests, strict=True):
            self._waiting[_text(request.args)].append(key)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Store one answer; equal requests take equal answers' keys in turn."""
        waiting = self._waiting.get(_text(req))
        if waiting:
            self._journal.add(waiting.popleft(), attr, list(req), res)
            self._on_answer()

    def finish(self, method: str, answers: Sequence[Any]) -> None:
        """Store what the backend returned without telling, and put everything on disk."""
        left = {key for waiting in self._waiting.values() for key in waiting}
        for key, request, answer in zip(self._keys, self._requests, answers, strict=True):
            if key in left:
                left.discard(key)
                self._journal.add(key, method, list(request.args), answer)
                self._on_answer()
        self._journal.commit()


def _text(arguments: Any) -> str:
    """Equal arguments have equal texts; generation settings are dictionaries and cannot be keys themselves."""
    return repr(tuple(arguments))
