"""Scaling: planted powers and prices are found, operations are those torch counts, a tiny run ends in a section."""

import doctest
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import scaling, scaling_page, tables  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.flops import counts  # noqa: E402
from benchmarks.implementations.ours import build  # noqa: E402
from benchmarks.network import start, tasks  # noqa: E402
from benchmarks.scaling import AXES, BASE, BASES, series  # noqa: E402
from benchmarks.timing import turn  # noqa: E402
from benchmarks.workloads import CONV4, RESNET12  # noqa: E402

BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"


def point(tasks, steps, ways, shots, queries, size, model=CONV4, filters=32, blocks=4):
    """A point of scaling."""
    sizes = {"tasks": tasks, "steps": steps, "ways": ways, "shots": shots, "queries": queries, "size": size}
    return replace(BASE, **sizes, model=model, filters=filters, blocks=blocks)


def step_of(p):
    return build(p, start(p), tasks(p), "loop")


@pytest.mark.parametrize("module", [scaling, scaling_page])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


# --- exponents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.0])
def test_a_planted_exponent_is_found_within_its_error(exponent):
    rng, x = np.random.default_rng(0), np.array([1, 2, 4, 8, 16, 32])
    off, errors = [], []
    for _ in range(300):
        found = scaling_page.fit(x, 3 * x**exponent * np.exp(0.1 * rng.standard_normal(6)))
        off.append(found.slope - exponent)
        errors.append(found.stderr)
    assert abs(np.mean(off)) < 0.01
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(off), rel=0.15)  # the error says how far off


def test_points_without_memory_are_left_out_of_a_fit():
    assert scaling_page.fit([1, 2, 4, 8], [-5, 4, 16, 64]).slope == pytest.approx(2)
    assert scaling_page.fit([1, 2, 4], [0, 4, 16]) is None


def test_planted_prices_are_found_and_none_is_negative():
    rng = np.random.default_rng(0)
    those = [{name: int(n) for name, n in zip(scaling_page.COUNTS, 10 ** rng.uniform(2, 6, 3), strict=True)} for _ in
              range(40)]  # fmt: skip
    price = np.array([2e-3, 0.0, 5e-5])
    taken = [float(price @ [c[name] for name in scaling_page.COUNTS]) for c in those]
    noisy = [[value * factor for factor in np.exp(0.05 * rng.standard_normal(5))] for value in taken]
    found, (predicted,) = scaling_page.prices([{"counts": those, "seconds": noisy}])
    assert predicted == pytest.approx(taken, rel=0.1)
    assert found[[0, 2]] == pytest.approx(price[[0, 2]], rel=0.1)
    assert 0 <= found[1] < 2e-6


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p",
    [
        point(1, 2, 3, 2, 1, 16, filters=4),
        point(2, 1, 2, 1, 3, 21, filters=3, blocks=2),
        point(1, 2, 3, 1, 1, 16, RESNET12, 2),
        point(1, 1, 2, 2, 1, 32, RESNET12, 3, blocks=2),
    ],
)
def test_operations_are_those_torch_counts(p):
    step = step_of(p)
    step()  # looks at the width of the output once
    with FlopCounterMode(display=False) as counter:
        step()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    assert counted == counts(p)["flops"]


def test_values_and_calls_by_hand():
    found = counts(point(tasks=3, steps=2, ways=4, shots=5, queries=1, size=20, filters=7, blocks=1))
    # The one layer sees the images: a support image costs 1 + 1 forward and back and 1 + 1 again, a query 1 + 1.
    assert found["calls"] == 3 * (2 * 4 + 2)
    assert found["values"] == 3 * (2 * 4 * 20 + 2 * 4) * 7 * 20 * 20


@pytest.mark.parametrize("scale", BASES)
def test_an_axis_moves_one_number_away_from_the_base(scale):
    bases = {base.model: asdict(base) for base in BASES[scale]}
    for axis, points in series(scale):
        base, (_, count) = bases[points[0].model], AXES[axis]
        moved = {k for p in points for k, v in asdict(p).items() if v != base[k]}
        assert len(moved) == 1
        assert base in [asdict(p) for p in points]
        assert [count(p) for p in points] == sorted({count(p) for p in points})
    assert {(axis, p.model) for axis, (p, *_) in series(scale)} > {("filters", RESNET12), ("convolutions", RESNET12)}


# --- measuring -------------------------------------------------------------------------------------------------------

TINY = point(1, 1, 2, 1, 1, 16, filters=2, blocks=1)


def test_rounds_end_with_the_time_but_there_are_three(monkeypatch):
    monkeypatch.setattr(scaling, "A_TURN", 0.0)
    two = [TINY, replace(TINY, tasks=2)]
    assert [len(turns) for turns in scaling.timed(two, rounds=9, at_most=0).values()] == [3, 3]
    assert [len(turns) for turns in scaling.timed(two, rounds=2, at_most=0).values()] == [2, 2]


def test_a_turn_counts_the_seconds_of_this_process():
    def step():
        seen.append(sum(range(300_000)))

    seen = []
    own = turn(step, scaling.A_TURN, time.process_time)
    assert len(seen) * own >= scaling.A_TURN


def test_memory_sees_the_graph_that_grows():
    few, many = (scaling.memory(point(1, steps, 5, 5, 1, 28))["used"] for steps in (2, 6))
    assert many > few + 3e6 > 3e6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One axis, at tiny scale, in real processes."""
    folder = tmp_path_factory.mktemp("scaling")
    document = folder / "performance.md"
    document.write_text(f"# Performance\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    path = folder / "scaling.json"
    arguments = ["--scale", "tiny", "--axes", "tasks", "--rounds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(scaling, "prepare", lambda *_: None)  # the allocator of the test process stays as it is
        assert scaling.main([*arguments, "--json", str(path), "--table", str(document)]) == 0
    return path, document


def test_a_run_records_every_point(run):
    results = json.loads(run[0].read_text())
    (record,) = results["series"]
    assert (record["axis"], record["model"], record["x"]) == ("tasks", CONV4, [1, 2, 4])
    assert all(len(record[what]) == 3 for what in ("seconds", "memory", "counts"))
    assert all(own > 0 for rounds in record["seconds"] for own in rounds)
    assert all(abs(found["used"]) < 1e8 < found["peak"] for found in record["memory"])
    assert [c["flops"] for c in record["counts"]] == [counts(p)["flops"] for p in series("tiny")[0][1]]
    assert 0.3 < scaling_page.fit(record["x"], scaling_page.values(record, "seconds")).slope < 2


def test_its_section_goes_between_the_marks_and_comes_again_from_the_record(run, capsys):
    path, document = run
    before, _, rest = document.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    assert (before, after) == ("# Performance\n\n", "\n\nThe end.\n")
    assert "old" not in shown
    assert "Tiny shapes: no measure of anything" in shown
    head, line, row = (line for line in shown.splitlines() if line.startswith("|"))
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| tasks | Conv4 | 1–4 | ")
    assert main(["table", str(path)]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("what", scaling_page.MEASURES)
def test_a_figure_has_a_panel_for_every_axis_and_says_the_exponents(what):
    pytest.importorskip("matplotlib")

    def made(axis, points, power):
        x = [AXES[axis][1](p) for p in points]
        seconds, memory = [[2 * each**power] for each in x], [{"used": 1e6 * each**power} for each in x]
        about = {"axis": axis, "model": points[0].model, "x": x, "counts": [counts(p) for p in points]}
        return {**about, "seconds": seconds, "memory": memory}

    records = [made(axis, points, 1.0 if points[0].model == CONV4 else -0.25) for axis, points in series("full")]
    drawn = scaling_page.figure(records, what)
    panels = [panel for panel in drawn.axes if panel.lines]
    assert [panel.get_xlabel() for panel in panels] == list(AXES)
    assert all(panel.get_xscale() == panel.get_yscale() == "log" for panel in panels)
    texts = [text.get_text() for panel in panels for text in panel.texts]
    assert sorted(texts) == sorted(["exponent 1.00"] * 7 + ["exponent −0.25"] * 2)
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == (5 if what == "seconds" else 4)


def test_figures_are_drawn_from_the_record(tmp_path):
    pytest.importorskip("matplotlib")
    record = ROOT / "results" / "scaling.json"
    assert main(["table", str(record), "--plots", str(tmp_path)]) == 0
    for what in scaling_page.MEASURES:
        name = f"scaling-{what}.svg"
        assert (tmp_path / name).read_text() == (ROOT / "docs" / "performance" / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--axes", "width"], "invalid choice: 'width'"),
        (["--rounds", "0"], "is 0; it must be at least 1"),
        (["--table", "/nowhere/x.md"], "cannot write /nowhere/x.md: there is no folder /nowhere"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json: there is no folder /nowhere"),
    ],
)
def test_bad_input_is_a_sentence(arguments, expected, capsys):
    with pytest.raises(SystemExit) as exit:
        scaling.main(arguments)
    assert exit.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_document_shows_the_recorded_run():
    text = (ROOT / "docs" / "performance.md").read_text()
    shown = text.partition(BEGIN)[2].partition(END)[0]
    again = tables.markdown(json.loads((ROOT / "results" / "scaling.json").read_text()))
    assert shown.strip() == again.strip(), "run: python -m benchmarks table results/scaling.json --table …"
    for what in scaling_page.MEASURES:
        assert f"performance/scaling-{what}.svg" in text
