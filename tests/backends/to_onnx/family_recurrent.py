"""Recurrent layers of every form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function, floats


def recurrent() -> list[Family]:
    made = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for first in (True, False):
            for both in (True, False):
                for layers in (1, 2):
                    name = f"{kind.__name__}-{'batch' if first else 'time'}-first-{layers}{'-both' if both else ''}"
                    made.append(_recurrent_family(name, kind, first, both, layers))
    made.append(_recurrent_family("RNN-relu", nn.RNN, True, True, 1, nonlinearity="relu"))
    made.append(_recurrent_family("LSTM-without-bias", nn.LSTM, True, False, 1, bias=False))
    made.append(_recurrent_family("GRU-without-bias", nn.GRU, True, True, 1, bias=False))
    made.append(_recurrent_family("LSTM-projected", nn.LSTM, True, False, 1, proj_size=3))
    cell = Function(_cells, lstm=nn.LSTMCell(5, 7), gru=nn.GRUCell(7, 6), rnn=nn.RNNCell(6, 4))
    return [*made, Family("cells", lambda: cell, floats(4, 5)), Family("LSTM-with-state", _stateful, _state_inputs)]


def _recurrent_family(name: str, kind: Any, first: bool, both: bool, layers: int, **options: Any) -> Family:
    def build() -> nn.Module:
        layer = kind(5, 6, num_layers=layers, batch_first=first, bidirectional=both, **options)
        return Function(_run_recurrent if first else _run_time_first, layer=layer)

    return Family(name, build, floats(4, 5))


def _run_recurrent(self: Any, x: Tensor) -> Any:
    return self.layer(x)


def _run_time_first(self: Any, x: Tensor) -> Any:
    return self.layer(x.transpose(0, 1))


def _cells(self: Any, x: Tensor) -> Any:
    h, c = self.lstm(x[:, 0])
    h, c = self.lstm(x[:, 1], (h, c))
    return self.rnn(self.gru(h)), c


def _stateful() -> nn.Module:
    return Function(
        lambda self, x, h, c: self.layer(x, (h.transpose(0, 1), c.transpose(0, 1))),
        layer=nn.LSTM(5, 6, 2, batch_first=True),
    )


def _state_inputs(batch: int) -> Inputs:
    return Inputs((torch.randn(batch, 4, 5), torch.randn(batch, 2, 6), torch.randn(batch, 2, 6)))
