"""The texts of tokens: joined they are the response, whatever a tokenizer does to spaces and to parts of characters."""

import random
import time
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.rollout.token_text import token_texts

WORDS = ["\u2581", "\u2581\u2581", "\u2581Hello", "\u2581world", "world", ".", "a", "\u2581a", "\xe9", "\u2581\u65e5"]


def spelling(*pieces: bytes):
    """A tokenizer whose tokens spell these bytes."""
    return SimpleNamespace(
        all_special_ids=[], decode=lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")
    )


@pytest.mark.parametrize(
    "pieces, texts",
    [
        ([b"a", b" b"], ["a", " b"]),
        ([b"a", b"\xe3\x80", b"\x82", b"b"], ["a", "", "\u3002", "b"]),
        ([b" \xf0\x9f", b"\x98", b"\x80\xc3", b"\xa9!"], [" ", "", "\U0001f600", "\xe9!"]),  # two characters share one
        ([b"\xff", b"a"], ["\ufffd", "a"]),  # no text at all
        ([b"a", b"\xe3\x80"], ["a", "\ufffd"]),  # cut at the token limit
        ([b"a", b"\xe3", b"\x80", b"b"], ["a", "\ufffd", "", "b"]),  # one mark for both
        ([b"\x80", b"\xe3", b"\x80", b"\x82"], ["\ufffd", "", "", "\u3002"]),
        ([b"\xf0\x9f"] * 12, ["\ufffd"] * 12),  # more than spell characters
        ([], []),
    ],
)
def test_a_character_that_several_tokens_spell_is_the_last_one_s(pieces, texts):
    assert token_texts([[*range(len(pieces))]], spelling(*pieces)) == [texts]


def of_words(decoder) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte and for some words, as SentencePiece makes them."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    whole = Tokenizer(model)
    whole.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte, as GPT-2 has them, and some of several bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *alphabet, "\u0120a", "\xf0\u0141", "\u0120\xe2"]
    whole = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>")


LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
TOKENIZERS = {
    "llama": lambda: of_words(decoders.Sequence(LLAMA)),
    "metaspace": lambda: of_words(
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    ),
    "first": lambda: of_words(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])),
    "never": lambda: of_words(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])),
    "bytes": of_bytes,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def ids_of(tokenizer, *pieces: str | bytes) -> list[int]:
    """The tokens of these names; a byte string is one token a byte."""
    names = []
    for piece in pieces:
        names += [piece] if isinstance(piece, str) else [f"<0x{byte:02X}>" for byte in piece]
    return tokenizer.convert_tokens_to_ids(names)


@pytest.mark.parametrize("name", ["llama", "metaspace", "first"])
def test_a_word_keeps_the_space_before_it_where_it_is_not_the_first(name):
    tokenizer = TOKENIZERS[name]()
    ids = ids_of(tokenizer, "\u2581Hello", "\u2581world", ".", "\u2581a", "</s>")
    texts = ["Hello", " world", ".", " a", "</s>"]
    assert [tokenizer.decode([token]) for token in ids][1] == "world"  # which is what has to be mended
    assert token_texts([ids, ids[1:]], tokenizer) == [texts, ["world", *texts[2:]]]
    smile = ids_of(tokenizer, "\u2581", "\U0001f600".encode(), "\u2581", b"\n", "\u65e5\u672c".encode(), "\u2581a")
    texts = ["", "", "", "", "\U0001f600", " ", "\n", "", "", "\u65e5", "", "", "\u672c", " a"]
    assert token_texts([smile], tokenizer) == [texts]


def test_parts_of_characters_of_single_bytes_stay_where_they_are():
    """A run of bytes of which one is no text has a mark for each byte, those of whole characters too."""
    tokenizer = TOKENIZERS["llama"]()
    ids = ids_of(tokenizer, "\u2581Hello", "\u65e5".encode(), b"\xf0\x9f", "\u2581world")
    assert token_texts([ids], tokenizer) == [["Hello", "", "", "", "", "\ufffd" * 5, " world"]]


def test_texts_joined_are_the_response_whatever_was_sampled(tokenizer):
    draw = random.Random(0)
    size = len(tokenizer)
    rows = [[draw.randrange(size) for _ in range(draw.randrange(40))] for _ in range(300)]
    words = [t for t in range(size) if t > 2 + 256 or draw.random() < 0.05] if size > 2 + 256 + 5 else [*range(size)]
    rows += [[draw.choice(words) for _ in range(draw.randrange(40))] for _ in range(300)]
    for text in ("\u65e5\u672c \U0001f600 caf\xe9", "a\u0301\u200d", "\U0001f469\u200d\U0001f680"):
        name = "<0x{:02X}>" if "<0x00>" in tokenizer.get_vocab() else None
        if name:
            whole = tokenizer.convert_tokens_to_ids([name.format(byte) for byte in text.encode()])
            rows += [whole[:end] for end in range(len(whole) + 1)]
    for ids, texts in zip(rows, token_texts(rows, tokenizer), strict=True):
        assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)


def test_each_distinct_token_is_decoded_twice_and_whole_responses_never():
    """Where no token is a part of a character, which is nearly always."""
    asked = []

    def decode(ids):
        asked.append(len(ids))
        return "".join(f" t{token}" for token in ids)

    rows = [[draw % 50 for draw in range(start, start + 200)] for start in range(100)]
    texts = token_texts(rows, SimpleNamespace(all_special_ids=[2], decode=decode))
    assert len(asked) == 2 * 50 and max(asked) == 2 and texts[1][:2] == [" t1", " t2"]


def test_a_long_response_of_parts_takes_no_longer_than_its_length():
    tokenizer = TOKENIZERS["llama"]()
    ids = ids_of(tokenizer, b"\xf0\x9f" * 4000)
    start = time.process_time()
    (texts,) = token_texts([ids], tokenizer)
    assert time.process_time() - start < 3 and "".join(texts) == tokenizer.decode(ids)
