"""Reports as a compilation makes them: made up by hypothesis, and one with everything in it."""

from __future__ import annotations

from hypothesis import strategies as st

from planish.compiler.report import Decision, Error, Figures, Latency, Report, Step

words = st.text(st.characters(max_codepoint=0x3FF, exclude_categories=["C", "Z", "M"]), min_size=1, max_size=30)
sentences = st.lists(words, min_size=1, max_size=12).map(" ".join)
times = st.floats(1e-3, 1e5)
counts = st.integers(0, 10**11)


def latencies(source: str) -> st.SearchStrategy[Latency]:
    return st.builds(Latency, median_ms=times, batch=st.integers(1, 512), source=st.just(source), how=sentences)


def figures(source: str) -> st.SearchStrategy[Figures]:
    return st.builds(
        Figures,
        size_bytes=st.integers(1, 10**11),
        macs=counts,
        parameters=counts,
        latency=st.none() | latencies(source),
        metric=st.none() | st.floats(-1e6, 1e6),
        snr_db=st.none() | st.floats(-300, 300),
    )


decisions = st.builds(
    Decision,
    module=words | st.just(""),
    op=words,
    node=words,
    outcome=st.sampled_from(["float", "int8"]),
    reason=sentences,
)


def steps(source: str) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        compression=words,
        options=st.dictionaries(words, st.integers() | words | st.lists(words, max_size=3), max_size=3),
        reason=sentences,
        outcome=st.sampled_from(["kept", "undone", "kept on request", "exact"]),
        verdict=sentences,
        before=st.none() | figures(source),
        after=st.none() | figures(source),
        seconds=times,
        peak_memory_mb=times,
        decisions=st.lists(decisions, max_size=20),
        notes=st.lists(sentences, max_size=3),
    )


def reports_from(source: str) -> st.SearchStrategy[Report]:
    return st.builds(
        Report,
        model=words,
        target=words,
        backend=words,
        notes=st.lists(sentences, max_size=4),
        baseline=st.none() | figures(source),
        result=st.none() | figures(source),
        steps=st.lists(steps(source), max_size=4),
        not_planned=st.dictionaries(words, sentences, max_size=3),
        runtime_decisions=st.lists(decisions, max_size=20),
        errors=st.lists(
            st.builds(Error, output=counts, dtype=words, max_abs=times, max_relative=times, snr_db=st.none() | times),
            max_size=2,
        ),
        seconds=st.dictionaries(words, times, max_size=5),
        peak_memory_mb=times,
    )


reports = st.sampled_from(["measured", "estimated"]).flatmap(reports_from)


def latency(median_ms: float, source: str = "measured") -> Latency:
    how = {"measured": "Some Runtime 1.0, a processor, 1 thread", "estimated": "from rates"}[source]
    return Latency(median_ms=median_ms, batch=1, source=source, how=how)  # type: ignore[arg-type]


def cost(megabytes: float, ms: float | None, metric: float | None = None, source: str = "measured") -> Figures:
    taken = None if ms is None else latency(ms, source)
    return Figures(size_bytes=round(megabytes * 1e6), macs=1_820_000_000, parameters=1, latency=taken, metric=metric)


def step(
    name: str, outcome: str, before: Figures | None = None, after: Figures | None = None, **fields: object
) -> Step:
    given = {
        "options": {},
        "reason": "Why it ran.",
        "verdict": "What came of it.",
        "seconds": 1.5,
        "peak_memory_mb": 613.0,
    }
    return Step(compression=name, outcome=outcome, before=before, after=after, **given | fields)  # type: ignore[arg-type]


def decision(module: str, reason: str, outcome: str = "float", op: str = "aten.conv2d") -> Decision:
    return Decision(module=module, op=op, node="conv2d", outcome=outcome, reason=reason)


def whole_report() -> Report:
    """Two passes that were kept, timed in different runs, and one that was undone."""
    return Report(
        model="ResNet",
        target="some-board",
        backend="onnx",
        notes=["Calibration: drawn.", "Budget not met: latency_ms is 4, 3 was asked for."],
        baseline=cost(40, 12.0, 0.75),
        result=cost(8, 4.0, 0.71),
        steps=[
            step("fold-batch-norm", "exact"),
            step("prune-channels", "kept", cost(40, 12.0, 0.75), cost(20, 8.0, 0.74), options={"ratio": 0.5}),
            step(
                "quantize-int8",
                "kept on request",
                cost(20, 10.0, 0.74),  # the machine was busier than before
                cost(8, 4.0, 0.71),
                decisions=[decision(f"layers.{index}", "too few channels") for index in range(7)]
                + [decision("head", "kept float on request", op="aten.linear")],
            ),
            step("sparsify", "undone", cost(8, 4.0, 0.71), cost(8, 4.4, 0.5), decisions=[decision("x", "never shown")]),
        ],
        not_planned={"two-four": "The device has no such units."},
        runtime_decisions=[decision("layers.0", "runs as Conv on dequantized values")],
        errors=[
            Error(output=0, dtype="float32", max_abs=0.25, max_relative=0.002, snr_db=52.3, within_a_quantum=0.998)
        ],
        seconds={"trace": 1.25, "passes": 20.0},
        peak_memory_mb=1613.0,
    )
