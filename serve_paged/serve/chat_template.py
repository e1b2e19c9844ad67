"""From messages to the prompt text that a model was trained on. Knows no Ray and no torch."""

from collections.abc import Mapping, Sequence

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from serve_paged.core.errors import InvalidRequest


def render_chat(template: str | None, special_tokens: Mapping[str, str], messages: Sequence[Mapping[str, str]]) -> str:
    """Render a conversation with the model's own Jinja template, ready for the assistant's turn.

    `special_tokens` are those that the template may name (bos_token, ...). The text holds every special token that
    the prompt needs: encode it without adding more. Raises `InvalidRequest` when there is no template, or when the
    template refuses the conversation.
    """
    if template is None:
        raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
    try:
        rendered, _ = render_jinja_template(
            [list(messages)], chat_template=template, add_generation_prompt=True, **special_tokens
        )
    except jinja2.TemplateError as error:
        raise InvalidRequest(f"the model's chat template refuses these messages: {error}", "messages") from error
    return rendered[0]
