"""Real prompts: windows cut from the language reference that ships with Python."""

from pydoc_data.topics import topics

from tokenizers import Tokenizer


def real_prompts(tokenizer: Tokenizer, num_prompts: int, *, shortest: int = 10, longest: int = 1500) -> list[list[int]]:
    """Prompts in tokens, their lengths spread evenly on a log scale, no two from the same place."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer.encode(text[:400_000]).ids
    ratio = (longest / shortest) ** (1 / max(num_prompts - 1, 1))
    lengths = [round(shortest * ratio**i) for i in range(num_prompts)]
    stride = (len(ids) - longest) // num_prompts
    return [ids[i * stride : i * stride + length] for i, length in enumerate(lengths)]
