"""A Llama that can be differentiated: the training twin of the engine's transformer.

Its parameters carry the names of a Hugging Face checkpoint, so that the saved file needs no conversion.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stretto.weights.files import whole, write_whole


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama; names are those of a Hugging Face ``config.json``."""

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True

    def config(self, begin: int | None, end: int | list[int]) -> dict[str, object]:
        """Return the ``config.json`` of a checkpoint of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "bos_token_id": begin,
            "eos_token_id": end,
            "torch_dtype": "bfloat16",
            **asdict(self),
        }


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [batch, heads, length, head] by position: half-split layout, as Llama checkpoints store it."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width, head = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
        self.heads, self.kv_heads, self.head = shape.num_attention_heads, shape.num_key_value_heads, head
        self.input_layernorm = nn.RMSNorm(width, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(width, shape.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, self.heads * head, bias=False),
                "k_proj": nn.Linear(width, self.kv_heads * head, bias=False),
                "v_proj": nn.Linear(width, self.kv_heads * head, bias=False),
                "o_proj": nn.Linear(self.heads * head, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, shape.intermediate_size, bias=False),
                "up_proj": nn.Linear(width, shape.intermediate_size, bias=False),
                "down_proj": nn.Linear(shape.intermediate_size, width, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        a, h = self.self_attn, self.input_layernorm(x)
        q = a["q_proj"](h).view(batch, length, self.heads, self.head).transpose(1, 2)
        k = a["k_proj"](h).view(batch, length, self.kv_heads, self.head).transpose(1, 2)
        v = a["v_proj"](h).view(batch, length, self.kv_heads, self.head).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + a["o_proj"](y.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Llama(nn.Module):
    """Returns the hidden states behind the final norm; ``logits`` applies the head."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        head = shape.hidden_size // shape.num_attention_heads
        frequency = shape.rope_theta ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
        angle = torch.outer(torch.arange(shape.max_position_embeddings, dtype=torch.float64), frequency)
        self.cos, self.sin = angle.cos().float(), angle.sin().float()
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * shape.num_hidden_layers) ** 0.5 if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, ids: Tensor) -> Tensor:
        """Return float32 logits [batch, length, vocabulary] behind each token; the head is tied."""
        hidden = self(ids)
        return (hidden @ self.embed_tokens.weight.T.to(hidden.dtype)).float()

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean cross entropy in nats of ``ids[:, 1:]`` given what stands before each."""
        return F.cross_entropy(self.logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def size(self) -> int:
        """Return the number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the weights in bfloat16 under the names of a Hugging Face checkpoint (the head is tied)."""
        return {f"model.{k}": v.detach().to(torch.bfloat16).contiguous() for k, v in self.state_dict().items()}


def save_model(model: Llama, folder: Path, begin: int | None, end: int | list[int]) -> None:
    """Write ``config.json`` with these special tokens, and ``model.safetensors`` in bfloat16, as Hugging Face does."""
    config = model.shape.config(begin, end)
    write_whole(folder / "config.json", json.dumps(config, indent=1) + "\n")
    with whole(folder / "model.safetensors") as partial:
        save_file(model.checkpoint(), partial, metadata={"format": "pt"})
