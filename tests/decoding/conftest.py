"""What several tests of decoding need."""

import pytest

from appliance.decoding.grammar import Vocabulary
from appliance.models.tokenizer import Tokenizer
from tests.fakes.built_models import smollm2


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    """The vocabulary of SmolLM2."""
    with smollm2().open() as model:
        tokenizer = Tokenizer(bytes(model.files["tokenizer.json"]))
        tokenizer.cover(model.card.vocabulary_size)
        stop = model.card.tokens.stop
    return Vocabulary(tokenizer.token_bytes, tokenizer.control, stop, lambda text: tokenizer.encode(text, bos=False))
