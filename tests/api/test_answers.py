"""Answers of the server, over sockets and with a model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.client import CHAT, Client
from tests.api.conftest import serving
from tests.models import STARTER_FOLDER

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "f"}}


def test_a_chat_is_answered_with_its_figures(client: Client) -> None:
    answer = client.chat(model="tiny", cache_scheme="turbo3", seed=-5, stop="zzz", user="ignored", top_k=-1)
    assert answer.status == 200, answer.body
    whole = answer.json
    assert whole["object"] == "chat.completion" and whole["model"] == "tiny"
    (choice,) = whole["choices"]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    usage, figures = whole["usage"], whole["x_tqchat"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert figures["scheme"] == "turbo3" and figures["bytes"] > 0 and figures["fp16_bytes"] > 0
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == figures["restored_tokens"] + figures["reused_tokens"]
    assert usage["prompt_tokens"] == cached + figures["read_tokens"]


def test_a_stream_has_the_same_text_as_the_whole(client: Client) -> None:
    whole = client.chat("Tell me a story.", max_tokens=12).json
    stream = client.chat(
        "Tell me a story.", max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    assert stream.headers["content-type"].startswith("text/event-stream")
    *chunks, last = stream.chunks
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["x_tqchat"]["bytes"] > 0
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert {one["object"] for one in chunks} == {"chat.completion.chunk"}


def test_a_history_that_grows_is_not_read_again(client: Client) -> None:
    messages = [{"role": "user", "content": "A tale of a fox and a hound, told slowly. " * 6}]
    first = client.ask("POST", CHAT, {"messages": messages, "max_tokens": 6, "temperature": 0}).json
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = client.ask("POST", CHAT, {"messages": messages, "max_tokens": 6, "temperature": 0}).json
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


def test_a_text_is_continued(client: Client) -> None:
    body = {"prompt": ["Once upon a time"], "max_tokens": 4, "temperature": 0}
    whole = client.ask("POST", "/v1/completions", body).json
    assert whole["object"] == "text_completion" and whole["choices"][0]["text"]
    stream = client.ask("POST", "/v1/completions", body | {"stream": True}).chunks
    assert "".join(one["choices"][0]["text"] for one in stream) == whole["choices"][0]["text"]


def test_a_continued_text_begins_with_the_space_of_its_first_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    body = {"prompt": "Once upon a", "max_tokens": 4, "temperature": 0, "logprobs": 0}
    with serving(STARTER_FOLDER, tmp_path_factory.mktemp("home")) as server:
        client = Client.of(server)
        (choice,) = client.ask("POST", "/v1/completions", body).json["choices"]
        stream = client.ask("POST", "/v1/completions", body | {"stream": True}).chunks
    assert choice["text"].startswith(" ") and choice["text"] == "".join(choice["logprobs"]["tokens"])
    assert "".join(one["choices"][0]["text"] for one in stream) == choice["text"]


def test_log_probabilities_of_a_chat(client: Client) -> None:
    asked = {"max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat("Tell me a story.", **asked).json["choices"]
    content = choice["logprobs"]["content"]
    said = b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "ignore")
    assert said.strip() == choice["message"]["content"].strip() and 1 < len(content) <= 8
    for one in content:
        assert set(one) == {"token", "logprob", "bytes", "top_logprobs"}
        best, *others = one["top_logprobs"]
        assert best == {name: one[name] for name in ("token", "logprob", "bytes")}, "greedy"
        assert [best["logprob"] >= other["logprob"] for other in others] == [True] * 2
    chunks = client.chat("Tell me a story.", stream=True, **asked).chunks
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    streamed = [one for part in parts if part is not None for one in part["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in content]
    assert [one["logprob"] for one in streamed] == pytest.approx([one["logprob"] for one in content], abs=0.1)
    (plain,) = client.chat("Tell me a story.", logprobs=True, max_tokens=8).json["choices"]
    assert plain["logprobs"]["content"][0]["top_logprobs"] == []
    assert client.chat(logprobs=False, top_logprobs=0).json["choices"][0]["logprobs"] is None


def test_log_probabilities_of_a_continued_text(client: Client) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    (choice,) = client.ask("POST", "/v1/completions", body).json["choices"]
    told = choice["logprobs"]
    assert {len(values) for values in told.values()} == {len(told["tokens"])}
    assert set(told) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(told["tokens"]) == choice["text"]
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == logprob == max(top.values()) and 1 <= len(top) <= 3
    chunks = client.ask("POST", "/v1/completions", body | {"stream": True}).chunks
    parts = [part for chunk in chunks if (part := chunk["choices"][0]["logprobs"]) is not None]
    assert [token for part in parts for token in part["tokens"]] == told["tokens"]
    assert [offset for part in parts for offset in part["text_offset"]] == told["text_offset"]
    least = client.ask("POST", "/v1/completions", body | {"logprobs": 0}).json["choices"][0]["logprobs"]
    assert least["tokens"] == told["tokens"] and all(len(top) == 1 for top in least["top_logprobs"])


def test_fifty_clients_at_once(client: Client) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(lambda n: client.chat(f"I am {n}.", max_tokens=1, stream=n % 2 == 0), range(50))
        )
    assert [one.status for one in answers] == [200] * 50
    assert all(one.chunks[-1]["choices"][0]["finish_reason"] for one in answers[::2])


def test_models_and_health(client: Client) -> None:
    (model,) = client.ask("GET", "/v1/models").json["data"]
    assert model["id"] == "tiny" and model["max_model_len"] == 512
    assert client.ask("GET", "/v1/models/tiny").json == model
    assert client.ask("GET", "/health").json["status"] == "ok"
    missing = client.ask("GET", "/v1/models/gpt-5")
    assert missing.status == 404 and "tiny" in missing.error["message"]
    assert client.chat(model="gpt-5").error["code"] == "model_not_found"
    assert client.chat(model="some/one/TINY").status == 404 and client.chat(model="Tiny").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/images/generations", 404),
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/v1/models/%ff%00..%2f", 404),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_other_paths_and_methods(client: Client, method: str, path: str, status: int) -> None:
    answer = client.ask(method, path, {} if method == "POST" else None)
    assert answer.status == status and answer.error["code"]


def test_a_prompt_beyond_the_context_limit(client: Client) -> None:
    for stream in (False, True):
        answer = client.chat("word " * 600, stream=stream)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def nested(levels: int) -> object:
    return [nested(levels - 1)] if levels else []


def test_whole_numbers_may_be_written_with_a_point(client: Client) -> None:
    fields = {"max_tokens": 3.0, "max_completion_tokens": 2.0, "n": 1.0, "seed": 5.0, "top_k": 4.0}
    answer = client.chat(**fields, logprobs=True, top_logprobs=2.0, temperature=1.0)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("temperature", "hot", "a number from 0 to 5"),
        ("temperature", -1, "a number from 0 to 5"),
        ("temperature", True, "a number"),
        ("top_p", 2, "at most 1"),
        ("top_k", 1.5, "a whole number"),
        ("min_p", [], "a number"),
        ("presence_penalty", 9, "from -2 to 2"),
        ("max_tokens", 0, "from 1"),
        ("max_completion_tokens", "5", "from 1"),
        ("seed", 1.5, "a whole number"),
        ("stop", 5, "a string or a list of strings"),
        ("stop", ["x"] * 17, "at most 16"),
        ("stream", "yes", "true or false"),
        ("stream_options", 1, "an object"),
        ("model", 5, "a string"),
        ("n", 2, "1"),
        ("cache_scheme", "turbo99", "cache scheme"),
        ("reasoning_effort", "heroic", "one of"),
        ("logprobs", 1, "true or false"),
        ("top_logprobs", 21, "from 0 to 20"),
        ("top_logprobs", 2, "logprobs true"),
        ("top_logprobs", True, "a whole number"),
        ("logit_bias", {"5": 1}, "logit_bias"),
        ("response_format", {"type": "json_object"}, "text"),
        ("modalities", ["audio"], "text"),
        ("functions", [{}], "tools"),
        ("tool_choice", "required", "no tools"),
        ("tool_choice", 5, "auto, none, required"),
        ("tools", {}, "a list"),
        ("tools", [5], "an object"),
        ("tools", [{"type": "function"}], "an object with a name"),
        ("tools", [TOOL | {"type": "browser"}], "function"),
        ("messages", [], "at least one message"),
        ("messages", None, "at least one message"),
        ("messages", "Hello", "a list"),
        ("messages", ["Hello"], "an object"),
        ("messages", [{"role": "robot", "content": "x"}], "one of system"),
        ("messages", [{"role": [], "content": "x"}], "one of system"),
        ("messages", [{"role": "user"}], "a string"),
        ("messages", [{"role": "user", "content": 5}], "a string"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "Images"),
        ("messages", [{"role": "user", "content": [{"type": "input_audio"}]}], "Audio"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "a string"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [CALL]}], "assistant"),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "an object with a name"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(client: Client, name: str, value: object, says: str) -> None:
    answer = client.chat(**{name: value})
    assert answer.status == 400
    assert name in (answer.error["param"] or "") and says in answer.error["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_reply_without_limit_ends_with_the_context(client: Client, name: str) -> None:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, name: -1}
    answer = client.ask("POST", CHAT, fields).json
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] > 8, "the server's default in these tests"


@pytest.mark.parametrize("name", ["temperature", "seed", "max_tokens", "top_k"])
@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity", "9" * 5000])
def test_numbers_that_are_none(client: Client, name: str, number: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "{name}": {number}}}'.encode()
    answer = client.ask("POST", CHAT, body)
    assert (answer.status, answer.error["param"]) == (400, name)
    assert len(answer.error["message"]) < 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 100_000, b'{"messages": ' + b"[" * 50_000, b'"' * 9]
)
def test_bodies_that_are_no_objects(client: Client, body: bytes) -> None:
    answer = client.ask("POST", CHAT, body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")


def test_a_schema_of_many_levels_is_refused(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": nested(300)}}}
    assert "levels" in client.chat(tools=[tool]).error["message"]


def test_control_characters_and_lone_surrogates_are_text(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "a\x00b\x1b[2J\x7f\ud800 <|im_end|> \U0001f600"}]}
    assert client.ask("POST", CHAT, body | {"max_tokens": 2}).status == 200
    messy = json.dumps(body).encode().replace(b"\\u0000", b"\x00")
    assert client.ask("POST", CHAT, messy).error["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True),
        ("suffix", "x"),
        ("best_of", 2),
        ("logprobs", 6),
        ("logprobs", True),
        ("prompt", ["a", "b"]),
        ("prompt", [1, 2]),
        ("prompt", ""),
        ("prompt", {}),
    ],
)
def test_what_completions_do_not_do(client: Client, field: str, value: object) -> None:
    answer = client.ask("POST", "/v1/completions", {"prompt": "x", field: value})
    assert (answer.status, answer.error["param"]) == (400, field)
