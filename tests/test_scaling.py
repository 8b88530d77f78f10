"""Scaling: planted powers and prices are found, operations are those torch counts, a tiny run ends in a section."""

import doctest
import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import exponents, points, scaling, scaling_figure, scaling_table  # noqa: E402
from benchmarks.points import CONV4, RESNET12, SCALES, Point, series  # noqa: E402
from fewstep.errors import BadInput  # noqa: E402

HAS_KALEIDO = importlib.util.find_spec("kaleido") is not None


@pytest.mark.parametrize("module", [exponents, points])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


# --- exponents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.0])
def test_a_planted_exponent_is_found_within_its_error(exponent):
    rng, x = np.random.default_rng(0), np.array([1, 2, 4, 8, 16, 32])
    off, errors = [], []
    for _ in range(300):
        found = exponents.fit(x, 3 * x**exponent * np.exp(0.1 * rng.standard_normal(6)))
        off.append(found.exponent - exponent)
        errors.append(found.error)
    assert abs(np.mean(off)) < 0.01
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(off), rel=0.15)  # the error says how far off


def test_points_without_memory_are_left_out_of_a_fit():
    assert exponents.fit([1, 2, 4, 8], [-5, 4, 16, 64]).exponent == pytest.approx(2)
    assert exponents.fit([1, 2, 4], [0, 4, 16]) is None


def test_planted_prices_are_found_and_none_is_negative():
    rng = np.random.default_rng(0)
    counts = [{name: int(n) for name, n in zip(exponents.COUNTS, 10 ** rng.uniform(2, 6, 3), strict=True)} for _ in
              range(40)]  # fmt: skip
    price = np.array([2e-3, 0.0, 5e-5])
    taken = [float(price @ [c[name] for name in exponents.COUNTS]) for c in counts]
    noisy = [[value * factor for factor in np.exp(0.05 * rng.standard_normal(5))] for value in taken]
    found = exponents.prices([{"counts": counts, "seconds": noisy}])
    assert found[[0, 2]] == pytest.approx(price[[0, 2]], rel=0.1)
    assert 0 <= found[1] < 2e-6


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        Point(1, 2, 3, 2, 1, 16, filters=4),
        Point(2, 1, 2, 1, 3, 21, filters=3, blocks=2),
        Point(1, 2, 3, 1, 1, 16, RESNET12, 2),
        Point(1, 1, 2, 2, 1, 32, RESNET12, 3, blocks=2),
    ],
)
def test_operations_are_those_torch_counts(point):
    step = point.step()
    step()  # looks at the width of the output once
    with FlopCounterMode(display=False) as counter:
        step()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    assert counted == point.counts()["flops"]


def test_values_and_calls_by_hand():
    counts = Point(tasks=3, steps=2, ways=4, shots=5, queries=1, size=20, filters=7, blocks=1).counts()
    # The one layer sees the images: a support image costs 1 + 1 forward and back and 1 + 1 again, a query 1 + 1.
    assert counts["calls"] == 3 * (2 * 4 + 2)
    assert counts["values"] == 3 * (2 * 4 * 20 + 2 * 4) * 7 * 20 * 20


@pytest.mark.parametrize("scale", SCALES)
def test_an_axis_moves_one_number_away_from_the_base(scale):
    bases = {base.model: asdict(base) for base in SCALES[scale][:2]}
    for each in series(scale):
        moved = {k for p in each.points for k, v in asdict(p).items() if v != bases[each.model][k]}
        assert len(moved) == 1
        assert Point(**bases[each.model]) in each.points
        assert list(each.x) == sorted(set(each.x))
    assert {(s.axis, s.model) for s in series(scale)} > {("filters", RESNET12), ("convolutions", RESNET12)}


# --- measuring -------------------------------------------------------------------------------------------------------

TINY = Point(1, 1, 2, 1, 1, 16, filters=2, blocks=1)


def test_rounds_end_with_the_time_but_there_are_three(monkeypatch):
    monkeypatch.setattr(scaling, "A_TURN", 0.0)
    two = [TINY, replace(TINY, tasks=2)]
    assert [len(turns) for turns in scaling.timed(two, rounds=9, at_most=0).values()] == [3, 3]
    assert [len(turns) for turns in scaling.timed(two, rounds=2, at_most=0).values()] == [2, 2]


def test_a_turn_counts_the_seconds_of_this_process():
    def step():
        seen.append(sum(range(300_000)))

    seen = []
    own, clock = scaling.turn(step)
    assert len(seen) * own >= scaling.A_TURN
    assert 0 < own <= clock * 1.05


def test_memory_sees_the_graph_that_grows():
    # In this process what one point took and gave back serves the next: only the larger one can be seen.
    assert points.memory(Point(1, 2, 5, 5, 1, 28, filters=32))["used"] > 5e6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One axis, at tiny scale, in real processes."""
    folder = tmp_path_factory.mktemp("scaling")
    document = folder / "performance.md"
    document.write_text(f"# Performance\n\n{scaling_table.BEGIN}\nold\n{scaling_table.END}\n\nThe end.\n")
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
    assert all(len(record[what]) == 3 for what in ("seconds", "clock", "memory", "counts"))
    assert all(own > 0 for rounds in record["seconds"] for own in rounds)
    assert all(abs(found["used"]) < 1e8 < found["peak"] for found in record["memory"])
    assert [c["flops"] for c in record["counts"]] == [p.counts()["flops"] for p in series("tiny")[0].points]
    assert 0.3 < exponents.fit(record["x"], exponents.seconds(record)).exponent < 2


def test_its_section_goes_between_the_marks_and_comes_again_from_the_record(run, capsys):
    path, document = run
    before, _, rest = document.read_text().partition(scaling_table.BEGIN)
    shown, _, after = rest.partition(scaling_table.END)
    assert (before, after) == ("# Performance\n\n", "\n\nThe end.\n")
    assert "old" not in shown
    assert "Tiny shapes: no measure of anything" in shown
    head, line, row = (line for line in shown.splitlines() if line.startswith("|"))
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| tasks | Conv4 | 1–4 | ")
    assert "- **tasks**: " in shown
    assert scaling.main(["show", str(path)]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("what", scaling_figure.MEASURES)
def test_a_figure_has_a_panel_for_every_axis_and_says_the_exponents(what):
    def made(each, power):
        seconds = [[2 * x**power] for x in each.x]
        memory = [{"used": 1e6 * x**power} for x in each.x]
        counts = [point.counts() for point in each.points]
        return {"axis": each.axis, "model": each.model, "x": list(each.x), "seconds": seconds, "memory": memory,
                "counts": counts}  # fmt: skip

    records = [made(each, 1.0 if each.model == CONV4 else -0.25) for each in series("full")]
    drawn = scaling_figure.figure({"series": records}, what).to_dict()
    horizontal = [value for name, value in drawn["layout"].items() if name.startswith("xaxis")]
    assert [axis["title"]["text"] for axis in horizontal if "title" in axis] == list(points.AXES)
    assert all(v["type"] == "log" for name, v in drawn["layout"].items() if name[1:5] == "axis")
    texts = [each["text"] for each in drawn["layout"]["annotations"]]
    assert sorted(texts) == sorted(["x<sup>1.00</sup>"] * 7 + ["x<sup>−0.25</sup>"] * 2)
    shown = [trace["name"] for trace in drawn["data"] if trace["showlegend"]]
    assert len(shown) == len(set(shown)) == (5 if what == "seconds" else 4)


@pytest.mark.skipif(HAS_KALEIDO, reason="kaleido is installed")
def test_without_kaleido_the_figures_say_what_they_need(run, tmp_path, capsys):
    assert scaling.main(["show", str(run[0]), "--plots", str(tmp_path)]) == 2
    assert "figures need `pip install kaleido` and a Chrome" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_KALEIDO, reason="kaleido is not installed")
def test_figures_are_drawn(run, tmp_path):
    try:
        paths = scaling_figure.draw(json.loads(run[0].read_text()), tmp_path)
    except BadInput as error:
        if "requires Google Chrome" not in str(error):
            raise  # a browser is there, and the figure is at fault
        pytest.skip(str(error))
    assert all("<svg" in path.read_text()[:200] for path in paths)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--axes", "width"], "invalid choice: 'width'"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--plots", "/nowhere"], "cannot draw into /nowhere: there is no such folder"),
        (["--table", "/nowhere/x.md"], "/nowhere/x.md is not a document with <!-- scaling: begin -->"),
        (["show", "/nowhere/x.json"], "cannot read /nowhere/x.json: "),
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
    shown = text.partition(scaling_table.BEGIN)[2].partition(scaling_table.END)[0]
    again = scaling_table.markdown(json.loads((ROOT / "results" / "scaling.json").read_text()))
    assert shown.strip() == again.strip(), "run: python -m benchmarks.scaling show results/scaling.json --table …"
    for what in scaling_figure.MEASURES:
        assert f"performance/scaling-{what}.svg" in text
        assert (ROOT / "docs" / "performance" / f"scaling-{what}.svg").is_file()
