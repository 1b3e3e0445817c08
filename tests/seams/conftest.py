"""The company of two small transformers, whose own texts are computed once."""

from __future__ import annotations

import pytest
from company import Company


@pytest.fixture(scope="session")
def company() -> Company:
    return Company()
