"""YAML is read strictly, and wrong configurations name what is wrong."""

from pathlib import Path

import pytest

from appliance.config import MAX_YAML_BYTES, Config, dump_yaml, load_config, load_yaml
from appliance.errors import ConfigError, SkerryError, error_class, every_error

GOOD = "models_dir: /m\nkeys_dir: /k\nsocket: /s\n"

# name | YAML | words of the error
WRONG = [
    ("unknown key", GOOD + "modles: 1\n", "modles"),
    ("unknown limit", GOOD + "limits: {runing: 1}\n", "runing"),
    ("missing key", "models_dir: /m\n", "keys_dir"),
    ("wrong type", GOOD + "threads: many\n", "threads"),
    ("key twice", GOOD + "socket: /t\n", "second time"),
    ("nested key twice", GOOD + "limits: {queued: 1, queued: 2}\n", "second time"),
    ("relative path", "models_dir: m\nkeys_dir: /k\nsocket: /s\n", "absolute"),
    ("pages of less than nothing", GOOD + "prefixes: {max_bytes: -1}\n", "expected 0 to"),
    ("too many pages", GOOD + "prefixes: {max_bytes: 1099511627777}\n", "expected 0 to"),
    ("unknown prefix", GOOD + "prefixes: {size: 1}\n", "size"),
    ("guesses of less than nothing", GOOD + "drafts: {max_tokens: -1}\n", "expected 0 to 64"),
    ("too many guesses", GOOD + "drafts: {max_tokens: 65}\n", "expected 0 to 64"),
    ("zero", GOOD + "limits: {running: 0}\n", "more than 0"),
    ("threads", GOOD + "threads: 0\n", "1 to 1024"),
    ("alias", "a: &x 1\nb: *x\n", "alias"),
    ("tag", "a: !!python/object/apply:os.system [id]\n", "tag"),
    ("harmless tag", "a: !!binary aGk=\n", "tag"),
    ("infinite", GOOD + "limits: {header_timeout_s: .inf}\n", "finite"),
    ("not a number", GOOD + "limits: {drain_timeout_s: .nan}\n", "finite"),
    ("NUL in a path", 'models_dir: /m\nkeys_dir: /k\nsocket: "/s\\0"\n', "absolute"),
    ("number as key", "1: a\n", "expected text"),
    ("not YAML", "a: [\n", "cannot read"),
    ("a list", "- a\n", "object"),
    ("nothing", "", "object"),
]


@pytest.mark.parametrize(("text", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_configuration_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    """Every row is a ConfigError whose message holds the words that lead to the line."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_not_utf8_and_oversized_are_refused() -> None:
    """Bytes that are no text, and more than anybody would write by hand."""
    with pytest.raises(ConfigError, match="UTF-8"):
        load_yaml(b"a: \xff", "x")
    with pytest.raises(ConfigError, match="expected at most"):
        load_yaml(b"#" * (MAX_YAML_BYTES + 1), "x")
    with pytest.raises(ConfigError):
        load_yaml(b"[" * 100_000, "x")


def test_default_configuration_survives_a_round_trip(tmp_path: Path) -> None:
    """What is written is read back as the same value."""
    config = Config.default(tmp_path, threads=2)
    (tmp_path / "c.yaml").write_bytes(dump_yaml(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_every_kind_is_its_own_and_has_a_docstring() -> None:
    """Kinds are unique, so that a client finds the one class; and each class says what it means."""
    kinds = [c.kind for c in every_error()]
    assert len(kinds) == len(set(kinds))
    for c in every_error():
        assert c.__doc__
        assert error_class(c.kind) is c
        assert c.exit_code in (1, 2, 3, 4, 5)
        assert 400 <= c.http_status < 600
    assert error_class("from a newer daemon") is SkerryError
