import assert from "node:assert/strict";
import { test } from "node:test";

import { MODEL, ask, client } from "./client.mjs";

test("an answer has its message, its end and its cost", async () => {
  const answer = await client.chat.completions.create(ask());
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.model, MODEL);
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content.length > 0);
  assert.ok(["stop", "length"].includes(choice.finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test("several choices, with log probabilities", async () => {
  const answer = await client.chat.completions.create(
    ask({ n: 3, temperature: 1, seed: 7, logprobs: true, top_logprobs: 2 }),
  );
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  for (const { logprobs, message } of answer.choices) {
    assert.ok(logprobs.content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
    const bytes = Uint8Array.from(logprobs.content.flatMap((token) => token.bytes ?? []));
    assert.ok(new TextDecoder().decode(bytes).startsWith(message.content));
  }
});

test("a conversation goes on with what was answered", async () => {
  const { message } = (await client.chat.completions.create(ask())).choices[0];
  const messages = [...ask().messages, message, { role: "user", content: "And of Spain?" }];
  assert.ok((await client.chat.completions.create(ask({ messages }))).choices[0].message.content);
});

test("text completions", async () => {
  const answer = await client.completions.create({ model: MODEL, prompt: ["One, two,", "A, B,"], max_tokens: 4 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  let text = "";
  const body = { model: MODEL, prompt: "One, two,", max_tokens: 4, temperature: 0 };
  for await (const chunk of await client.completions.create({ ...body, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, (await client.completions.create(body)).choices[0].text);
});

test("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});
