"""MiniLM-L6 sentence encoder (a BERT of six layers) with the parameter names of its published weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY, POSITIONS = 384, 12, 6, 1536, 30522, 512


class Embeddings(nn.Module):
    """Sum of word, position and (always the first) token-type embeddings, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the states [batch, seq, 384] of tokens [batch, seq]."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(input_ids) + positions + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Scaled dot-product attention with 12 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the mixed values [batch, seq, 384]; ``bias`` [batch, 1, 1, seq] is added to the scores."""
        batch, length, _ = x.shape
        shape = (batch, length, HEADS, WIDTH // HEADS)
        query, key, value = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)


class Output(nn.Module):
    """End of a sublayer: projection, residual sum, LayerNorm."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Return the states [batch, seq, 384]."""
        return self.LayerNorm(self.dense(hidden) + residual)


class Attention(nn.Module):
    """The attention sublayer."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(), Output(WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the states [batch, seq, 384]."""
        return self.output(self.self(x, bias), x)


class Intermediate(nn.Module):
    """Widening half of the feed-forward sublayer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations [batch, seq, 1536]."""
        return functional.gelu(self.dense(x))


class Layer(nn.Module):
    """One layer: attention sublayer and feed-forward sublayer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = Attention(), Intermediate(), Output(HIDDEN)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the states [batch, seq, 384]."""
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the states [batch, seq, 384] after the last layer."""
        for layer in self.layer:
            x = layer(x, bias)
        return x


class MiniLM(nn.Module):
    """Tokens to one embedding of unit length per sentence, the mean over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(), Encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return float32 [batch, 384] for int64 tokens and mask [batch, seq]."""
        x = self.embeddings(input_ids)
        mask = attention_mask.to(x.dtype)
        x = self.encoder(x, (1 - mask)[:, None, None, :] * -10000.0)
        weights = mask[:, :, None]
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)
