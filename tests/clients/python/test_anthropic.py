"""The official `anthropic` client against a running fleet: nothing changed but base URL and key."""

import concurrent.futures

import anthropic
import pytest
from conftest import fleet

HELLO = [{"role": "user", "content": "Hello! Who are you?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"name": "look_up", "description": "Looks a word up", "input_schema": SCHEMA}


@pytest.fixture
def claude(served):
    """The official client."""
    return anthropic.Anthropic(base_url=served["url"], api_key=served["key"], max_retries=0)


def test_models_are_listed_and_read(claude, model):
    listed = claude.models.list().data
    assert [one.id for one in listed].count(model) == 1
    assert claude.models.retrieve(model).created_at.year >= 2024


def test_a_message_answers_and_counts_its_tokens(claude, model):
    message = claude.messages.create(model=model, max_tokens=64, messages=HELLO, extra_body={"temperature": 0})
    assert message.type == "message" and message.role == "assistant"
    assert "Phalanx" in message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    usage = message.usage
    counted = claude.messages.count_tokens(model=model, messages=HELLO).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert 0 < usage.output_tokens <= 64
    assert message._request_id


def test_a_stream_gives_the_same_text_and_ends_properly(claude, model):
    whole = claude.messages.create(model=model, max_tokens=64, messages=HELLO, extra_body={"temperature": 0})
    with claude.messages.stream(
        model=model, max_tokens=64, messages=HELLO, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    raw = claude.messages.create(
        model=model, max_tokens=8, messages=HELLO, stream=True, extra_body={"temperature": 0}
    )
    kinds = [event.type for event in raw]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_system_blocks_and_a_begun_answer_are_taken(claude, model):
    message = claude.messages.create(
        model=model,
        max_tokens=8,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[*HELLO, {"role": "assistant", "content": "I am"}],
        stop_sequences=["zzzz"],
        extra_body={"top_k": 5},
        metadata={"user_id": "x"},
    )
    assert message.usage.output_tokens > 0


def test_a_stop_sequence_ends_the_answer_and_is_named(claude, model):
    whole = claude.messages.create(model=model, max_tokens=48, messages=HELLO, extra_body={"temperature": 0})
    text = whole.content[0].text
    stop = text[len(text) // 2 :][:3]
    cut = claude.messages.create(
        model=model, max_tokens=48, messages=HELLO, stop_sequences=["zzzz", stop], extra_body={"temperature": 0}
    )
    assert cut.content[0].text == text[: text.index(stop)]
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == stop


def test_tools_are_called_as_asked_and_their_results_taken(claude, model):
    asked = {
        "model": model,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "Look up a name."}],
        "tools": [TOOL],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    message = claude.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert call.type == "tool_use" and call.name == "look_up" and set(call.input) == {"name", "age"}
    with claude.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds and set(final.content[-1].input) == {"name", "age"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "found"}]}
    turns = [*asked["messages"], message.to_param(), {"role": "user", "content": [result]}]
    again = claude.messages.create(
        model=model, max_tokens=8, messages=turns, tools=[TOOL], tool_choice={"type": "none"}
    )
    assert again.usage.output_tokens > 0


def test_errors_are_typed_and_named(served, claude, model):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="no-such-model", max_tokens=4, messages=HELLO)
    assert missing.value.type == "not_found_error" and "no-such-model" in missing.value.api_message
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(model=model, max_tokens=0, messages=HELLO)
    assert "max_tokens" in bad.value.api_message
    with pytest.raises(anthropic.BadRequestError) as unknown:
        claude.messages.create(model=model, max_tokens=4, messages=HELLO, extra_body={"unheard_of": 1})
    assert "unheard_of" in unknown.value.api_message
    stranger = anthropic.Anthropic(base_url=served["url"], api_key="sk-phx-wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.models.list()


def test_a_stream_that_is_closed_ends_its_work(claude, model):
    asked = {"model": model, "max_tokens": 7000, "messages": HELLO}
    with claude.messages.create(**asked, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    # The place is free again: a whole answer comes long before the other would have ended.
    assert claude.messages.create(model=model, max_tokens=8, messages=HELLO).content


def test_overload_is_an_honest_429_and_the_clients_own_retries_get_through(tmp_path):
    with fleet(tmp_path, "--providers", "1", "--batch-max", "1", "--set", "pool.queue_max=1") as ready:
        impatient = anthropic.Anthropic(base_url=ready["url"], api_key=ready["key"], max_retries=0)
        patient = anthropic.Anthropic(base_url=ready["url"], api_key=ready["key"], max_retries=40)
        model = patient.models.list().data[0].id

        def ask(client):
            return client.messages.create(model=model, max_tokens=100, messages=HELLO)

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            refused = []
            for future in [pool.submit(ask, impatient) for _ in range(12)]:
                try:
                    future.result()
                except anthropic.RateLimitError as error:
                    refused.append(error)
            assert refused, "twelve at once do not fit into one slot and a queue of one"
            assert all(float(error.response.headers["retry-after"]) > 0 for error in refused)
            answers = [f.result() for f in [pool.submit(ask, patient) for _ in range(8)]]
        assert all(a.usage.output_tokens > 0 for a in answers)
