"""The plots of the documents: they can be drawn from what was measured, and they are what was measured."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import records, report
from benchmarks.plots import NAME_HEIGHT, Axis, Line, _step, lines
from benchmarks.records import Machine

RECORDED = Path(__file__).parent / "recorded"
"""Short runs of each benchmark, one file each."""

SVG = "{http://www.w3.org/2000/svg}"


PAGE = """# Page

<!-- bench-report: targets -->
old
<!-- end -->

By hand.

<!-- bench-report: growth -->
<!-- end -->
"""


def drawn_from(directory: Path) -> dict[str, str]:
    """The plots of all runs in a directory, by name."""
    found: dict[str, str] = {}
    for run in report.runs_in(directory):
        found |= report.drawn_from(run)
    return found


def words_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_benchmark_with_a_plot_is_recorded() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == {*report.DRAWN, "targets"}


def test_the_report_draws_every_plot_with_machine_and_servers(tmp_path: Path) -> None:
    page, drawn = tmp_path / "page.md", tmp_path / "plots"
    page.write_text(PAGE)

    assert report.main(["--measured", str(RECORDED), "--plots", str(drawn), "--pages", str(page)]) == 0

    assert {path.stem for path in drawn.glob("*.svg")} == {name for plots in report.DRAWN.values() for name in plots}
    for name, plots in report.DRAWN.items():
        run = records.read(RECORDED / f"{name}.json")
        for plot in plots:
            words = words_of((drawn / f"{plot}.svg").read_text())
            assert report.about(run) in words
            for server in run.series:
                assert any(word.startswith(server) for word in words), (plot, server)


def test_the_report_fills_the_marked_parts_of_the_page_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    report.main(["--measured", str(RECORDED), "--plots", str(tmp_path), "--pages", str(page)])

    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Page\n\n<!-- bench-report: targets -->\n")
    assert "<!-- end -->\n\nBy hand.\n\n" in text
    assert "| NDJSON events/s, 100 diagnoses | avicenna |" in text
    assert "![growth-load](plots/growth-load.svg)" in text
    assert records.read(RECORDED / "targets.json").command in text


def test_a_file_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.json").write_text('{"benchmark": 1}')
    assert report.main(["--measured", str(tmp_path), "--plots", str(tmp_path / "plots")]) == 2
    assert "wrong.json" in capsys.readouterr().err


def test_every_plot_of_the_documents_is_what_a_run_in_the_tree_draws() -> None:
    shown = {path.stem: path.read_text() for path in report.PLOTS.glob("*")}
    assert shown == drawn_from(records.MEASURED), "make bench-report"


def test_the_pages_say_what_the_runs_in_the_tree_say() -> None:
    pages = [page.read_text() for page in report.PAGES]
    parts = report.parts_of(report.runs_in(records.MEASURED))
    marked = [name for page in pages for _, name, _ in report.MARKED.findall(page)]
    assert marked == ["speed", "targets", "growth", "soak", "workers", "cluster"]
    for page in pages:
        assert report.filled(page, parts) == page, "make bench-report"


def test_the_table_of_the_readme_has_the_medians_of_both_servers_and_leaves_out_what_was_not_measured() -> None:
    run = records.read(RECORDED / "targets.json")
    rounds = {"avicenna": {"delivery_p50_ms": [1, 3], "delivery_p99_ms": [9]}, "fastapi": {"posts_per_second": [1234]}}
    said = report.speed(msgspec.structs.replace(run, rounds=rounds))
    assert "| delivery to 1000 subscribers, median / p99 | 2 / 9 ms |  |" in said
    assert "| publishes a second, 16 connections |  | 1,234 |" in said
    assert report.about(run) in said


def test_a_plot_without_its_run_is_found(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "growth-load.json", tmp_path)
    assert set(drawn_from(tmp_path)) == {"growth-load"}


def test_a_busy_machine_is_said() -> None:
    run = records.read(RECORDED / "growth-load.json")
    machines = [Machine(cpu="c", cores=2, kernel="6.1.0-9", memory_gib=8, load_before=load) for load in (0.4, 5.0)]
    said = [report.about(msgspec.structs.replace(run, machine=machine)) for machine in machines]
    assert ["BUSY" in one for one in said] == [False, True]


def test_names_of_lines_that_end_beside_each_other_do_not_overlap() -> None:
    drawn = [Line(f"line {number}", [(1, 1), (10, 5 + number / 100)], "a") for number in range(6)]
    root = ElementTree.fromstring(lines("t", "a", Axis("x", is_logarithmic=True), Axis("y"), drawn))
    heights = sorted(float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if text.get("class") == "own")
    assert len(heights) == 6
    assert min(after - before for before, after in pairwise(heights)) >= NAME_HEIGHT - 0.1


def test_a_point_stands_where_its_axes_say() -> None:
    logarithmic = Axis("x", is_logarithmic=True)
    svg = lines("t", "a", logarithmic, Axis("y"), [Line("one", [(1, 0), (10, 5), (100, 10)], "a")])
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in ElementTree.fromstring(svg).iter(f"{SVG}circle")
    ]
    (left, bottom), middle, (right, top) = dots
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert left < right
    assert top < bottom


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = records.read(RECORDED / "growth-idle.json")
    assert records.read(records.write(run, tmp_path)) == run


@pytest.mark.parametrize(("most", "step"), [(1.0, 0.2), (8.0, 1.0), (9.0, 2.0), (90.4, 20.0), (99.9, 20.0)])
def test_every_axis_has_a_round_distance_of_its_ticks(most: float, step: float) -> None:
    assert _step(most) == pytest.approx(step)
