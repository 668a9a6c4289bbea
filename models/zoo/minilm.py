"""MiniLM-L6 sentence encoder (a BERT of six layers) with the parameter names of its published weights."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY, POSITIONS = 384, 12, 6, 1536, 30522, 512


def dense_with_norm(inputs: int) -> nn.ModuleDict:
    """Return the output half of a BERT sublayer: projection to the model width and its LayerNorm."""
    return nn.ModuleDict({"dense": nn.Linear(inputs, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, eps=1e-12)})


class Layer(nn.Module):
    """Self-attention and feed-forward sublayers, each followed by its residual sum and LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        projections = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": dense_with_norm(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, HIDDEN)})
        self.output = dense_with_norm(HIDDEN)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the states [batch, seq, 384]; ``bias`` [batch, 1, 1, seq] is added to the attention scores."""
        batch, length, _ = x.shape
        projections, output = self.attention["self"], self.attention["output"]
        query, key, value = (
            projections[name](x).view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)
        x = output["LayerNorm"](output["dense"](mixed) + x)
        hidden = functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](hidden) + x)


class MiniLM(nn.Module):
    """Tokens to one embedding of unit length per sentence, the mean over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        tables = {"word": VOCABULARY, "position": POSITIONS, "token_type": 2}
        embeddings: dict[str, nn.Module] = {
            f"{name}_embeddings": nn.Embedding(size, WIDTH) for name, size in tables.items()
        }
        self.embeddings = nn.ModuleDict({**embeddings, "LayerNorm": nn.LayerNorm(WIDTH, eps=1e-12)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float32 [batch, 384] for int64 tokens and mask [batch, seq]."""
        tables = self.embeddings
        positions = tables["position_embeddings"].weight[: input_ids.shape[1]]
        x = tables["word_embeddings"](input_ids) + positions + tables["token_type_embeddings"].weight[0]
        x = tables["LayerNorm"](x)
        mask = attention_mask.to(x.dtype)
        bias = (1 - mask)[:, None, None, :] * -10000.0
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        weights = mask[:, :, None]
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)
