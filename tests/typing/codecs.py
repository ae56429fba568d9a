"""What type checkers know of codecs."""

from __future__ import annotations

from typing import Any, assert_type

from fairque import Codec, Compress, Encrypt, Sign, TaskQueue, sync


class Own(Codec):
    def seal(self, place: Any, plain: bytes, associated: bytes) -> bytes | None:
        return plain + str(place).encode() + associated

    def open(self, place: Any, sealed: bytes, associated: bytes, most: int) -> bytes:
        return sealed[: most - len(associated) - len(str(place))]


def keys_of(user_id: str) -> dict[str, bytes]:
    return {"1": user_id.encode()}


def codecs() -> None:
    assert_type(Encrypt({"1": b""}), Encrypt)
    assert_type(Sign({"1": b""}, realm="r").realm, str | None)
    assert_type(Compress(above=5).accepts_plain, bool)
    assert_type(Own().seal(None, b"", b""), bytes | None)
    assert_type(Own().open(None, b"", b"", 1), bytes)
    Encrypt(key_for=keys_of, hash_key=b"", compress_above=5, realm="r", accepts_plain=True)
    for codec in (Sign({"1": b""}), Compress(), Own()):
        TaskQueue(codec=codec)
        sync.TaskQueue(codec=codec)
    TaskQueue(codec=None)
    TaskQueue(codec={"1": b""})  # type: ignore[arg-type]
    Encrypt({"1": "text"})  # type: ignore[dict-item]
    Sign(key_for={"1": b""})  # type: ignore[arg-type]
