"""Which parts of an encoder learn: partial fine-tuning (MAE, arXiv 2111.06377, section 4.3)."""

from collections.abc import Iterable

from torch import nn

from mae.errors import ParamsError
from mae.model.blocks import set_drop_path
from mae.model.encoder import Encoder


def last_blocks(encoder: Encoder, blocks: float) -> list[nn.Parameter]:
    """Return the parameters of the last `blocks` blocks and of the final norm.

    Halves are whole blocks and the MLP, with its norm, of the one before: 0.5 is the MLP of the
    last block, as in the paper; 0 is nothing at all. Raises ParamsError for a number that the
    encoder does not have.
    """
    depth = len(encoder.blocks)
    whole, half = divmod(round(2 * blocks), 2)
    if 2 * blocks != round(2 * blocks) or not 0 <= blocks <= depth:
        raise ParamsError(
            f"{blocks} blocks cannot be tuned: the encoder has {depth}; choose 0, 0.5, 1, ..."
        )
    if blocks == 0:
        return []
    modules: list[nn.Module] = [*encoder.blocks[depth - whole :], encoder.norm]
    if half:
        block = encoder.blocks[depth - whole - 1]
        modules += [block.get_submodule("norm2"), block.get_submodule("mlp")]
    return [parameter for module in modules for parameter in module.parameters()]


def freeze_first(encoder: Encoder, blocks: int) -> None:
    """Freeze the patch embedding, class token and learned positions, and the first blocks.

    Raises ParamsError for more blocks than the encoder has.
    """
    layers = encoder.layers()
    if not 0 <= blocks < len(layers):
        raise ParamsError(f"{blocks} blocks cannot be frozen: the encoder has {len(layers) - 1}")
    for layer in layers[: blocks + 1]:
        for parameter in layer:
            parameter.requires_grad_(False)


def learn_only(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze all of `module` but the parameters named."""
    chosen = {id(parameter) for parameter in parameters}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def still_where_frozen(encoder: Encoder) -> None:
    """Take drop path out of the blocks of which nothing learns: they answer as they were."""
    for block in encoder.blocks:
        if not any(parameter.requires_grad for parameter in block.parameters()):
            set_drop_path(nn.ModuleList([block]), 0.0)
