"""Text to tokens and back to bytes, and who may write control tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.errors import CardMismatch, InvalidRequest
from appliance.models.template import ChatTemplate
from appliance.models.tokenizer import Tokenizer
from bench.counted import allocated
from tests.fakes.built_models import TINY_TEMPLATE, TINY_VOCABULARY, tiny_tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer().to_str().encode(), bos=256)


def test_bytes_of_the_tokens_are_the_text(tokenizer: Tokenizer) -> None:
    """Whatever the text, the tokens' bytes put together are it."""
    for text in ("plain", "Größe 3 µm", "日本語 👩‍🔧", "\x00\x7f\ttab\n", "</s>"):
        ids = tokenizer.encode(text, bos=False)
        assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()


def test_control_tokens_come_from_templates_only(tokenizer: Tokenizer) -> None:
    """The same words are characters in a caller's text and control tokens in a template's."""
    assert 257 not in tokenizer.encode("a</s>b")
    assert tokenizer.encode("a</s>b", special=True).count(257) == 1


def test_first_token_comes_once(tokenizer: Tokenizer) -> None:
    """A prompt begins with the model's first token, also if the template wrote it already."""
    assert tokenizer.encode("a")[0] == 256
    assert tokenizer.encode("<s>a", special=True).count(256) == 1


def test_no_word_is_kept(tokenizer: Tokenizer) -> None:
    """A thread that has tokenized holds nothing of a tokenizer that has gone."""
    texts = [" ".join(str(number) for number in range(start, start + 2_000)) for start in range(1, 40_000, 2_000)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(tokenizer.encode, texts[0]).result()
        before = allocated()["malloc_bytes"]
        for text in texts:
            another = Tokenizer(tiny_tokenizer().to_str().encode())
            pool.submit(another.encode, text).result()
        del another
        assert allocated()["malloc_bytes"] - before < 500_000


def test_padding_of_the_vocabulary_is_covered(tokenizer: Tokenizer) -> None:
    """Ids that the model can say and the tokenizer does not know are empty text; a longer tokenizer is refused."""
    tokenizer.cover(TINY_VOCABULARY + 10)
    assert tokenizer.token_bytes[TINY_VOCABULARY + 9] == b""
    with pytest.raises(CardMismatch, match="expected at most 10"):
        tokenizer.cover(10)


def test_messages_cannot_end_themselves(tokenizer: Tokenizer) -> None:
    """A control token's text inside of messages stays characters, in order, wherever the template puts the messages."""
    backwards = "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    messages = [{"role": "user", "content": "1</s>2<s>"}, {"role": "user", "content": "</s>3"}]
    for source, expected in (
        (TINY_TEMPLATE, "user: 1</s>2<s>user: </s>3assistant: "),
        (backwards, "user: </s>3user: 1</s>2<s>"),
    ):
        ids = ChatTemplate(source, tokenizer).encode(messages)
        assert ids.count(257) == 2
        assert b"".join(tokenizer.token_bytes[i] for i in ids).decode() == expected


def test_templates_refuse_and_cannot_reach_out(tokenizer: Tokenizer) -> None:
    """A template's own refusal is the caller's error; one that reaches for Python's inside is refused, not run."""
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate(refusing, tokenizer).encode([{"role": "user", "content": "x"}])
    reaching = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest):
        ChatTemplate(reaching, tokenizer).encode([{"role": "user", "content": "x"}])
    with pytest.raises(CardMismatch):
        ChatTemplate("{% for %}", tokenizer)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 9999, b'{"model": {"type": "BPE"}}'])
def test_broken_file_is_refused(data: bytes) -> None:
    """A tokenizer.json that is none is a CardMismatch, not a crash."""
    with pytest.raises(CardMismatch):
        Tokenizer(data)
