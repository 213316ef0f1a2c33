"""The official `openai` client's Responses API against a running fleet."""

import json
import threading

import openai
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "look_up", "description": "Looks a word up", "parameters": SCHEMA, "strict": True}


def test_a_response_answers_and_is_kept(client, model):
    made = client.responses.create(
        model=model,
        input="Hello! Who are you?",
        instructions="Be friendly.",
        temperature=0,
        max_output_tokens=64,
        metadata={"a": "b"},
    )
    assert made.status == "completed" and made.output_text
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.metadata == {"a": "b"} and made.instructions == "Be friendly."
    kept = client.responses.retrieve(made.id)
    assert kept.output_text == made.output_text and kept.model == model
    items = client.responses.input_items.list(made.id).data
    assert [item.content[0].text for item in items] == ["Hello! Who are you?"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_stream_has_the_real_events_in_order_and_can_be_read_again_from_any(client, model):
    with client.responses.stream(model=model, input="Hello! Who are you?", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 2 and "".join(deltas) == final.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    again = list(client.responses.retrieve(final.id, stream=True, starting_after=5))
    assert [event.sequence_number for event in again] == list(range(6, len(events)))
    assert again[-1].response.output_text == final.output_text


def test_a_conversation_goes_on_from_a_response(client, model):
    first = client.responses.create(model=model, input="Hello!", temperature=0, max_output_tokens=32)
    second = client.responses.create(
        model=model,
        input=[{"role": "user", "content": "Who are you?"}],
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=32,
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model=model, input="x", previous_response_id="resp_none")
    assert error.value.code == "previous_response_not_found"


def test_what_is_not_to_be_kept_is_not(client, model):
    made = client.responses.create(model=model, input="Hello!", store=False, max_output_tokens=4)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_an_answer_that_is_cut_says_so(client, model):
    made = client.responses.create(
        model=model, input="Tell me a story.", max_output_tokens=3, extra_body={"ignore_eos": True}
    )
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"


def test_one_in_the_background_goes_on_alone_and_can_be_cancelled(client, model):
    made = client.responses.create(
        model=model,
        input="Tell me a story.",
        background=True,
        max_output_tokens=7000,
        extra_body={"ignore_eos": True},
    )
    assert made.status in ("queued", "in_progress")
    ended = client.responses.cancel(made.id)
    assert ended.status == "cancelled"
    short = client.responses.create(
        model=model, input="Hello!", background=True, max_output_tokens=8, extra_body={"ignore_eos": True}
    )
    last = list(client.responses.retrieve(short.id, stream=True))[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert client.responses.retrieve(short.id).usage.output_tokens == 8


def test_tools_are_called_as_asked_and_their_results_taken(client, model):
    made = client.responses.create(
        model=model, input="Look up a name.", tools=[TOOL], tool_choice="required", max_output_tokens=200
    )
    calls = [item for item in made.output if item.type == "function_call"]
    assert calls and calls[0].name == "look_up"
    assert set(json.loads(calls[0].arguments)) == {"name", "age"}
    turns = [{"role": "user", "content": "Look up a name."}, *made.output]
    turns += [{"type": "function_call_output", "call_id": call.call_id, "output": "found"} for call in calls]
    again = client.responses.create(model=model, input=turns, tools=[TOOL], tool_choice="none", max_output_tokens=8)
    assert again.usage.output_tokens > 0
    with client.responses.stream(
        model=model, input="Look up a name.", tools=[TOOL], tool_choice="required", max_output_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds


def test_an_answer_fits_its_schema(client, model):
    made = client.responses.create(
        model=model,
        input="A person, please.",
        text={"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}},
        max_output_tokens=200,
    )
    assert set(json.loads(made.output_text)) == {"name", "age"}


def test_a_reader_that_goes_ends_the_work(client, model):
    stream = client.responses.create(
        model=model,
        input="Tell me a story.",
        stream=True,
        max_output_tokens=7000,
        extra_body={"ignore_eos": True},
    )
    created = next(iter(stream))
    stream.close()
    waited = threading.Event()
    for _ in range(400):
        if client.responses.retrieve(created.response.id).status == "cancelled":
            break
        waited.wait(0.05)
    else:
        raise AssertionError("it went on without its reader")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "background"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
    ],
)
def test_a_bad_parameter_is_named(client, model, change, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**{"model": model, "input": "Hello!", **change})
    assert error.value.param == param
