"""Golden LRP cases, as one object per case."""

import json
from pathlib import Path
from types import SimpleNamespace
import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "lrp"
CASES = ("case_01_tiny", "case_04_missing_classes", "case_06_random_medium")


def load_case(name):
    return SimpleNamespace(
        name=name,
        folder=GOLDEN / name,
        **{
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in (GOLDEN / name).glob("*.json")
        },
    )


@pytest.fixture(params=CASES)
def lrp_case(request):
    return load_case(request.param)


@pytest.fixture
def tiny_case():
    return load_case("case_01_tiny")


@pytest.fixture
def missing_classes_case():
    return load_case("case_04_missing_classes")
