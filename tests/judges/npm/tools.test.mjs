import assert from "node:assert/strict";
import { test } from "node:test";

import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

import { ask, client } from "./client.mjs";

// What a model of this size calls, and with what, is up to the grammar that it is held to.
const Place = z.object({ city: z.enum(["Paris", "Madrid", "Rome"]), days: z.number().int().min(1).max(9) });
const Sum = z.object({ a: z.number().int().min(0).max(99), b: z.number().int().min(0).max(99) });
const weather = zodFunction({ name: "get_weather", description: "The weather in a city.", parameters: Place });
const add = zodFunction({ name: "add", description: "The sum of two numbers.", parameters: Sum });
const schemas = { get_weather: Place, add: Sum };
const named = (name) => ({ type: "function", function: { name } });
// A small model, left to itself, goes on calling until it has no room left.
const one = { parallel_tool_calls: false };
const calling = (fields) => ask({ tools: [weather, add], max_tokens: 200, ...fields });

function check(call, names = Object.keys(schemas)) {
  assert.equal(call.type, "function");
  assert.ok(call.id);
  assert.ok(names.includes(call.function.name), call.function.name);
  schemas[call.function.name].parse(JSON.parse(call.function.arguments));
}

test("tools are accepted, and an answer may call them or not", async () => {
  const answer = await client.chat.completions.create(calling());
  const [{ message, finish_reason }] = answer.choices;
  assert.ok(message.content || message.tool_calls.length > 0);
  if (message.tool_calls) assert.ok(["tool_calls", "length"].includes(finish_reason));
});

test("none is called where none may be", async () => {
  const [{ message }] = (await client.chat.completions.create(calling({ tool_choice: "none" }))).choices;
  assert.equal(message.tool_calls, undefined);
  assert.ok(message.content);
});

test("one must be called: required", async () => {
  for (const seed of [1, 2, 3]) {
    const body = calling({ tool_choice: "required", ...one, temperature: 1, seed });
    const [{ message, finish_reason }] = (await client.chat.completions.create(body)).choices;
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.tool_calls.length, 1);
    check(message.tool_calls[0]);
  }
});

test("one must be called: named", async () => {
  for (const name of Object.keys(schemas)) {
    const answer = await client.chat.completions.create(calling({ tool_choice: named(name) }));
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    check(answer.choices[0].message.tool_calls[0], [name]);
  }
});

test("one of those that are allowed must be called", async () => {
  const allowed_tools = { mode: "required", tools: [named("add")] };
  const answer = await client.chat.completions.create(
    calling({ tool_choice: { type: "allowed_tools", allowed_tools }, ...one }),
  );
  assert.equal(answer.choices[0].message.tool_calls.length, 1);
  check(answer.choices[0].message.tool_calls[0], ["add"]);
});

test("a call comes in pieces that add up", async () => {
  const body = calling({ tool_choice: named("get_weather") });
  const whole = (await client.chat.completions.create(body)).choices[0].message;
  const pieces = [];
  const stream = client.chat.completions
    .stream(body)
    .on("tool_calls.function.arguments.delta", (event) => pieces.push(event.arguments_delta));
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  assert.ok(["tool_calls", "stop"].includes(finish_reason));
  assert.equal(message.tool_calls.length, 1);
  assert.equal(message.tool_calls[0].function.arguments, whole.tool_calls[0].function.arguments);
  assert.equal(pieces.join(""), whole.tool_calls[0].function.arguments);
  assert.ok(pieces.length > 1);
});

const runnable = (called) =>
  zodFunction({
    name: "add",
    description: "The sum of two numbers.",
    parameters: Sum,
    function: ({ a, b }) => {
      called.push([a, b]);
      return String(a + b);
    },
  });

test("runTools calls a named function with what the model gives it", async () => {
  const called = [];
  const body = ask({ tools: [runnable(called)], tool_choice: named("add"), max_tokens: 200 });
  const runner = client.chat.completions.runTools(body);
  await runner.done();
  const [[a, b]] = called;
  assert.deepEqual([Sum.safeParse({ a, b }).success, called.length], [true, 1]);
  assert.equal(runner.messages.at(-1).role, "tool");
  assert.equal(runner.messages.at(-1).content, String(a + b));
});

test("runTools sends what the functions gave, and the model goes on", async () => {
  for (const stream of [false, true]) {
    const called = [];
    const body = ask({ tools: [runnable(called)], tool_choice: "required", ...one, max_tokens: 200, stream });
    const runner = client.chat.completions.runTools(body, { maxChatCompletions: 2 });
    await runner.done();
    assert.equal(called.length, 2);
    const roles = runner.messages.map((message) => message.role);
    assert.deepEqual(roles.filter((role) => role === "assistant").length, 2);
    assert.equal(roles.filter((role) => role === "tool").length, called.length);
  }
});

test("a conversation with calls and their answers is taken", async () => {
  const call = { id: "call_1", type: "function", function: { name: "add", arguments: '{"a": 1, "b": 2}' } };
  const messages = [
    ...ask().messages,
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "call_1", content: "3" },
  ];
  const answer = await client.chat.completions.create(calling({ messages, tool_choice: "none" }));
  assert.ok(answer.choices[0].message.content);
});
