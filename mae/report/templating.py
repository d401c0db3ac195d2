"""Jinja2 as both templates use it, and how numbers are written for people."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mae.report.method import how_built, how_pretrained, map_of, truth_used

_BOUNDS = {"min_value": "≥ ", "max_value": "≤ ", "value_set": ""}


def render(template: str, **content: Any) -> str:
    """Fill a template of mae/report/templates; a name that is not there is an error."""
    return _environment().get_template(template).render(**content)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mae.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "channels": channels,
        "number": number,
        "limit": limit,
        "scalars": scalars,
        "how_built": how_built,
        "how_pretrained": how_pretrained,
        "map_of": map_of,
        "truth_used": truth_used,
        "frame": frame,
        "listed": listed,
        "sentence": sentence,
        "tiny": tiny,
    }
    return environment


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(gain: float) -> str:
    """Return a gain in percentage points, with its sign (a real minus, not a hyphen)."""
    return f"{100 * gain:+.1f}".replace("-", "−")


def channels(count: int) -> str:
    return f"{count} channel" + ("" if count == 1 else "s")


def frame(encoder: dict[str, Any]) -> float:
    """Return how much larger than the input an image is resized before its centre is cut out."""
    return float(encoder.get("autoencoder", encoder)["resize"])


def number(value: Any) -> str:
    """Return a number as people write it: whole ones whole, others to four digits."""
    if isinstance(value, list):
        return ", ".join(number(one) for one in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    text = f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"
    return "−" + text[1:] if text.startswith("-") else text


def limit(bounds: dict[str, Any]) -> str:
    """Return an expectation's bounds in words, as in `≥ 100`."""
    parts = [f"{_BOUNDS.get(name, name + ' ')}{number(value)}" for name, value in bounds.items()]
    return ", ".join(parts) or "none"


def tiny(value: float) -> str:
    """Return a difference to two digits, as in 2.3e-06."""
    return f"{value:.1e}"


def listed(values: list[Any]) -> str:
    """Return values as in `1, 2 and 64`."""
    *most, last = map(number, values)
    return f"{', '.join(most)} and {last}" if most else last


def sentence(words: str) -> str:
    """Return words with a capital at the start and one full stop at the end."""
    return words[:1].upper() + words[1:].rstrip(".") + "."


def scalars(content: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a dict that fit in a table cell."""
    return {key: value for key, value in content.items() if isinstance(value, str | int | float)}
