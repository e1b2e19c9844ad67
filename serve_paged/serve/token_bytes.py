"""The bytes behind a token's name in the vocabulary, for the log probabilities that clients read."""

import json
import re

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Maps a token's name to its bytes, in byte-level BPE (GPT-2's alphabet) or SentencePiece style vocabularies."""

    def __init__(self, tokenizer_json: str) -> None:
        spec = json.loads(tokenizer_json)
        self._byte_level = '"ByteLevel"' in json.dumps(spec.get("decoder"))
        self._added = frozenset(token["content"] for token in spec.get("added_tokens") or ())
        self._alphabet = _gpt2_alphabet()

    def __call__(self, token: str) -> bytes:
        """The bytes of one token, given as the vocabulary spells it."""
        if token in self._added:
            return token.encode("utf-8")
        if self._byte_level:
            return b"".join(self._alphabet.get(char) or char.encode("utf-8") for char in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(match[1])
        return token.replace("▁", " ").encode("utf-8")


def _gpt2_alphabet() -> dict[str, bytes]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, other bytes for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + index): bytes([byte]) for index, byte in enumerate(hidden)}
