"""Codecs by themselves: what opens, and what does not."""

from __future__ import annotations

import os
import zlib
from itertools import product
from typing import Any

import pytest

from fairque.codec.codec import Codec, Kind, Place
from fairque.codec.compress import Compress
from fairque.codec.encrypt import Encrypt
from fairque.codec.keyed import Keyed
from fairque.codec.schemes import derived
from fairque.codec.sign import Sign
from fairque.errors import BrokenSeal, ConfigError, InvalidInput, SealError, UnknownKey

MOST = 1 << 20
OLD, NEW = b"o" * 32, b"n" * 32
PLACE = Place("queue", Kind.ARGUMENTS, "acme", "id")
keyed = pytest.mark.parametrize("kind", [Sign, Encrypt])


def opened(codec: Codec, sealed: bytes | None, place: Place = PLACE, associated: bytes = b"beside") -> bytes:
    assert sealed is not None
    return codec.open(place, sealed, associated, MOST)


@keyed
def test_what_is_sealed_opens_at_its_place(kind: type[Keyed]):
    codec = kind({"1": OLD})
    for plain in (b"", b"a", os.urandom(100_000)):
        assert opened(codec, codec.seal(PLACE, plain, b"beside")) == plain


@keyed
def test_nothing_opens_elsewhere(kind: type[Keyed]):
    codec = kind({"1": OLD})
    sealed = codec.seal(PLACE, b"secret", b"beside")
    for other in (
        PLACE._replace(realm="other"),
        PLACE._replace(kind=Kind.RESULT),
        PLACE._replace(user_id="zoe"),
        PLACE._replace(id="other"),
        PLACE._replace(user_id="acm", id="eid"),
    ):
        with pytest.raises(BrokenSeal, match="sealed for another place"):
            opened(codec, sealed, other)
    with pytest.raises(BrokenSeal):
        opened(codec, sealed, associated=b"besides")


@keyed
def test_no_bit_of_it_can_be_changed(kind: type[Keyed]):
    codec = kind({"1": OLD})
    sealed = codec.seal(PLACE, b"secret", b"beside")
    for at, bit in product(range(len(sealed)), range(8)):
        changed = bytearray(sealed)
        changed[at] ^= 1 << bit
        with pytest.raises(SealError):
            opened(codec, bytes(changed))


@keyed
def test_nothing_can_be_cut_off_or_put_behind(kind: type[Keyed]):
    codec = kind({"1": OLD})
    sealed = codec.seal(PLACE, b"secret", b"beside")
    for length in range(len(sealed)):
        with pytest.raises(SealError):
            opened(codec, sealed[:length])
    with pytest.raises(BrokenSeal):
        opened(codec, sealed + b"\0")


def test_what_stands_beside_cannot_become_a_part_of_what_is_signed():
    codec = Sign({"1": OLD})
    sealed = codec.seal(PLACE, b"tail", b"head")
    head, frame = sealed[:-5], sealed[-5:]
    with pytest.raises(BrokenSeal):
        opened(codec, head + b"d" + frame, associated=b"hea")


def test_an_encrypted_text_cannot_be_read():
    assert b"secret" not in Encrypt({"1": OLD}).seal(PLACE, b"secret", b"")
    assert b"secret" in Sign({"1": OLD}).seal(PLACE, b"secret", b"")


def test_no_key_is_used_twice():
    codec = Encrypt({"1": OLD})
    assert len({codec.seal(PLACE, b"secret", b"") for _ in range(100)}) == 100


@keyed
def test_a_schedule_that_is_sealed_again_looks_the_same(kind: type[Keyed]):
    codec, place = kind({"1": OLD}), PLACE._replace(kind=Kind.SCHEDULE)
    assert codec.seal(place, b"secret", b"") == codec.seal(place, b"secret", b"")
    assert codec.seal(place, b"secret", b"") != codec.seal(place, b"other", b"")
    assert codec.seal(place, b"secret", b"") != codec.seal(place._replace(id="other"), b"secret", b"")


@keyed
def test_the_first_key_seals_and_all_of_them_open(kind: type[Keyed]):
    before, between, after = kind({"1": OLD}), kind({"1": OLD, "2": NEW}), kind({"2": NEW, "1": OLD})
    sealed = before.seal(PLACE, b"a", b"beside"), after.seal(PLACE, b"b", b"beside")
    for codec in (between, after):
        assert [opened(codec, each) for each in sealed] == [b"a", b"b"]
    assert opened(before, between.seal(PLACE, b"c", b"beside")) == b"c"
    with pytest.raises(UnknownKey, match="'2' of user 'acme'"):
        opened(before, sealed[1])
    with pytest.raises(BrokenSeal):
        opened(kind({"1": NEW}), sealed[0])


def test_what_was_signed_opens_where_the_same_keys_encrypt():
    sign, encrypt = Sign({"1": OLD}), Encrypt({"1": OLD})
    assert opened(encrypt, sign.seal(PLACE, b"a", b"beside")) == b"a"
    assert opened(sign, encrypt.seal(PLACE, b"a", b"beside")) == b"a"
    signed = sign.seal(PLACE, b"a", b"beside")
    with pytest.raises(SealError):
        opened(encrypt, b"e" + signed[1:])


@keyed
def test_each_user_may_have_keys_of_its_own(kind: type[Keyed]):
    keys = {"acme": {"1": OLD}, "zoe": {"1": NEW}}
    codec = kind(key_for=lambda user_id: keys[user_id])
    sealed = codec.seal(PLACE, b"secret", b"beside")
    assert opened(codec, sealed) == b"secret"
    with pytest.raises(BrokenSeal):
        opened(kind({"1": NEW}), sealed)
    keys["acme"] = {}
    with pytest.raises(UnknownKey, match="'1' of user 'acme' is not known"):
        opened(codec, sealed)
    with pytest.raises(UnknownKey, match="no key for user 'acme'"):
        codec.seal(PLACE, b"secret", b"")
    del keys["acme"]
    with pytest.raises(UnknownKey, match="cannot be had: KeyError"):
        opened(codec, sealed)


@keyed
def test_large_contents_are_compressed_where_that_helps(kind: type[Keyed]):
    codec = kind({"1": OLD}, compress_above=100)
    large, noise = b"a" * 10_000, os.urandom(10_000)
    assert len(codec.seal(PLACE, large, b"beside")) < 200
    for plain in (large, noise, b"short"):
        sealed = codec.seal(PLACE, plain, b"beside")
        assert len(sealed) < len(plain) + 100
        assert opened(codec, sealed) == plain


@pytest.mark.parametrize("codec", [Compress(10), Sign({"1": OLD}, compress_above=10)])
def test_a_compression_bomb_takes_no_memory(codec: Codec):
    with pytest.raises(BrokenSeal, match=f"more than {MOST} bytes"):
        opened(codec, codec.seal(PLACE, bytes(MOST + 1), b"beside"))
    assert opened(codec, codec.seal(PLACE, bytes(MOST), b"beside")) == bytes(MOST)


def test_what_is_compressed_must_be_whole():
    codec = Compress(10)
    sealed = codec.seal(PLACE, b"a" * 1000, b"beside")
    assert sealed is not None
    for changed in (sealed[:-1], sealed + b"\0", sealed[:-1] + b"\0", b"c\2", b"c", b""):
        with pytest.raises(BrokenSeal):
            opened(codec, changed)


def test_compression_leaves_what_is_small_and_has_no_keys():
    codec = Compress(100)
    assert codec.accepts_plain
    assert codec.seal(PLACE, b"a" * 100, b"") is None
    assert codec.seal(PLACE, os.urandom(1000), b"") is None
    with pytest.raises(UnknownKey, match="there are none here"):
        opened(codec, Sign({"1": OLD}).seal(PLACE, b"a", b"beside"))
    with pytest.raises(BrokenSeal):
        opened(Sign({"1": OLD}), b"c\1" + zlib.compress(b"a"))


def test_hashes_are_the_same_for_the_same_text_and_key():
    codec = Encrypt({"1": OLD})
    assert (
        codec.hashed("queue", None, "a")
        == codec.hashed("queue", None, "a")
        == Sign({"1": OLD}).hashed("queue", None, "a")
    )
    others = [
        codec.hashed("queue", None, "b"),
        codec.hashed("other", None, "a"),
        Encrypt({"1": NEW}).hashed("queue", None, "a"),
    ]
    assert codec.hashed("queue", None, "a") not in others


def test_a_hash_key_stays_while_keys_change():
    before, after = (Sign(keys, hash_key=OLD) for keys in ({"1": OLD}, {"2": NEW, "1": OLD}))
    assert before.hashed("queue", None, "a") == after.hashed("queue", None, "a")


def test_users_with_keys_of_their_own_share_no_hash_without_a_hash_key():
    codec = Sign(key_for=lambda user_id: {"1": user_id.encode() * 32})
    assert codec.hashed("queue", "acme", "a") != codec.hashed("queue", "zoe", "a")
    with pytest.raises(ConfigError, match="hash_key"):
        codec.hashed("queue", None, "a")
    shared = Sign(key_for=lambda user_id: {"1": user_id.encode() * 32}, hash_key=OLD)
    assert shared.hashed("queue", None, "a")


@pytest.mark.parametrize(
    ("keys", "options", "text"),
    [
        (None, {}, "needs either keys or key_for"),
        ({"1": OLD}, {"key_for": lambda _: {}}, "either keys or key_for$"),
        ({}, {}, "needs a key"),
        ({"1": b"short"}, {}, "'1' has 5 bytes, at least 32"),
        ({"1": "k" * 32}, {}, "'1' must be bytes"),
        ({"": OLD}, {}, "1 to 100 bytes"),
        ({1: OLD}, {}, "must be a str"),
        ([OLD], {}, "must be a mapping"),
        (None, {"key_for": {}}, "must be a function"),
        ({"1": OLD}, {"realm": ""}, "realm must not be empty"),
        ({"1": OLD}, {"compress_above": -1}, "compress_above"),
        ({"1": OLD}, {"hash_key": b"short"}, "'hash_key' has 5"),
    ],
)
def test_bad_keys_are_refused_without_being_shown(keys: Any, options: dict[str, Any], text: str):
    with pytest.raises(InvalidInput, match=text) as refused:
        Sign(keys, **options)
    assert "kkkk" not in str(refused.value)
    assert "short" not in str(refused.value)


def test_what_is_small_is_a_number_of_bytes():
    with pytest.raises(InvalidInput, match="above must be a whole number"):
        Compress(-1)


def test_keys_are_derived_as_the_standard_says():
    """RFC 5869, the second step of test case 1, of which the first 32 bytes are one block."""
    extracted = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    found = derived(extracted, bytes(range(0xF0, 0xF4)), bytes(range(0xF4, 0xFA)))
    assert found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
