import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    from tiny_model import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
