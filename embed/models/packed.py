"""Packed batches, which every encoder runs on: sequences end to end, no padding.

A batch goes to the device as one buffer of bytes, which `Layout` writes and `Pack` reads: bounds of
the sequences, then their ids. All else follows from these on the device, in a number of operations
that does not depend on how many sequences there are.

Linear maps and norms see the pack as one long matrix. Attention stays inside each sequence, by one
of the `Kernel`s. A block-diagonal mask over the pack, flex attention and nested tensors give the
same numbers, and were 5 to 13 times slower on a CPU.

One of the doors to torch. What this module does not know: models, names of weights, and tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from embed.models.convention import LAST, Layers
from embed.models.states import States
from fsqueue import ClaimImpossible, NotSupportedError

TensorMap = Callable[[torch.Tensor], torch.Tensor]
Ids = bytes | NDArray[Any]

DTYPES: Final = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The type of the numbers; in tf32, products round their factors to 10 bits of mantissa."""
TYPICAL_TOKENS: Final = 4096
"""Rows that oneDNN should expect when it lays out a weight; other numbers work, too."""
WASTE_MAX: Final = 0.12
"""How much padding the padded kernel may add to a batch, as a share of its tokens."""
RATIOS: Final = (0.0, 0.3, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8, 0.85, 1 / (1 + WASTE_MAX))
"""How short a sequence may be beside the longest of its bucket, tried in this order. By the last,
no bucket has more than WASTE_MAX."""
SLACK: Final = 16
"""Tokens that a sequence may always be shorter; very short ones would need a bucket each."""
HEAD_MULTIPLE: Final = 8
"""The attention kernels of GPUs load so many numbers of a head at once."""
AMPERE: Final = (8, 0)


class Kernel(StrEnum):
    """How attention is computed."""

    RUNS = "runs"
    """A call for every run of sequences of equal length: on CPUs, where calls cost nothing."""
    PADDED = "padded"
    """A call for every bucket of similar lengths, padded: in any type, and with a bias."""
    VARLEN = "varlen"
    """One call of FlashAttention for the whole pack."""


def kernel_for(
    capability: tuple[int, int] | None, dtype: torch.dtype, head: int, *, bias: bool
) -> Kernel:
    """Return the fastest kernel that a device has.

    `capability` is the CUDA compute capability, None for another device. FlashAttention wants half
    precision, Ampere or newer, and no bias. Raises NotSupportedError if there is none.
    """
    if capability is None:
        return Kernel.RUNS
    if head % HEAD_MULTIPLE:
        raise NotSupportedError(
            f"this model has heads of {head} numbers, and the attention kernels of GPUs need a "
            f"multiple of {HEAD_MULTIPLE}. Run it on a CPU: CUDA_VISIBLE_DEVICES="
        )
    has_flash = capability >= AMPERE and dtype != torch.float32 and not bias
    return Kernel.VARLEN if has_flash else Kernel.PADDED


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds every input of a model, and what its tables can hold."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    vocabulary: int
    """One more than the largest id."""
    positions: int | None = None
    """The longest input in tokens, begin and end included; None if there is no such limit."""

    @property
    def count(self) -> int:
        return len(self.begin) + len(self.end)

    @property
    def ids(self) -> type[np.unsignedinteger[Any]] | type[np.signedinteger[Any]]:
        """The smallest type that holds every id."""
        if self.vocabulary <= 1 << 8:
            return np.uint8
        return np.int16 if self.vocabulary <= 1 << 15 else np.int32


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of similar length side by side in the padded layout."""

    first: int
    """The number of the first, in the order of the padded layout."""
    count: int
    length: int
    slot: int
    """Where the first begins in the padded layout."""

    @property
    def stop(self) -> int:
        """Where the last one ends, padding included."""
        return self.slot + self.count * self.length


class Layout:
    """Where everything of a batch is, in its buffer and on the device. Knows no device."""

    def __init__(self, sizes: Sequence[int], frame: Frame, kernel: Kernel) -> None:
        """`sizes` are the lengths of the sequences without begin and end tokens."""
        self.frame, self.kernel = frame, kernel
        self.lengths = [size + frame.count for size in sizes]
        self.tokens = sum(self.lengths)
        self.longest = max(self.lengths)
        self.buckets: list[Bucket] = []
        columns = [_starts(self.lengths)]
        if kernel is Kernel.PADDED:
            columns += self._pad()
        self._bounds = np.concatenate(columns)
        self.bytes = 4 * len(self._bounds) + np.dtype(frame.ids).itemsize * self.tokens

    def _pad(self) -> list[NDArray[np.int32]]:
        """Choose the buckets; return where each sequence begins in the padded layout, and in the
        layout's order where each begins there and here, and its length."""
        order = np.argsort(-np.array(self.lengths), kind="stable")
        lengths = np.array(self.lengths, np.int32)[order]
        padded = np.empty_like(lengths)
        slot = 0
        for first, last in bucket_edges(lengths):
            length = int(lengths[first])
            self.buckets.append(Bucket(first, last - first, length, slot))
            padded[first:last] = length
            slot = self.buckets[-1].stop
        starts = _starts(padded)
        places = np.empty_like(lengths)
        places[order] = starts[:-1]
        begins = _starts(self.lengths)[order]
        return [places, starts, begins, lengths]

    @property
    def slots(self) -> int:
        """Return how many tokens the padded layout has, padding included."""
        return self.buckets[-1].stop if self.buckets else self.tokens

    def write(self, sequences: Sequence[Ids], target: NDArray[np.uint8]) -> None:
        """Write a batch into its buffer, of `bytes` bytes.

        Raises ClaimImpossible if the model has no embedding for an id, or no position for a token:
        on a GPU that would end the process, and look like a fault of the card.
        """
        frame = self.frame
        head = 4 * len(self._bounds)
        target[:head] = self._bounds.view(np.uint8)
        ids = _joined(sequences, frame)
        largest, smallest = int(ids.max()), int(ids.min())
        if largest >= frame.vocabulary or smallest < 0:
            wrong = largest if largest >= frame.vocabulary else smallest
            raise ClaimImpossible(
                f"a sequence has the token {wrong}, and the model has embeddings for "
                f"{frame.vocabulary:,}: its tokenizer belongs to another model. Fetch the model "
                f"again, with all of its files."
            )
        if frame.positions is not None and self.longest > frame.positions:
            raise ClaimImpossible(
                f"a sequence has {self.longest:,} tokens, and the model has positions for "
                f"{frame.positions:,}. Plan with a smaller --max-residues."
            )
        target[head : self.bytes].view(frame.ids)[:] = ids

    def columns(self, data: torch.Tensor) -> list[torch.Tensor]:
        """Return the columns of the bounds in a buffer on a device, int32, and the ids."""
        count = len(self.lengths)
        sizes = [count + 1]
        if self.kernel is Kernel.PADDED:
            sizes += [count, count + 1, count, count]
        head = 4 * sum(sizes)
        dtype = {np.uint8: torch.uint8, np.int16: torch.int16, np.int32: torch.int32}
        ids = data[head : self.bytes].view(dtype[self.frame.ids])  # type: ignore[index]
        return [*data[:head].view(torch.int32).split(sizes), ids]


def _starts(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _joined(sequences: Sequence[Ids], frame: Frame) -> NDArray[Any]:
    """Return the ids of all sequences, each with its begin and end tokens."""
    if isinstance(sequences[0], bytes):
        begin, end = bytes(frame.begin), bytes(frame.end)
        text = b"".join([begin, (end + begin).join(sequences), end])  # type: ignore[arg-type]
        return np.frombuffer(text, np.uint8)
    begin_ids, end_ids = np.array(frame.begin, np.int64), np.array(frame.end, np.int64)
    between = np.concatenate([end_ids, begin_ids])
    parts: list[Any] = [begin_ids]
    for ids in sequences:
        parts += [ids, between]
    parts[-1] = end_ids
    return np.concatenate(parts)


def bucket_edges(lengths: NDArray[Any]) -> list[tuple[int, int]]:
    """Divide lengths, the longest first, into few runs whose padding is at most WASTE_MAX.

    No more of them than one for each SLACK tokens, and then in a geometric series, however many
    lengths there are; unless nearly all sequences are shorter than SLACK.
    """
    total = int(lengths.sum())
    edges: list[tuple[int, int]] = []
    for ratio in RATIOS:
        edges = _edges(lengths, ratio, SLACK)
        if _padded(lengths, edges) <= (1 + WASTE_MAX) * total:
            return edges
    return _edges(lengths, RATIOS[-1], 0)


def _edges(lengths: NDArray[Any], ratio: float, slack: int) -> list[tuple[int, int]]:
    edges, first = [], 0
    while first < len(lengths):
        longest = int(lengths[first])
        least = min(ratio * longest, longest - slack)
        last = int(np.searchsorted(-lengths, -least, "right"))
        edges.append((first, last))
        first = last
    return edges


def _padded(lengths: NDArray[Any], edges: Sequence[tuple[int, int]]) -> int:
    return sum((last - first) * int(lengths[first]) for first, last in edges)


@dataclass
class Pack:
    """A batch on a device."""

    layout: Layout
    bounds: torch.Tensor
    """The offsets of the sequences, (sequences + 1,) int32."""
    tokens: torch.Tensor
    """(tokens,) int32."""
    padding: Padding | None = None
    """For the padded kernel."""
    one_masked: bool = False
    """Whether all sequences are of equal length, and one token of each is the mask."""

    @classmethod
    def read(cls, data: torch.Tensor, layout: Layout) -> Pack:
        """Return the batch of a buffer that `Layout.write` wrote, and that is on a device."""
        bounds, *columns, ids = layout.columns(data)
        padding = Padding(layout, *columns) if layout.kernel is Kernel.PADDED else None
        return cls(layout, bounds, ids.int(), padding)

    @classmethod
    def of(
        cls,
        sequences: Sequence[Ids],
        frame: Frame,
        device: torch.device,
        kernel: Kernel = Kernel.RUNS,
    ) -> Pack:
        """Pack sequences of ids, at once and waiting for the device."""
        layout = Layout([len(ids) for ids in sequences], frame, kernel)
        data = np.empty(layout.bytes, np.uint8)
        layout.write(sequences, data)
        return cls.read(torch.from_numpy(data).to(device), layout)

    @property
    def lengths(self) -> list[int]:
        return self.layout.lengths

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, sequences, length of each) for every run of sequences of equal length."""
        runs, start = [], 0
        for length, equal in groupby(self.lengths):
            count = len(list(equal))
            runs.append((start, count, length))
            start += count * length
        return runs

    @cached_property
    def sequence(self) -> torch.Tensor:
        """The number of each token's sequence, (tokens,) int64."""
        return _repeated(self.bounds.diff(), self.layout.tokens)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each token's place in its sequence, (tokens,) int32, from 0."""
        tokens = torch.arange(self.layout.tokens, dtype=torch.int32, device=self.bounds.device)
        return tokens - self.bounds[self.sequence]

    @cached_property
    def attention_positions(self) -> torch.Tensor:
        """As `positions`, in the layout that attention works in: see `spread`."""
        return self.positions if self.padding is None else self.padding.positions

    def scores_dtype(self, values: torch.Tensor) -> torch.dtype:
        """Return the dtype to attend in: that of the values, if the kernel is a GPU's."""
        return scores_dtype(values) if self.layout.kernel is Kernel.RUNS else values.dtype

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of tokens in the layout that attention works in."""
        return rows if self.padding is None else rows.index_select(0, self.padding.source)


@dataclass
class Padding:
    """The padded layout of a batch: sequences by length, those of a bucket padded to the longest.

    A padded slot repeats the last token of its sequence, so that its numbers are finite.
    """

    layout: Layout
    places: torch.Tensor
    """Where each sequence begins in the padded layout, (sequences,)."""
    starts: torch.Tensor
    """The same in the padded layout's order, and the end, (sequences + 1,)."""
    begins: torch.Tensor
    """Where each begins in the pack, in that order."""
    sizes: torch.Tensor
    """Each one's tokens, in that order."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What a model computed once for all of its layers."""

    @cached_property
    def _row(self) -> torch.Tensor:
        return _repeated(self.starts.diff(), self.layout.slots)

    @cached_property
    def _place(self) -> torch.Tensor:
        slots = torch.arange(self.layout.slots, dtype=torch.int32, device=self.starts.device)
        return slots - self.starts[self._row]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each slot's position in its sequence; those of padding repeat the last."""
        return torch.minimum(self._place, self.sizes[self._row] - 1)

    @cached_property
    def source(self) -> torch.Tensor:
        """The token of each slot, (slots,) int32."""
        return self.begins[self._row] + self.positions

    @cached_property
    def is_padding(self) -> torch.Tensor:
        """Whether each slot is padding, (slots,)."""
        return self._place >= self.sizes[self._row]

    def slots_of(self, pack: Pack) -> torch.Tensor:
        """Return the slot of each token, (tokens,) int32."""
        found = self.kept.get("slots")
        if found is None:
            found = self.places[pack.sequence] + pack.positions
            self.kept["slots"] = found
        return found  # type: ignore[no-any-return]

    def mask(self, bucket: Bucket, dtype: torch.dtype) -> torch.Tensor:
        """Return what is added to a bucket's scores, (sequences, 1, 1, length): 0, or -inf."""
        key = bucket.slot, dtype
        if key not in self.kept:
            sizes = self.sizes[bucket.first : bucket.first + bucket.count, None]
            # Kernels need rows that begin at a multiple of 16 bytes.
            places = torch.arange(-(-bucket.length // 8) * 8, device=sizes.device)
            bias = torch.zeros(bucket.count, len(places), dtype=dtype, device=sizes.device)
            bias.masked_fill_(places >= sizes, float("-inf"))
            self.kept[key] = bias[:, None, None, : bucket.length]
        return self.kept[key]  # type: ignore[no-any-return]


def _repeated(counts: torch.Tensor, total: int) -> torch.Tensor:
    """Return number i as often as counts[i] says; with the total known, nothing waits for it."""
    numbers = torch.arange(len(counts), device=counts.device)
    return torch.repeat_interleave(numbers, counts, output_size=total)


class PackedEncoder(ABC):
    """A loaded model of any family."""

    width: int
    """How many numbers a state has."""
    device: torch.device
    dtype: torch.dtype
    frame: Frame
    head: int
    """How many numbers a head has."""
    has_bias: bool = False
    """Whether something is added to the scores of attention."""

    @abstractmethod
    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token, begin and end included: (tokens, width).

        Nothing here waits for the device.
        """

    def states_of(self, packs: Sequence[Pack], layers: Layers = LAST) -> list[torch.Tensor]:
        """Return what `states` does of each pack."""
        return [self.states(pack, layers) for pack in packs]

    def kernel(self, capability: tuple[int, int] | None) -> Kernel:
        """Return how to attend on a device; raises as `kernel_for` does."""
        return kernel_for(capability, self.dtype, self.head, bias=self.has_bias)

    def hidden(
        self, sequences: Sequence[Ids], layers: Layers = LAST, kernel: Kernel | None = None
    ) -> States:
        """Return the states of sequences of ids, packed at once; begin and end are added here."""
        with torch.inference_mode():
            pack = Pack.of(sequences, self.frame, self.device, kernel or self.kernel(None))
            return States(self.states(pack, layers), pack.bounds)


def linear(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, gelu: bool = False
) -> TensorMap:
    """Return x -> x @ weight.T + bias, optionally followed by the exact (not the tanh) gelu.

    On a CPU this uses oneDNN with its own layout of the weight, made once: 10 to 20 % faster than
    `F.linear` on AMD CPUs, where MKL is slow, and the gelu needs no pass of its own.
    """
    if _has_onednn(weight):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
        after: tuple[str, list[float], str] = ("gelu" if gelu else "none", [], "none")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, bias, *after)  # type: ignore[no-any-return]
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _has_onednn(weight: torch.Tensor) -> bool:
    """Return whether oneDNN can compute in the weight's dtype on this machine.

    The operators are internal to torch, for its compiler, so their absence is not an error.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    return weight.dtype == torch.float32 or has_half_instructions(weight.dtype)


def has_half_instructions(dtype: torch.dtype) -> bool:
    """Return whether this CPU computes in a half precision, and does not only emulate it."""
    short = "bf16" if dtype == torch.bfloat16 else "fp16"
    is_supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported", None)
    return is_supported is not None and bool(is_supported())


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Attend inside each sequence: (rows, heads, d) each, to (tokens, heads * d) of v's dtype.

    The rows are in the layout of `Pack.spread`.
    """
    if pack.layout.kernel is Kernel.VARLEN:
        return varlen(q, k, v, pack.bounds, pack.layout.longest).flatten(1)
    if pack.padding is not None:
        return _attend_padded(q, k, v, pack, pack.padding)
    dtype = pack.scores_dtype(v)
    q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
    output = torch.empty_like(v, memory_format=torch.contiguous_format)
    for start, count, length in pack.runs:
        stop = start + count * length
        parts = (x[start:stop].unflatten(0, (count, length)) for x in (q, k, values))
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        output[start:stop] = attended.transpose(1, 2).flatten(0, 1)
    return output.flatten(1)


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, padding: Padding
) -> torch.Tensor:
    found = []
    for bucket in pack.layout.buckets:
        queries, keys, values = (bucketed(x, bucket) for x in (q, k, v))
        attended = biased_attention(queries, keys, values, padding.mask(bucket, q.dtype))
        found.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    return gathered(found, pack, padding)


def bucketed(rows: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """Return a bucket's rows of a padded layout: (count, heads, length, d)."""
    part = rows[bucket.slot : bucket.stop]
    return part.unflatten(0, (bucket.count, bucket.length)).transpose(1, 2)


def gathered(parts: Sequence[torch.Tensor], pack: Pack, padding: Padding) -> torch.Tensor:
    """Return the rows of all buckets without their padding, in the pack's order."""
    rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return rows.index_select(0, padding.slots_of(pack))


def biased_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend with a bias that is added to the scores, (sequences, heads, tokens, d) each.

    The bias is broadcast. On a GPU this is one kernel, called by its own name: if it cannot run,
    it raises, where `scaled_dot_product_attention` would take a slower one without a word.
    """
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    shape = (*q.shape[:3], k.shape[2])
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias.expand(shape), False, scale=scale
    )
    return found[0]  # type: ignore[no-any-return]


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float | None = None,
    band: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Attend by FlashAttention inside each sequence of a pack, (tokens, heads, d) each.

    `band` is how many tokens before and after it a token attends to, -1 for all. Several heads of
    queries may share one of keys and values.

    The operator is called, and not `torch.nn.attention.varlen`, which is new in PyTorch 2.10 and
    costs another kernel and 40 us a call. Not split over keys where it can be told so: then a
    sequence gives the same numbers in every batch.
    """
    left, right = band
    options = _UNSPLIT if scale is None else _UNSPLIT | {"scale": scale}
    if left >= 0 or right > 0:
        options = options | {"window_size_left": left, "window_size_right": right}
    return torch.ops.aten._flash_attention_forward(  # type: ignore[no-any-return]
        q, k, v, bounds, bounds, longest, longest, 0.0, right == 0, False, **options
    )[0]


_UNSPLIT: Final[dict[str, Any]] = (
    {"num_splits": 1}
    if any(
        each.name == "num_splits"
        for each in torch.ops.aten._flash_attention_forward.default._schema.arguments
    )
    else {}
)


def scores_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the dtype to attend in.

    On a CPU that is float32: it is more exact, and faster than half precision without matrix
    instructions for that.
    """
    return torch.float32 if values.device.type == "cpu" else values.dtype
