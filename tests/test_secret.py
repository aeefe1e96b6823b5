import stat
from pathlib import Path

import pytest

from shortener.secret import Secret, SecretError, open_secret


def test_a_secret_is_made_once_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    first = open_secret("", tmp_path / "data")
    kept = tmp_path / "data" / "secret"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert open_secret("", tmp_path / "data").key("x") == first.key("x")
    assert open_secret("", tmp_path / "other").key("x") != first.key("x")


@pytest.mark.parametrize("kept", ["", "\n", "secret", "change-me", "a" * 64, "abcabcabc" * 8])
def test_an_empty_or_default_secret_is_refused(tmp_path: Path, kept: str) -> None:
    (tmp_path / "secret").write_text(kept)
    with pytest.raises(SecretError, match=r"empty or too weak"):
        open_secret("", tmp_path)
    if kept.strip():
        with pytest.raises(SecretError):
            open_secret(kept, tmp_path)


def test_keys_differ_by_purpose_and_values_come_back() -> None:
    secret = Secret("0123456789abcdefghijklmnopqrstuv")
    assert secret.key("one") != secret.key("two")
    assert secret.decrypt(secret.encrypt("whsec_x")) == "whsec_x"
    with pytest.raises(SecretError, match="another SECRET"):
        Secret("vutsrqponmlkjihgfedcba9876543210").decrypt(secret.encrypt("x"))
