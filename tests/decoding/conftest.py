"""What several tests of decoding need."""

import pytest

from appliance.decoding.grammar import Vocabulary
from tests.fakes.built_models import smollm2_vocabulary


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    """The vocabulary of SmolLM2."""
    return smollm2_vocabulary()
