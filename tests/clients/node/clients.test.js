// The official Node clients against a running fleet: `PHALANX_URL` and `PHALANX_KEY` say where it is.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.env.PHALANX_URL;
const key = process.env.PHALANX_KEY;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const claude = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello! Who are you?" }];
const model = (await openai.models.list()).data[0].id;
const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};

test("a chat answers, and a stream gives the same text", async () => {
  const asked = { model, messages, max_tokens: 48, temperature: 0 };
  const whole = await openai.chat.completions.create(asked);
  let text = "";
  for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.match(text, /Phalanx/);
});

test("a tool is called as asked", async () => {
  const tools = [{ type: "function", function: { name: "look_up", parameters: schema, strict: true } }];
  const answer = await openai.chat.completions.create({
    model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200,
  });
  const call = answer.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "look_up");
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["age", "name"]);
});

test("an answer fits its schema", async () => {
  const form = { type: "json_schema", json_schema: { name: "person", schema, strict: true } };
  const answer = await openai.chat.completions.create({ model, messages, response_format: form, max_tokens: 200 });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ["age", "name"]);
});

test("a response streams its events and is kept", async () => {
  const stream = openai.responses.stream({ model, input: "Hello!", temperature: 0, max_output_tokens: 32 });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  const final = await stream.finalResponse();
  assert.equal(kinds[0], "response.created");
  assert.equal((await openai.responses.retrieve(final.id)).output_text, final.output_text);
});

test("a stream that is aborted ends", async () => {
  const aborting = new AbortController();
  const asked = { model, messages, max_tokens: 7000, stream: true, ignore_eos: true };
  const stream = await openai.chat.completions.create(asked, { signal: aborting.signal });
  let pieces = 0;
  for await (const _ of stream) if (++pieces === 3) aborting.abort();
  assert.ok(pieces < 7000);
});

test("errors are typed", async () => {
  await assert.rejects(
    openai.chat.completions.create({ model: "no-such-model", messages }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
  );
  await assert.rejects(
    claude.messages.create({ model: "no-such-model", max_tokens: 4, messages }),
    (error) => error instanceof Anthropic.NotFoundError && /no-such-model/.test(error.message),
  );
});

test("a message answers, streams and calls tools", async () => {
  const asked = { model, messages, max_tokens: 200 };
  const whole = await claude.messages.create(asked);
  assert.equal(whole.type, "message");
  const stream = claude.messages.stream({
    ...asked,
    tools: [{ name: "look_up", input_schema: schema }],
    tool_choice: { type: "any", disable_parallel_tool_use: true },
  });
  const final = await stream.finalMessage();
  assert.equal(final.stop_reason, "tool_use");
  assert.deepEqual(Object.keys(final.content.at(-1).input).sort(), ["age", "name"]);
  const counted = await claude.messages.countTokens({ model, messages });
  assert.ok(counted.input_tokens > 0);
});

test("a message that is aborted ends", async () => {
  const stream = claude.messages.stream({ model, messages, max_tokens: 7000 });
  let pieces = 0;
  stream.on("text", () => {
    if (++pieces === 3) stream.abort();
  });
  await stream.done().catch((error) => assert.ok(error instanceof Anthropic.APIUserAbortError));
  assert.ok(pieces < 7000);
});

test("a fleet that is full says so, and the clients' own retries get through", async () => {
  const [url, apiKey] = [process.env.PHALANX_TIGHT_URL, process.env.PHALANX_TIGHT_KEY];
  const asked = { model, messages, max_tokens: 60 };
  const clients = (maxRetries) => {
    const one = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries });
    const other = new Anthropic({ baseURL: url, apiKey, maxRetries });
    return [() => one.chat.completions.create({ ...asked, ignore_eos: true }), () => other.messages.create(asked)];
  };
  const [ask, tell] = clients(0);
  const refused = (await Promise.allSettled([ask(), ask(), ask(), ask(), ask(), tell(), tell(), tell()]))
    .filter((one) => one.status === "rejected")
    .map((one) => one.reason);
  assert.ok(refused.length > 0 && refused.every((error) => error.status === 429));
  const [askAgain, tellAgain] = clients(40);
  const answers = await Promise.all([askAgain(), askAgain(), askAgain(), tellAgain(), tellAgain(), tellAgain()]);
  assert.equal(answers.length, 6);
});
