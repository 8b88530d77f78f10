from fewstep.tasks import DATASETS
from fewstep.tasks.datasets import DESCRIPTIONS


def test_every_data_set_is_described_in_a_line():
    assert set(DATASETS) == set(DESCRIPTIONS) == {"omniglot", "strokes", "sinusoid"}
    assert all(line and "\n" not in line for line in DESCRIPTIONS.values())
