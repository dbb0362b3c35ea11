"""Check with known inputs that a device computes correctly, and that a loaded model does.

The device runs a tiny model of the family, whose weights all follow from a formula. The expected
answer to a fixed input is in this module; plain transformers (ESM-2) and a transcription of the
published code (DNABERT) computed it once in float64. The numbers of a loaded model are not known
beforehand: it must give a sequence the same vector in a batch as alone, and its first numbers are
returned, so that workers can be compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.engine.parity import TOLERANCE, apart_by, probes
from embed.models.conventions.convention import Convention
from embed.models.conventions.pooling import Pooler
from embed.models.dnabert.shape import DnabertShape
from embed.models.families import Tokenizer
from fsqueue import ClaimImpossible, WorkerBroken

if TYPE_CHECKING:
    from embed.engine.device import Device
    from embed.engine.float32_fallback import Float32Fallback
    from embed.models.packed.encoder import PackedEncoder

LAYERS, WIDTH, HEADS, INNER, VOCABULARY = 2, 16, 2, 32, 33
IDS: Final = [4 + (7 * n) % 20 for n in range(24)]
ANSWERS: Final = {
    "esm2": (-0.397668, 0.607072, 0.158458, -0.966744, 0.357098, 0.883209),
    "dnabert": (0.713519, 1.316073, -1.523435, -0.158766, 1.806813, -1.075351),
}
"""The first numbers of the vector of IDS."""
ANSWER_TOLERANCE: Final = 1e-3


def check_device(family: str, device: Device) -> None:
    """Run the tiny model there. Raises WorkerBroken if its answer is wrong.

    For a family without a tiny model, that of ESM-2 is used: the device does the same products.
    """
    from embed.engine.engine import Engine

    family = family if family in ANSWERS else "esm2"
    encoder = load_tiny_model(family, device.place)
    engine = Engine(encoder, Pooler(Convention.legacy("mean", family)), device)
    rows = engine.embed([_known_input(family)], _ignore)
    answer = np.array(ANSWERS[family], np.float32)
    found = rows[0, : len(answer)]
    if not np.allclose(found, answer, rtol=ANSWER_TOLERANCE, atol=ANSWER_TOLERANCE):
        raise WorkerBroken(
            f"the device {device.name} computes wrong results: a known input to a known {family} "
            f"gave {found[:3].tolist()} instead of {answer[:3].tolist()}; the card, its driver or "
            f"its PyTorch is faulty. This worker stops. Try another one; see: nvidia-smi -q, dmesg"
        )


def check_model(
    engine: Float32Fallback, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Embed a few sequences together and alone. Raises ClaimImpossible if the vectors differ."""
    batch = probes(tokenizer, options["family"])
    together = engine.embed(batch, _ignore)
    alone = np.concatenate([engine.embed([one], _ignore) for one in batch])
    apart = apart_by(together, alone, scored=bool(options.get("scores")))
    if not apart <= TOLERANCE[options["dtype"]]:  # also if it is NaN
        raise ClaimImpossible(
            f"the model {options['model']} gives a sequence another vector in a batch than alone "
            f"(they differ by {apart:.1e} of the largest number); its results are not reliable on "
            f"this machine. Compare with another worker, and report this defect."
        )
    numbers = [round(float(number), 5) for number in alone[0, :4]]
    return {"sequences": len(batch), "apart": apart, "first_numbers": numbers}


# ---- the tiny models ----


def load_tiny_model(family: str, device: Any) -> PackedEncoder:
    """Load the family's tiny model on a device, from files like those of published models."""
    with tempfile.TemporaryDirectory(prefix="fsqueue-selftest-") as folder:
        write_tiny_model(family, Path(folder))
        if family == "dnabert":
            from embed.models.dnabert import network as dnabert

            return dnabert.load(folder, "float32", device)
        from embed.models.esm2 import network as esm2

        return esm2.load(folder, "float32", device)


def write_tiny_model(family: str, folder: Path) -> None:
    """Write the tiny model's config.json and model.safetensors."""
    from safetensors.numpy import save_file

    config: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": 1026,
    }
    if family == "dnabert":
        config |= {"model_type": "bert", "alibi_starting_size": 512, "layer_norm_eps": 1e-12}
    else:
        config |= {"model_type": "esm", "position_embedding_type": "rotary", "pad_token_id": 1}
        config |= {"mask_token_id": 32, "token_dropout": True, "emb_layer_norm_before": False}
        config |= {"architectures": ["EsmModel"], "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    if family == "dnabert":
        shapes = dict(DnabertShape.read(str(folder)).tensors())
    else:
        shapes = dict(_esm_tensors())
    weights = {name: _weight(name, shape) for name, shape in shapes.items()}
    if family == "esm2":
        steps = np.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)
        weights["rotary_embeddings.inv_freq"] = (10_000.0**-steps).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a tensor's numbers, which follow from its name and their positions."""
    count, start = int(np.prod(shape)), sum(name.encode()) % 97
    waves = np.sin(1.7 * np.arange(count) + start).reshape(shape)
    is_norm = "norm" in name.lower() and name.endswith("weight")
    return (1.0 + 0.1 * waves if is_norm else 0.3 * waves).astype(np.float32)


def _esm_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    d, f = WIDTH, INNER
    yield "embeddings.word_embeddings.weight", (VOCABULARY, d)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        linear = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        linear |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d)}
        linear |= {"output.dense": (d, f)}
        for name, size in linear.items():
            yield f"{at}.{name}.weight", size
            yield f"{at}.{name}.bias", size[:1]
        for name in ("attention.LayerNorm", "LayerNorm"):
            yield f"{at}.{name}.weight", (d,)
            yield f"{at}.{name}.bias", (d,)
    yield "encoder.emb_layer_norm_after.weight", (d,)
    yield "encoder.emb_layer_norm_after.bias", (d,)
    yield "contact_head.regression.weight", (1, LAYERS * HEADS)
    yield "contact_head.regression.bias", (1,)


def _known_input(family: str) -> Tokenized:
    ids = np.array(IDS, np.uint16) if family == "dnabert" else bytes(IDS)
    return Tokenized(0, ids)


def _ignore(_text: str) -> None:
    pass
