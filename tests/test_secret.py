import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from shortener.secret import Secret, SecretError, open_secret


def test_the_first_start_creates_a_secret_that_only_its_owner_can_read(tmp_path: Path) -> None:
    first = open_secret(SecretStr(""), tmp_path / "data", create=True)
    path = tmp_path / "data" / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_secret(SecretStr(""), tmp_path / "data", create=True).key("x") == first.key("x")
    assert open_secret(SecretStr(""), tmp_path / "other", create=True).key("x") != first.key("x")


@pytest.mark.parametrize("text", ["", "\n", "secret", "change-me", "a" * 64, "abcabcabc" * 8])
def test_an_empty_or_weak_secret_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    with pytest.raises(SecretError, match=r"empty or too weak"):
        open_secret(SecretStr(""), tmp_path, create=True)
    if text.strip():
        with pytest.raises(SecretError):
            open_secret(SecretStr(text), tmp_path)


def test_the_secret_has_a_separate_key_for_each_purpose_and_decrypts_values_that_it_encrypted() -> None:
    secret = Secret("0123456789abcdefghijklmnopqrstuv")
    assert secret.key("one") != secret.key("two")
    assert secret.decrypt(secret.encrypt("whsec_x")) == "whsec_x"
    with pytest.raises(SecretError, match="another SECRET"):
        Secret("vutsrqponmlkjihgfedcba9876543210").decrypt(secret.encrypt("x"))


def test_a_secret_file_that_others_can_write_is_rejected(tmp_path: Path) -> None:
    open_secret(SecretStr(""), tmp_path, create=True)
    (tmp_path / "secret").chmod(0o620)
    with pytest.raises(SecretError, match="chmod 600"):
        open_secret(SecretStr(""), tmp_path, create=True)


def test_a_start_that_is_interrupted_while_it_writes_the_secret_leaves_no_secret_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shortener.secret.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_secret(SecretStr(""), tmp_path, create=True)
    assert list(tmp_path.iterdir()) == []
    assert open_secret(SecretStr(""), tmp_path, create=True).code_salt


def test_two_processes_that_start_at_the_same_time_use_the_same_new_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: open_secret(SecretStr(""), tmp_path, create=True).fingerprint, range(32)))
    assert len(found) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
