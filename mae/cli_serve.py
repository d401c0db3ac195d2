"""`mae serve`: an exported encoder behind HTTP."""

import ipaddress
import logging
from pathlib import Path
from typing import Annotated

import typer

from mae.cli_options import DEVICE, Device

LOG = logging.getLogger(__name__)


def serve(
    model: Annotated[
        str, typer.Option(help="encoder.onnx, its folder, or a name such as champion.")
    ],
    classifier: Annotated[
        str | None, typer.Option(help="classifier.onnx, its folder, or a name, for /classify.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="A folder of `mae search build`, for /search.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; there is no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Of a request's body.")] = 32,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Of an image, judged before it is decoded.")
    ] = 50_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Images of one inference.")] = 32,
    wait_ms: Annotated[
        float, typer.Option(min=0, help="How long an image waits for others to join it.")
    ] = 2,
    queue: Annotated[
        int, typer.Option(min=1, help="Images accepted at a time; more are told to come again.")
    ] = 256,
    connections: Annotated[int, typer.Option(min=1, help="At a time.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request to arrive whole.")
    ] = 30,
    threads: Annotated[
        int, typer.Option(min=0, help="Of an inference; 0 leaves it to onnxruntime.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 2,
    device: Annotated[Device, DEVICE] = Device.auto,
    reload_seconds: Annotated[
        float, typer.Option(min=0, help="Between two looks for a newer model; 0: never.")
    ] = 10,
) -> None:
    """Serve embeddings, classes and nearest images over HTTP.

    /docs is a page to try it on. SIGTERM answers what was accepted, then ends.
    """
    from mae.export.serving.server import bind, run_service
    from mae.export.serving.service import Service
    from mae.export.serving.settings import Limits, ServingSettings

    settings = ServingSettings(
        model=model,
        classifier=classifier,
        index=index,
        device=device.value,
        threads=threads,
        workers=workers,
        batch=batch,
        wait_seconds=wait_ms / 1000,
        reload_seconds=reload_seconds,
        limits=Limits(
            max_bytes=round(max_megabytes * 1e6),
            max_pixels=max_pixels,
            queue=queue,
            connections=connections,
            seconds=timeout,
        ),
    )
    with bind(host, port) as bound:
        if not _is_loopback(bound.getsockname()[0]):
            LOG.warning("%s can be reached by others, and asks for no password", host)
        service = Service(settings)
        version = service.deployment.served.encoder.version
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}"

        def ready() -> None:
            typer.echo(f"serving encoder {version} on {address} (docs at {address}/docs)", err=True)

        run_service(service, bound, ready)
    typer.echo("stopped", err=True)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
