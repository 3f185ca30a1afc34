from __future__ import annotations

from xml.etree import ElementTree

from tqchat.lab.frontier import frontier_svg
from tqchat.lab.results import Results, Row

NAMESPACE = "{http://www.w3.org/2000/svg}"


def row(scheme: str, kld: float, size: int) -> Row:
    return Row(scheme, kld, kld, kld, 1.0, 10.0, size, 32_000_000, 32_000_000 / size)


def results(*rows: Row) -> Results:
    return Results("a <model>", "prose & more.txt", 4096, rows)


def drawn(picture: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture).iter(NAMESPACE + tag))


def test_every_scheme_is_drawn_and_named() -> None:
    picture = frontier_svg(
        results(row("fp16", 0.0, 32_000_000), row("turbo4", 5e-4, 9_000_000), row("mlx4", 0.02, 8_900_000))
    )
    words = [text.text for text in drawn(picture, "text")]
    assert "turbo4 3.6x" in words
    assert "mlx4 3.6x" in words
    assert "fp16" in words
    assert any("a <model>" in (word or "") for word in words)


def test_smaller_is_left_and_lower_divergence_is_lower() -> None:
    rows = (row("turbo2", 1e-2, 5_000_000), row("turbo4", 5e-4, 9_000_000))
    small, large = drawn(frontier_svg(results(*rows)), "circle")[:2]
    assert float(small.get("cx", 0)) < float(large.get("cx", 0))
    assert float(small.get("cy", 0)) < float(large.get("cy", 0))


def test_only_unbeaten_schemes_are_on_the_frontier() -> None:
    beaten = row("affine4", 2e-3, 9_500_000)
    picture = frontier_svg(results(row("turbo2", 1e-2, 5_000_000), row("turbo4", 5e-4, 9_000_000), beaten))
    (line,) = drawn(picture, "polyline")
    assert len(line.get("points", "").split()) == 2


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    rows = [row(f"turbo{i}", 3e-3 * 1.05**i, 9_000_000 + 9000 * i) for i in range(4)]
    labels = [t for t in drawn(frontier_svg(results(*rows)), "text") if t.get("class") == "label"]
    places = [(float(t.get("x", 0)), float(t.get("y", 0))) for t in labels]
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[:i]:
            assert abs(x - other_x) > 60 or abs(y - other_y) > 10


def test_a_plot_without_rows_is_valid() -> None:
    assert drawn(frontier_svg(results(row("fp16", 0.0, 32_000_000))), "text")
