"""A sampler for one row, in plain loops: slow and meant to be obviously right."""

import math

import numpy as np

from serve_paged.core.sequence import Sequence


def adjusted_logits(logits: np.ndarray, seq: Sequence, eos_token_ids: tuple[int, ...]) -> list[float]:
    """Logits [vocab] after logit_bias, min_tokens and penalties, in float32 like the sampler."""
    params, output, prompt = seq.params, seq.output_token_ids, seq.prompt_token_ids
    adjusted = []
    for token_id, value in enumerate(logits.astype(np.float32)):
        value = value + np.float32(params.logit_bias.get(token_id, 0.0))
        if len(output) < params.min_tokens and token_id in (*eos_token_ids, *params.stop_token_ids):
            value = np.float32(-np.inf)
        if token_id in prompt or token_id in output:
            repetition = np.float32(params.repetition_penalty)
            value = value / repetition if value > 0 else value * repetition
        if token_id in output:
            value = value - np.float32(params.frequency_penalty) * np.float32(output.count(token_id))
            value = value - np.float32(params.presence_penalty)
        adjusted.append(float(value))
    return adjusted


def distribution(adjusted: list[float], seq: Sequence, *, slack: float = 0.0) -> list[float]:
    """Probabilities [vocab] that a token is drawn with. `slack` moves the borders of top_p and min_p a little."""
    params, best = seq.params, max(adjusted)
    scaled = [(value - best) / params.temperature for value in adjusted]
    weights = [math.exp(value) for value in scaled]
    order = sorted(range(len(weights)), key=lambda token_id: -weights[token_id])
    kept = set(order)
    if params.top_k > 0:
        kth = weights[order[min(params.top_k, len(order)) - 1]]
        kept = {token_id for token_id in kept if weights[token_id] >= kth}
    if params.top_p < 1.0:
        mass, before, smallest = sum(weights[token_id] for token_id in kept), 0.0, 1.0
        for token_id in order:
            if before >= params.top_p * (1.0 + slack) * mass:
                break
            smallest, before = weights[token_id], before + weights[token_id]
        kept = {token_id for token_id in kept if weights[token_id] >= smallest}
    kept = {token_id for token_id in kept if weights[token_id] >= params.min_p * (1.0 + slack)}
    total = sum(weights[token_id] for token_id in kept)
    return [weight / total if token_id in kept else 0.0 for token_id, weight in enumerate(weights)]


def invert(probabilities: list[float], uniform: float) -> tuple[int, float]:
    """The token that `uniform` falls on, and its distance to the nearest border between two tokens."""
    edges = np.cumsum(probabilities)
    token_id = min(int(np.searchsorted(edges, uniform, side="right")), int(np.searchsorted(edges, edges[-1])))
    return token_id, float(np.abs(np.concatenate(([0.0], edges)) - uniform).min())
