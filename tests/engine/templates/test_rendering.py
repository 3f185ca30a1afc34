from __future__ import annotations

from typing import Any

import pytest

from tests.engine.talk import assistant, user
from tqchat.engine.commands import ChatMessage
from tqchat.engine.model_config import context_limit
from tqchat.engine.models import LoadedModel
from tqchat.engine.sequences import common_prefix
from tqchat.engine.templates import PromptRejected, render

SYSTEM = ChatMessage("system", "Answer in rhyme.")
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEAF = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer(llama_folder: Any) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(llama_folder)


def rendered(tokenizer: Any, *messages: ChatMessage, **options: bool) -> str:
    return str(tokenizer.decode(render(tokenizer, messages, **options)))


def test_the_template_writes_the_transcript(tokenizer: Any) -> None:
    text = rendered(tokenizer, SYSTEM, user("Hello"))
    assert text == (
        "<|im_start|>system\nAnswer in rhyme.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_transcript_without_generation_prompt_is_a_prefix_of_the_next_turn(tokenizer: Any) -> None:
    said = [user("Hello"), assistant("Hi!")]
    before = render(tokenizer, said, add_generation_prompt=False)
    after = render(tokenizer, [*said, user("More")])
    assert common_prefix(before, after) == len(before)


def test_a_template_that_refuses_a_system_role_gets_it_in_the_first_message(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    assert rendered(tokenizer, SYSTEM, user("Hello")) == "<user>Answer in rhyme.\n\nHello<assistant>"


def test_a_template_that_leaves_the_system_prompt_out_gets_it_in_the_first_message(tokenizer: Any) -> None:
    tokenizer.chat_template = DEAF
    assert rendered(tokenizer, SYSTEM, user("Hello")) == "<user>Answer in rhyme.\n\nHello"


def test_neighbours_of_one_role_are_joined_where_roles_must_alternate(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    text = rendered(tokenizer, SYSTEM, user("One"), user("Two"), assistant("Three"), user("Four"))
    assert text == "<user>Answer in rhyme.\n\nOne\n\nTwo<assistant>Three<user>Four<assistant>"


def test_a_template_that_takes_nothing_is_reported_in_its_own_words(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('Only on Sundays') }}"
    with pytest.raises(PromptRejected, match="Only on Sundays"):
        render(tokenizer, [user("Hello")])


def test_templates_run_in_a_sandbox(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages.__class__.__base__.__subclasses__() }}"
    with pytest.raises(PromptRejected, match="unsafe"):
        render(tokenizer, [user("Hello")])


def test_an_empty_conversation_is_no_prompt(tokenizer: Any) -> None:
    with pytest.raises(PromptRejected):
        render(tokenizer, [])


def test_without_a_template_the_plain_form_is_used(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    text = rendered(tokenizer, SYSTEM, user("Hello"), assistant("Hi"), user("Bye"))
    assert text == "Answer in rhyme.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Bye\n\nAssistant:"


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 9, 3], [1, 2, 3], 1)]
)
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == shared


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "text_config": None}, None),
        ({}, None),
    ],
)
def test_context_limit(config: dict[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def test_the_starter_knows_its_limit(starter: LoadedModel) -> None:
    assert starter.context_limit == 4096
