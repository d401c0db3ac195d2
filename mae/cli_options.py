"""Options that several commands share."""

from enum import StrEnum

import typer


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DEVICE = typer.Option(help="auto takes a GPU where one works.")
