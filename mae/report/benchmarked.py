"""The benchmark as a reader needs it: how fast, on what, against what."""

from collections.abc import Iterator
from dataclasses import dataclass

from mae.export.speed import COMPILED, TORCH, Speed, Timing, label_of
from mae.report.findings import Findings
from mae.report.measured import Table
from mae.report.pictures import Picture
from mae.report.provenance import machine_of
from mae.report.templating import number

_BUSY = 0.25  # of its cores: what else was running took time from the contenders


@dataclass(frozen=True)
class Benchmarked:
    """What the page shows of the benchmark."""

    lead: str
    table: Table
    left_out: list[str]
    warning: str | None
    picture: Picture | None

    @classmethod
    def of(cls, findings: Findings) -> "Benchmarked | None":
        """Return what was measured, None where nothing was."""
        if findings.speed is None:
            return None
        return cls(
            lead=speed_in_words(findings.speed),
            table=speed_table(findings.speed),
            left_out=not_measured(findings.speed),
            warning=how_busy(findings.speed),
            picture=next(map(Picture.of, findings.pictures("benchmark")), None),
        )


def speed_in_words(speed: Speed) -> str:
    """Return a sentence on encoder.onnx where it runs by default, beside torch there."""
    latency = next(one for one in speed.latencies if speed.is_default(one))
    rate = next(one for one in speed.throughputs if speed.is_default(one))
    images = "an image" if latency.batch == 1 else f"{latency.batch} images"
    sentence = (
        f"On the {_device(speed.device)}, encoder.onnx takes {latency.p50_ms:.3g} ms for {images} "
        f"(99 % of calls: at most {latency.p99_ms:.3g} ms) and does "
        f"{number(round(rate.images_per_second))} images per second in batches of {rate.batch}"
    )
    torch_latency = _beside(latency, speed.latencies)
    torch_rate = _beside(rate, speed.throughputs)
    if torch_latency is None or torch_rate is None:
        return f"{sentence}."
    sooner = torch_latency.p50_ms / latency.p50_ms
    more = rate.images_per_second / torch_rate.images_per_second
    return f"{sentence}: {sooner:.1f} and {more:.1f} times as fast as torch."


def speed_table(speed: Speed) -> Table:
    """Return a row for each contender."""
    rates = {one.key: one for one in speed.throughputs}
    several = len({one.device for one in speed.timings}) > 1
    rows = []
    for one in speed.latencies:
        rate = rates[one.key]
        torch = _beside(rate, speed.throughputs)
        gain = torch and f"{rate.images_per_second / torch.images_per_second:.2f}"
        rows.append(
            [
                f"{one.label}, {_device(one.device)}" if several else one.label,
                *(f"{value:.3g}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)),
                number(round(rate.images_per_second)),
                number(rate.batch),
                gain or "",
                f"{one.min_cosine:.5f}",
            ]
        )
    head = ["", "p50", "p95", "p99", "images/s", "at batch", "of torch", "cosine"]
    return Table(head, rows, " ".join(_caption(speed)))


def _caption(speed: Speed) -> Iterator[str]:
    yield (
        f"p50, p95, p99: milliseconds of a call at batch {speed.smallest_batch}, from pixels to "
        "cls, both on the host. Images/s: at the best of the batches tried, and as a multiple of "
        "torch's. All took turns in one run; medians over its rounds. Cosine: the smallest of any "
        "image's cls with torch's, on the noise that was timed; on real images see Export."
    )
    own = speed.threads["onnxruntime"] or "as many as it chose"
    yield f"Threads: torch {speed.threads['torch']}, onnxruntime {own}."
    compiling = sum(one.first_call_s for one in speed.timings if one.contender == COMPILED)
    if compiling:
        yield f"Compiling took {compiling:.0f} s, which is not counted."
    if hardware := speed.context.get("hardware"):
        yield f"{machine_of(hardware)}."
    versions = speed.context.get("versions", {})
    used = [f"{name} {versions[name]}" for name in ("torch", "onnxruntime") if name in versions]
    if used:
        yield f"{', '.join(used)}."


def how_busy(speed: Speed) -> str | None:
    """Return what must be known of figures taken beside other work, None of those on idle cores."""
    in_use = speed.context.get("cores_in_use_before", 0.0)
    cores = speed.context.get("hardware", {}).get("cores", 1)
    if in_use <= _BUSY * cores:
        return None
    return (
        f"The machine was busy with other work when this was measured ({in_use:.1f} of {cores} "
        "cores): every figure is worse than on an idle one, torch's most of all. Run "
        "`dvc repro --force --single-item benchmark` when it is idle."
    )


def not_measured(speed: Speed) -> list[str]:
    """Return a sentence for each contender that was left out."""
    sentences = []
    for key, reason in sorted(speed.left_out.items()):
        name, _, device = key.rpartition("_")
        told = reason.rstrip(".")
        sentences.append(f"{label_of(name)} on the {_device(device)} was not measured: {told}.")
    return sentences


def _device(name: str) -> str:
    return "GPU" if name == "cuda" else name.upper()


def _beside(timing: Timing, timings: list[Timing]) -> Timing | None:
    """Return torch's timing on the same device, None for torch's own."""
    if timing.contender == TORCH:
        return None
    return next((t for t in timings if (t.contender, t.device) == (TORCH, timing.device)), None)
