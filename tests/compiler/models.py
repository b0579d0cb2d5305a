"""Small models with what real ones bring: residuals, ties, in-place ops, several inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.compiler.inputs import Inputs


class Cnn(nn.Module):
    """Batch norms, a residual, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.branch(y).add_(y).relu_()
        y = y.mean((2, 3))
        result: Tensor = self.head(self.dropout(y.view(y.shape[0], -1)))
        return result


class Counting(nn.Module):
    """Counts its calls in a part of a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls[1:].add_(1)
        return x * 2


class Attention(nn.Module):
    """Attention that drops out in training only, as transformers write it."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        result: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(x)[0][:, -1]
        return result


class Several(nn.Module):
    """Several inputs, one of them optional, and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, pair: tuple[Tensor, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
        a, b = self.left(pair[0]), self.right(pair[1])
        total = a + b if mask is None else (a + b) * mask
        return {"total": total, "parts": (a, [b])}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(ids))
        return result


class TiedAround(nn.Module):
    """The table of the tokens is the matrix of the head as well, with a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(40, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.table(tokens)).relu())
        return result


class ImageAndWords(nn.Module):
    """An image and words in, two outputs, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.words, self.head = nn.Conv2d(16, 16, 3), nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.conv(image).relu().mean((2, 3)) + self.words(words).mean(1)
        return self.head(seen), words + 1


class Regions(nn.Module):
    """A frozen part under no_grad, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y, z = self.frozen(x).relu(), x * 2
        result: Tensor = self.head(y + z + self.offset)
        return result


@dataclass
class Case:
    model: nn.Module
    inputs: Inputs


@cache
def library_stub() -> torch.library.Library:
    """torchvision's CUDA build beside a CPU torch fails to import without these; transformers imports it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        try:
            getattr(torch.ops.torchvision, op)
        except AttributeError:
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def tiny_bert() -> Case:
    library_stub()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    ids = torch.randint(1, 50, (2, 9))
    return Case(
        BertForSequenceClassification(config),
        Inputs.of({"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
    )


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    pair = (torch.randn(2, 4), torch.randn(2, 4))
    return {
        "cnn": Case(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))),
        "attention": Case(Attention(), Inputs.of(torch.randn(2, 5, 8))),
        "recurrent": Case(Recurrent(), Inputs.of(torch.randn(2, 6, 4))),
        "several": Case(Several(), Inputs((pair,), {"mask": torch.ones(2, 3)})),
        "tied": Case(Tied(), Inputs.of(torch.randint(0, 11, (2, 7)))),
        "regions": Case(Regions(), Inputs.of(torch.randn(2, 4))),
        "encoder": Case(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Inputs.of(torch.randn(2, 5, 8))),
    }


NAMES = [*cases()]


def case(name: str) -> Case:
    """A new model in evaluation mode, whose batch norms have seen some data."""
    found = tiny_bert() if name == "bert" else cases()[name]
    with torch.no_grad():
        found.model.train()
        found.inputs.call(found.model)
    found.model.eval()
    return found


def rows(inputs: Inputs, count: int) -> Inputs:
    """The same call with ``count`` rows."""
    return next(inputs.batched(count).split(count))
