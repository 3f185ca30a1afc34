from __future__ import annotations

import pytest

from tqchat.kv.scheme import SCHEMES, UnknownScheme, parse_scheme


def test_every_listed_scheme_is_found_by_its_name() -> None:
    assert [parse_scheme(scheme.name) for scheme in SCHEMES] == list(SCHEMES)


def test_the_original_schemes_are_listed() -> None:
    assert {"fp16", "affine8", "affine4", "turbo0v4", "turbo0v2"} <= {scheme.name for scheme in SCHEMES}


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("turbo4", ("turbo", 4), ("turbo", 4)),
        ("turbo8v3", ("affine", 8), ("turbo", 3)),
        (" Turbo0V2 ", ("raw", 16), ("turbo", 2)),
        ("trellis3", ("trellis", 3), ("trellis", 3)),
        ("trellis8v2", ("affine", 8), ("trellis", 2)),
        ("Trellis4v3", ("trellis", 4), ("trellis", 3)),
    ],
)
def test_names_give_the_formats_of_keys_and_values(
    name: str, key: tuple[str, int], value: tuple[str, int]
) -> None:
    scheme = parse_scheme(name)
    assert (scheme.key.kind, scheme.key.bits) == key
    assert (scheme.value.kind, scheme.value.bits) == value


def test_two_spellings_of_one_scheme_are_one_scheme() -> None:
    assert parse_scheme("turbo4v4") == parse_scheme("turbo4")
    assert parse_scheme("trellis4v4") == parse_scheme("trellis4")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "turbo",
        "turbo0",
        "turbo8",
        "turbo9v4",
        "turbo4v8",
        "fp8",
        "turbo4v",
        "turbo٤",
        "trellis1",
        "trellis0",
        "trellis4v1",
    ],
)
def test_the_error_of_an_unknown_scheme_says_how_names_are_made(name: str) -> None:
    with pytest.raises(UnknownScheme, match=r"fp16.*affine8.*turbo<K>v<V>.*trellis<K>v<V>"):
        parse_scheme(name)


@pytest.mark.parametrize(
    "name, bits",
    [
        ("fp16", 16),
        ("affine8", 8.5),
        ("affine4", 4.5),
        ("turbo4", 4.125),
        ("turbo2", 2.125),
        ("trellis3", 3.125),
    ],
)
def test_bits_per_value_are_exact(name: str, bits: float) -> None:
    assert parse_scheme(name).bits_per_value(128) == bits
