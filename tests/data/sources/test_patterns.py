"""Braces, wildcards and lists stand for the paths that they say."""

from pathlib import Path

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.data.sources.patterns import expand, is_pattern

word = st.text("abc019-_", min_size=1, max_size=4)
span = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 4)).map(
    lambda drawn: f"{{{min(drawn[:2]):0{drawn[2]}d}..{max(drawn[:2]):0{drawn[2]}d}}}"
)
choice = st.lists(word, min_size=2, max_size=3).map(lambda words: f"{{{','.join(words)}}}")


@given(st.lists(word | span | choice, min_size=1, max_size=4))
def test_braces_mean_what_the_library_of_webdataset_says(parts: list[str]) -> None:
    pattern = "/".join(parts)
    assert expand(pattern) == sorted(set(braceexpand.braceexpand(pattern)))


def test_a_file_that_is_there_is_meant_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a[1].zip").write_bytes(b"")
    assert not is_pattern(f"{tmp_path}/a[1].zip")
    assert is_pattern(f"{tmp_path}/[ab].zip")
    assert not is_pattern(f"{tmp_path}/a.zip")


@pytest.mark.parametrize("between", ["::", " :: "])
def test_lists_are_joined_and_each_path_comes_once(tmp_path: Path, between: str) -> None:
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).write_bytes(b"")
    path = between.join((f"{tmp_path}/*.tar", f"{tmp_path}/a.tar", "c.tar"))
    assert expand(path) == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar", "c.tar"]
