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


DEMANDS_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('A system message is required') }}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
)


@pytest.mark.parametrize("also_empty", [False, True])
def test_a_template_that_demands_a_system_message_gets_one(tokenizer: Any, also_empty: bool) -> None:
    tokenizer.chat_template = DEMANDS_SYSTEM
    text = ""
    if also_empty:
        tokenizer.chat_template = DEMANDS_SYSTEM.replace(
            "'system' %}", "'system' or not messages[0].content %}"
        )
        text = "You are a helpful assistant."
    assert rendered(tokenizer, user("Hello")) == f"<system>{text}<user>Hello<assistant>"
    both = rendered(tokenizer, assistant("Hi"), user("Hello"))
    assert both == f"<system>{text}<assistant>Hi<user>Hello<assistant>"
    assert rendered(tokenizer, SYSTEM, user("Hello")) == "<system>Answer in rhyme.<user>Hello<assistant>"


def test_joined_replies_keep_the_reasoning_of_both(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT.replace(
        "{{ m['content'] }}", "{{ m.reasoning_content }}|{{ m['content'] }}"
    )
    replies = (ChatMessage("assistant", "Two", "First."), ChatMessage("assistant", "Three", "Then."))
    text = rendered(tokenizer, user("One"), *replies, user("Four"))
    assert text == "<user>|One<assistant>First.\n\nThen.|Two\n\nThree<user>|Four<assistant>"


def test_a_template_that_takes_nothing_is_reported_in_its_own_words(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('Only on Sundays') }}"
    with pytest.raises(PromptRejected, match="Only on Sundays"):
        render(tokenizer, [user("Hello")])


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_a_template_that_is_made_for_tools_or_documents_is_used_without_any(
    tokenizer: Any, name: str
) -> None:
    tokenizer.chat_template = "{% for one in " + name + " %}[{{ one }}]{% endfor %}" + DEAF
    said = rendered(tokenizer, user("Hello!"))
    tokenizer.chat_template = DEAF
    assert said == rendered(tokenizer, user("Hello!"))


def test_templates_run_in_a_sandbox(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages.__class__.__base__.__subclasses__() }}"
    with pytest.raises(PromptRejected, match="unsafe"):
        render(tokenizer, [user("Hello")])


def test_lone_surrogates_become_replacement_characters(tokenizer: Any) -> None:
    odd, valid = [user("caf\udce9?"), assistant("\ud800"), user("and")], ["caf\ufffd?", "\ufffd", "and"]
    expected = [user(valid[0]), assistant(valid[1]), user(valid[2])]
    assert render(tokenizer, odd) == render(tokenizer, expected)


def test_an_empty_conversation_is_no_prompt(tokenizer: Any) -> None:
    with pytest.raises(PromptRejected):
        render(tokenizer, [])


def test_without_a_template_the_plain_form_is_used(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    text = rendered(tokenizer, SYSTEM, user("Hello"), assistant("Hi"), user("Bye"))
    assert text == "Answer in rhyme.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Bye\n\nAssistant:"


OPEN = "{% for m in messages %}<{{ m['role'] }}>"
CLOSE = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
EACH_PART = (
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
)
FORMS = {
    "a loop over parts": EACH_PART,
    "the first part": "{{ m['content'][0]['text'] }}",
    "selected parts": "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part.text }}"
    "{% endfor %}",
    "parts but for replies": "{% if m['role'] == 'assistant' %}{{ m['content'] }}{% else %}"
    + EACH_PART
    + "{% endif %}",
    "parts for replies": "{% if m['role'] != 'assistant' %}{{ m['content'] + '' }}{% else %}"
    + EACH_PART
    + "{% endif %}",
    "parts for the system prompt": "{% if m['role'] == 'system' %}"
    + EACH_PART
    + "{% else %}{{ m['content'] + '' }}{% endif %}",
    "either": "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + EACH_PART + "{% endif %}",
    "text": "{{ m['content'] }}",
    "text as JSON": "{{ m['content'] | tojson }}",
}


@pytest.mark.parametrize("form", FORMS)
def test_content_comes_in_the_form_that_the_template_wants(tokenizer: Any, form: str) -> None:
    tokenizer.chat_template = OPEN + FORMS[form] + CLOSE
    said = [SYSTEM, user("What is [1, 2]?"), assistant("A list."), user("Of what?")]
    for upto in (2, 4):
        text = rendered(tokenizer, *said[:upto]).replace('"', "")
        assert text == "".join(f"<{one.role}>{one.content}" for one in said[:upto]) + "<assistant>"


def test_a_template_that_leaves_the_words_out_in_every_form_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = OPEN + "something else" + CLOSE
    with pytest.raises(PromptRejected, match="leaves out what was said"):
        render(tokenizer, [user("Hello")])


@pytest.mark.parametrize(
    "content",
    [
        "{{ m['content'] | trim }}",
        "{{ m['content'].split() | join(' ') }}",
        "{{ m['content'] | upper }}",
        "{{ m['content'] | e }}",
        "{{ m['content'] | replace('\n', '  ') }}",
        "{{ m['content'] | replace('fox', 'cat') }}",
    ],
)
def test_a_template_that_changes_words_or_white_space_still_says_them(tokenizer: Any, content: str) -> None:
    tokenizer.chat_template = OPEN + content + CLOSE
    text = rendered(tokenizer, user("  Where is the <fox>,\n\n and why?  "))
    assert "where is the" in text.casefold() and "why?" in text.casefold()
    assert text.count("<user>") == 1


def test_a_conversation_that_begins_with_a_reply_gets_an_empty_turn_where_it_must(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    assert rendered(tokenizer, assistant("One"), user("Two")) == "<user><assistant>One<user>Two<assistant>"
    said = (SYSTEM, assistant("One"), user("Two"))
    text = rendered(tokenizer, *said)
    assert text.endswith("<assistant>One<user>Answer in rhyme.\n\nTwo<assistant>")


def test_system_prompts_in_odd_places_are_sent(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT.replace(
        "messages[0]['role'] == 'system'", "'system' in messages|map(attribute='role')"
    )
    text = rendered(tokenizer, user("One"), SYSTEM, user("Two"))
    assert text == "<user>Answer in rhyme.\n\nOne\n\nTwo<assistant>"
    assert rendered(tokenizer, SYSTEM) == "<user>Answer in rhyme.<assistant>"


@pytest.mark.parametrize(
    "template", ["{{ bos_token }}", "{{ bos_token }}{{ bos_token }}", "<|endoftext|>", ""]
)
@pytest.mark.parametrize("adds", [True, False])
def test_the_beginning_is_written_once(tokenizer: Any, template: str, adds: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|endoftext|>"
    if adds:
        backend = tokenizer._tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    for forms in (template + OPEN + "{{ m.content }}" + CLOSE, None):
        tokenizer.chat_template = forms
        tokens = render(tokenizer, [user("<|endoftext|>Hello")])
        expected = adds if forms is None else adds or bool(template)
        assert tokens.count(0) == tokens[:1].count(0) == int(expected)


def test_variables_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}{{ effort }}{{ enable_thinking }}"
    found = render(tokenizer, [user("Hi")], variables={"effort": "high", "enable_thinking": True})
    assert tokenizer.decode(found) == "HihighTrue"
    assert tokenizer.decode(render(tokenizer, [user("Hi")])) == "HiFalse", "what mlx-lm tells by default"


def test_reasoning_is_given_to_templates_that_ask_for_it(tokenizer: Any) -> None:
    tokenizer.chat_template = OPEN + "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.content }}" + CLOSE
    said = [user("Hi"), ChatMessage("assistant", "Hello", reasoning="A <|im_end|>?"), user("Bye")]
    found = render(tokenizer, said)
    assert "A <|im_end|>?|A <|im_end|>?|Hello" in tokenizer.decode(found)
    assert 2 not in found


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
        ({"max_position_embeddings": 131072.0}, 131072),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": float("nan")}, None),
        ({"max_position_embeddings": 10**30}, None),
        ({"max_position_embeddings": None, "text_config": None}, None),
        ({}, None),
    ],
)
def test_context_limit(config: dict[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def test_the_starter_knows_its_limit(starter: LoadedModel) -> None:
    assert starter.context_limit == 4096


@pytest.mark.parametrize("words", ["I", "a", "user", "is", "<"])
def test_words_that_a_prompt_contains_anyway_are_not_taken_for_said(tokenizer: Any, words: str) -> None:
    tokenizer.chat_template = OPEN + "I is a user <" + EACH_PART + CLOSE
    said = [user(words), assistant(words), user(words)]
    expected = "".join(f"<{one.role}>I is a user <{one.content}" for one in said) + "<assistant>"
    assert rendered(tokenizer, *said) == expected


def test_a_template_that_does_not_end_is_refused_at_once(tokenizer: Any) -> None:
    import time

    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.process_time()  # not the clock, which goes on while others have the processor
    with pytest.raises(PromptRejected, match="does not come to an end"):
        render(tokenizer, [user("Hello")])
    assert time.process_time() - began < 20


def test_a_template_that_takes_only_certain_contents_is_used_for_them(tokenizer: Any) -> None:
    only_json = "{% set parsed = m.content | fromjson %}{{ m.content }}"
    tokenizer.chat_template = OPEN + only_json + CLOSE
    assert rendered(tokenizer, user('{"a": 1}')) == '<user>{"a": 1}<assistant>'
