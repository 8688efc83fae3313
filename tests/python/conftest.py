import os
import secrets

import numpy as np
import pytest

SEED = int(os.environ.get("SEQATTN_TEST_SEED", secrets.randbits(31)))


def pytest_report_header() -> str:
    return f"SEQATTN_TEST_SEED={SEED}"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)
