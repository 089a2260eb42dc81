"""Tokens that are kept."""

from cacheyd.upstream.token_service import TOKEN_MAX
from cacheyd.upstream.tokens import TOKEN_ROOM, KeptTokens, Key, Token


def test_tokens_are_kept_within_their_room() -> None:
    tokens = KeptTokens()

    def key(number: object) -> Key:
        return Key("reg.test", "https://reg.test", str(number), "")

    for number in range(2000):
        tokens.keep(key(number), Token("x" * TOKEN_MAX, 0.0))
        tokens.keep(key("same"), Token("x" * TOKEN_MAX, 0.0))
    assert 200 < len(tokens) <= TOKEN_ROOM // TOKEN_MAX
    assert tokens.get(key(1999))
    for number in (*range(2000), "same"):
        tokens.drop(key(number))
    assert len(tokens) == 0
    assert tokens._room == TOKEN_ROOM
