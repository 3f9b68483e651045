"""Where a run comes from: fingerprints of weights, tokenizer and template, versions, source tree and machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from evalkit.files import to_json

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.index.json", "config.json")
_TOKENIZER: Final = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
_PACKAGES: Final = (
    "evalkit-harness",
    "lm-eval",
    "transformers",
    "torch",
    "tokenizers",
    "datasets",
    "numpy",
    "accelerate",
)


@dataclass(frozen=True)
class ModelFingerprint:
    """What identifies a loaded model.

    Attributes
    ----------
    name
        Last part of the path, or the name on the hub.
    path
        The folder with the weights.
    weights_sha256, tokenizer_sha256
        Over the names and contents of the files; None when the folder is not known.
    chat_template_sha256
        Of the template's text; None without one.
    dtype, n_parameters
        As loaded.
    commit
        Revision on the hub, None for a folder.
    """

    name: str
    path: str
    weights_sha256: str | None
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    dtype: str
    n_parameters: int
    commit: str | None

    def answer_key(self, device: str) -> str:
        """Return the hash of everything about the model and the engine that can change an answer."""
        versions = {name: package_versions().get(name) for name in ("lm-eval", "transformers", "torch")}
        return hashlib.sha256(to_json([asdict(self) | {"path": None}, versions, device])).hexdigest()


def fingerprint_model(name: str, backend: Any) -> ModelFingerprint:
    """Fingerprint the model that lm-eval's HFLM has loaded under `name`."""
    folder = Path(name).expanduser()
    commit = getattr(backend.model.config, "_commit_hash", None)
    if not folder.is_dir():
        folder = _hub_folder(name, commit)
    template = getattr(backend.tokenizer, "chat_template", None)
    return ModelFingerprint(
        name=folder.resolve().name if Path(name).expanduser().is_dir() else name,
        path=str(folder.resolve()),
        weights_sha256=hash_files(folder, _WEIGHTS),
        tokenizer_sha256=hash_files(folder, _TOKENIZER),
        chat_template_sha256=hashlib.sha256(to_json(template)).hexdigest() if template else None,
        dtype=str(backend.model.dtype).removeprefix("torch."),
        n_parameters=int(backend.model.num_parameters()),
        commit=commit,
    )


def _hub_folder(name: str, commit: str | None) -> Path:
    """Where the hub's cache holds the files that were just loaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit, local_files_only=True))
    except Exception:  # the fingerprint is then the commit alone
        return Path(name)


def hash_files(folder: Path, patterns: Iterable[str]) -> str | None:
    """Return the sha256 over names and contents of the files that match, in order of name; None when there are none."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that a score depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory's repository and whether it has changes; None outside of one."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10)  # noqa: S603, S607 - fixed words, the user's own git
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """The machine: platform, cores, GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "n_cpus": os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
    }
