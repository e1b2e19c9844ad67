"""Small tokenizers of each style that language models use, made on the spot."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = (
    "Hello, world! This is a test.\n\n  def f(x):\n\treturn x  # done",
    "naïve café, Übergröße, e\u0301 a\u0308 combining, ﬁ",
    "東京は日本の首都です。 中文 한국어 العربية हिन्दी",
    "😀 family 👨‍👩‍👧‍👦 flag 🇫🇷 skin 👍🏽 heart ❤️",
)


def byte_level() -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it, with merges that cross character borders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|start|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece BPE as Llama 2 and Mistral have it: ▁ for a space, byte tokens for unknown characters."""
    words = ["▁", "▁Hello", "▁world", "lo", "a", "b", "é", "▁a", ",", "日"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with Metaspace, as T5 has it: the first word's space is not text."""
    pieces = ["<unk>", "<s>", "▁", "▁Hello", "▁world", "lo", "a", "é", "😀", "日本", "▁a", "!"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def pieces(texts: list[str]) -> Tokenizer:
    """Token i is texts[i], decoded by joining; "<eos>" follows as a special token."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token=texts[0]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer
