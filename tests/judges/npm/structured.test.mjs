import assert from "node:assert/strict";
import { test } from "node:test";

import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { ask, client } from "./client.mjs";

// Bounded, so that a small model comes to an end.
const City = z.object({
  name: z.string().max(20),
  country: z.enum(["France", "Spain", "Italy"]),
  population: z.number().int().min(0).max(99999),
  mayor: z.object({ name: z.string().max(20) }).nullable(),
  rivers: z.array(z.string().max(12)).max(2),
});
const format = zodResponseFormat(City, "city");

test("parse gives an object that keeps to the schema", async () => {
  for (const seed of [1, 2, 3]) {
    const answer = await client.chat.completions.parse(
      ask({ response_format: format, max_tokens: 400, temperature: 1, seed }),
    );
    assert.equal(answer.choices[0].finish_reason, "stop");
    City.parse(answer.choices[0].message.parsed);
  }
});

test("the streaming helper parses, too", async () => {
  const stream = client.chat.completions.stream(ask({ response_format: format, max_tokens: 400 }));
  const parsed = (await stream.finalChatCompletion()).choices[0].message.parsed;
  City.parse(parsed);
  const whole = await client.chat.completions.parse(ask({ response_format: format, max_tokens: 400 }));
  assert.deepEqual(parsed, whole.choices[0].message.parsed);
});

test("a JSON object", async () => {
  const body = ask({ response_format: { type: "json_object" }, max_tokens: 400, temperature: 1, n: 4, seed: 1 });
  for (const { message, finish_reason } of (await client.chat.completions.create(body)).choices) {
    assert.ok(message.content.startsWith("{"));
    if (finish_reason === "stop") JSON.parse(message.content);
  }
});

test("a schema that cannot be kept is refused by the path of its word", async () => {
  const schema = { type: "object", properties: { a: { not: {} } } };
  const response_format = { type: "json_schema", json_schema: { name: "no", schema, strict: true } };
  await assert.rejects(client.chat.completions.create(ask({ response_format })), {
    status: 400,
    param: "response_format.json_schema.schema.properties.a.not",
  });
});
