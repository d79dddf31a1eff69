import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { ask, client } from "./client.mjs";

test("a stream adds up to the answer", async () => {
  const whole = await client.chat.completions.create(ask());
  const stream = await client.chat.completions.create(ask({ stream: true, stream_options: { include_usage: true } }));
  let [text, finish, usage] = ["", null, null];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the streaming helper tells of content as it comes, and of the whole", async () => {
  const whole = await client.chat.completions.create(ask({ logprobs: true }));
  const deltas = [];
  const stream = client.chat.completions
    .stream(ask({ logprobs: true, stream_options: { include_usage: true } }))
    .on("content", (delta) => deltas.push(delta));
  const final = await stream.finalChatCompletion();
  assert.ok(deltas.length > 1);
  assert.equal(deltas.join(""), whole.choices[0].message.content);
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.deepEqual(final.choices[0].logprobs.content, whole.choices[0].logprobs.content);
  assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);
});

const long = { max_tokens: 2000, ignore_eos: true };

test("a client that breaks off a stream is done with it", async () => {
  const stream = await client.chat.completions.create(ask({ stream: true, ...long }));
  let chunks = 0;
  for await (const _ of stream) if (++chunks === 3) break;
  assert.equal(chunks, 3);
  assert.ok(stream.controller.signal.aborted);
  assert.ok((await client.chat.completions.create(ask())).choices[0].message.content);
});

test("an abort ends a stream, and an answer that is waited for", async () => {
  const stream = client.chat.completions.stream(ask(long));
  stream.on("content", () => stream.abort());
  await assert.rejects(stream.finalChatCompletion(), OpenAI.APIUserAbortError);
  const controller = new AbortController();
  const answer = client.chat.completions.create(ask(long), { signal: controller.signal });
  setTimeout(() => controller.abort(), 50);
  await assert.rejects(answer, OpenAI.APIUserAbortError);
  assert.ok((await client.chat.completions.create(ask())).choices[0].message.content);
});
