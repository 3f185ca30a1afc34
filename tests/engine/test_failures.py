"""What is said about errors that nobody foresaw."""

from __future__ import annotations

import pytest

from tqchat.engine.failures import ModelUnusable, as_model_error, user_message


@pytest.mark.parametrize("error", [KeyError("hidden_size"), TypeError("'NoneType' object is not callable")])
def test_an_unexpected_error_shows_no_python(error: Exception) -> None:
    said = user_message(error)
    assert type(error).__name__ not in said and str(error) not in said
    assert "tqchat locate" in said


def test_a_model_of_metal_kernels_names_the_mac() -> None:
    said = r"^BitNet cannot be loaded: mlx-lm computes it with Metal only, which a Mac has; choose .*\.$"
    with pytest.raises(ModelUnusable, match=said), as_model_error("BitNet"):
        raise RuntimeError("[metal_kernel] No Metal back-end.")


def test_too_little_memory_is_named() -> None:
    for error in (MemoryError(), RuntimeError("[malloc] Unable to allocate 1 bytes")):
        assert "not enough memory" in user_message(error)
