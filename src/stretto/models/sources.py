"""Where a model's parameters come from: a checkpoint, encoded as it is read, or a folder of quantized weights."""

from __future__ import annotations

import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stretto.kernels.quantized import Quantized
from stretto.models.families import Family, Stored
from stretto.models.folding import Folding
from stretto.models.latent import place
from stretto.models.parameters import Shapes, parameter_shapes
from stretto.models.spec import AttentionSpec, ModelSpec
from stretto.weights import Checkpoint
from stretto.weights.formats import FORMATS, WeightFormat, own_format
from stretto.weights.storage import read_matrix, shapes_of

Progress = Callable[[int, int], None]
"""Called with the number of weights loaded and of all."""


class Parameters(Mapping[str, Tensor | Quantized]):
    """A model's weights under the names of ``spec.PARAMETERS``, each read when it is asked for.

    Vectors (norms and biases, a few thousandths of the weights) come in fp32, matrices in a weights format. A tied
    head whose format differs from the lookups' is a parameter of its own, ``head``.
    """

    def __init__(self, spec: ModelSpec, matrices: WeightFormat) -> None:
        self._shapes = parameter_shapes(spec)
        self.matrices = matrices
        if spec.tied and matrices.quantized:
            self._shapes["head"] = self._shapes["embed"]
        self.progress: Progress | None = None
        self._done, self._seconds = 0, 0.0

    def __getitem__(self, name: str) -> Tensor | Quantized:
        began = time.perf_counter()
        found = self._read(name)
        self._seconds += time.perf_counter() - began
        self._done += math.prod(found.shape)
        if self.progress is not None:
            self.progress(self._done, sum(map(math.prod, self._shapes.values())))
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter."""
        return dict(self._shapes)

    def summary(self) -> str:
        """Return what reading and encoding has taken until now."""
        size = self._done / 1e9
        pace = f"{self._seconds / size:.1f} s per G" if self._done else "none yet"
        return f"{size:.3f} G weights read as {self.matrices.name} in {self._seconds:.1f} s ({pace})"

    def form_of(self, name: str) -> WeightFormat | None:
        """Return the quantized format of a parameter; None if it is kept in floating point."""
        if len(self._shapes[name]) == 1 or not self.matrices.quantized:
            return None
        if name in ("embed", "positions") or name.endswith("router.weight"):
            return None
        return FORMATS[self.matrices.head] if name == "head" and self.matrices.head else self.matrices

    @abstractmethod
    def _read(self, name: str) -> Tensor | Quantized: ...


class CheckpointParameters(Parameters):
    """The tensors of a checkpoint, brought to the format ``matrices``."""

    def __init__(self, checkpoint: Checkpoint, family: Family, spec: ModelSpec, matrices: WeightFormat) -> None:
        super().__init__(spec, matrices)
        self._checkpoint = checkpoint
        self._spec = spec
        self._turns_neighbours = family.turns_neighbours
        self._stored_shapes = parameter_shapes(spec, filled=False)
        self._plan = _plan(checkpoint, family, spec, self._stored_shapes)
        if "head" in self:
            self._plan.setdefault("head", self._plan["embed"])
        self._floats = own_format(own_precision(checkpoint)) if matrices.quantized else matrices
        """Format of the matrices that are not quantized."""
        self._folding = Folding(spec, self._raw) if matrices.folds else None

    def _read(self, name: str) -> Tensor | Quantized:
        tensor = self._raw(name)
        if self._folding is not None:
            tensor = self._folding.fold(name, tensor)
        if tensor.ndim == 1:
            return tensor.float().contiguous()
        form = self.form_of(name) or self._floats
        try:
            encoded = form.encode(tensor)
        except ValueError as error:
            where = f"{self._checkpoint.folder}: {self._plan[name].name}"
            raise ValueError(f"{where} cannot be stored as {form.name}: {error}; use another format") from None
        return encoded.contiguous() if isinstance(encoded, Tensor) else encoded

    def _raw(self, name: str) -> Tensor:
        """Return a parameter as the checkpoint has it."""
        return self._arranged(name, self._checkpoint.get(self._plan[name].name))

    def _arranged(self, name: str, tensor: Tensor) -> Tensor:
        """Return the outputs of ``name``, in our order, out of the tensor that holds them."""
        stored = self._plan[name]
        if stored.transposed:
            tensor = tensor.T
        layer, _, stem = name.rpartition(".")[0].rpartition(".")
        if stored.fused:
            tensor = self._part(tensor, stored, layer, stem, name.rpartition(".")[2])
        attention = self._attention(name)
        if attention is not None and attention.latent is not None:
            return place(stem, tensor, attention, self._turns_neighbours)
        if attention is not None and self._turns_neighbours and stem in ("query", "key"):
            tensor = _halves(tensor, attention)
        return tensor

    def _attention(self, name: str) -> AttentionSpec | None:
        """Return the attention of the layer that a parameter belongs to, if it belongs to one."""
        number = name.split(".")[1] if name.startswith("layers.") else None
        return None if number is None else self._spec.layers[int(number)].attention

    def _part(self, tensor: Tensor, stored: Stored, layer: str, stem: str, kind: str) -> Tensor:
        """Return the outputs of ``stem`` among those of the parameters that share its tensor."""
        number = stored.fused.index(stem)
        sizes = [self._stored_shapes[f"{layer}.{part}.{kind}"][0] for part in stored.fused]
        heads = self._spec.layers[int(layer.rpartition(".")[2])].attention.heads if stored.by_head else 1
        start, stop = sum(sizes[:number]) // heads, sum(sizes[: number + 1]) // heads
        return tensor.view(heads, sum(sizes) // heads, *tensor.shape[1:])[:, start:stop].flatten(0, 1)


def _halves(tensor: Tensor, attention: AttentionSpec) -> Tensor:
    """Return a projection whose heads hold the entries (2i, 2i + 1), which rope turns, at i and i + pairs.

    Query and key in the same other order have the same products.
    """
    if attention.rope is None:
        return tensor
    pairs = len(attention.rope.inverse)
    order = [*range(0, 2 * pairs, 2), *range(1, 2 * pairs, 2), *range(2 * pairs, attention.head_size)]
    heads = tensor.view(-1, attention.head_size, *tensor.shape[1:])
    return heads[:, order].reshape(tensor.shape)


def own_precision(checkpoint: Checkpoint) -> torch.dtype:
    """Return the precision that keeps what the checkpoint has: fp32 or bf16, fp16 being widened."""
    return torch.float32 if checkpoint.dtype is torch.float16 else checkpoint.dtype


class QuantizedParameters(Parameters):
    """The tensors of a folder that ``stretto quantize`` wrote."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, matrices: WeightFormat) -> None:
        super().__init__(spec, matrices)
        self._checkpoint = checkpoint
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._shapes.items():
            form = self.form_of(name)
            shapes |= {name: shape} if form is None else shapes_of(name, shape, form)
        if wrong := checkpoint.names() ^ shapes.keys():
            raise ValueError(
                f"{checkpoint.folder} lacks {_some(wrong)}, or holds it though its config.json does not call for it; "
                "run stretto quantize again"
            )
        for name, shape in shapes.items():
            _check_shape(checkpoint, Stored(name), shape)

    def _read(self, name: str) -> Tensor | Quantized:
        form = self.form_of(name)
        if form is None:
            return self._checkpoint.get(name)
        return read_matrix(self._checkpoint, name, self._shapes[name][1], form)


def _plan(checkpoint: Checkpoint, family: Family, spec: ModelSpec, shapes: Shapes) -> dict[str, Stored]:
    """Return where each parameter lies, having checked that the checkpoint holds these in their shapes and no more."""
    names = checkpoint.names()
    root = family.root if any(name.startswith(family.root) for name in names) else ""
    plan = {ours: family.stored(ours) for ours in shapes}
    plan = {ours: one if ours == "head" else replace(one, name=root + one.name) for ours, one in plan.items()}
    needed = {stored.name for stored in plan.values()}
    if missing := needed - names:
        hint = "; set tie_word_embeddings to true if it is the embedding" if missing == {"lm_head.weight"} else ""
        raise ValueError(f"{checkpoint.folder} lacks {_some(missing)}, which its config.json calls for{hint}")
    left = {name for name in names - needed if not re.search(family.buffers, name)}
    if spec.tied and "lm_head.weight" in left:
        _check_tied(checkpoint, plan["embed"].name)
        left.remove("lm_head.weight")
    if left:
        raise ValueError(
            f"{checkpoint.folder} holds {_some(left)}, which no part of its config.json calls for; its model_type or "
            "one of its flags does not describe these weights"
        )
    for ours, shape in shapes.items():
        head, _, kind = ours.rpartition(".")
        layer = head.rpartition(".")[0]
        outputs = sum(shapes[f"{layer}.{part}.{kind}"][0] for part in plan[ours].fused) or shape[0]
        _check_shape(checkpoint, plan[ours], (outputs, *shape[1:]))
    return plan


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    if not torch.equal(checkpoint.get("lm_head.weight"), checkpoint.get(embedding)):
        raise ValueError(
            f"{checkpoint.folder / 'config.json'}: tie_word_embeddings is true, but lm_head.weight and {embedding} "
            "differ, expected equal tensors; set it to false if the head is a matrix of its own"
        )


def _check_shape(checkpoint: Checkpoint, stored: Stored, shape: tuple[int, ...]) -> None:
    expected = shape[::-1] if stored.transposed else shape
    if checkpoint.shape(stored.name) != expected:
        raise ValueError(
            f"{checkpoint.folder}: tensor {stored.name} has shape {list(checkpoint.shape(stored.name))}, expected "
            f"{list(expected)} from config.json; one of its sizes does not describe these weights"
        )


def _some(names: Collection[str], shown: int = 6) -> str:
    rest = len(names) - shown
    return ", ".join(sorted(names)[:shown]) + (f" and {rest} more tensors" if rest > 0 else "")
