import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def seed() -> int:
    value = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed={value}")
    return value


@pytest.fixture(scope="session")
def model_path(tmp_path_factory, seed) -> Path:
    from tiny_model import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", seed)
