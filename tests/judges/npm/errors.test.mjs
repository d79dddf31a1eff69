import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { ask, client } from "./client.mjs";

const cases = [
  ["a value out of bounds", { temperature: 3 }, OpenAI.BadRequestError, 400, "temperature"],
  ["an unknown field", { tempreature: 1 }, OpenAI.BadRequestError, 400, "tempreature"],
  ["a field that is not honoured", { store: true }, OpenAI.BadRequestError, 400, "store"],
  ["no messages", { messages: [] }, OpenAI.BadRequestError, 400, "messages"],
  ["more than the context holds", { max_tokens: 1e6 }, OpenAI.BadRequestError, 400, "messages"],
  ["another model", { model: "gpt-nothing" }, OpenAI.NotFoundError, 404, "model"],
];
for (const stream of [false, true]) {
  for (const [name, fields, kind, status, param] of cases) {
    test(`${name}${stream ? ", streamed" : ""}`, async () => {
      const error = await client.chat.completions.create(ask({ ...fields, stream })).then(assert.fail, (e) => e);
      assert.ok(error instanceof kind, String(error));
      assert.deepEqual([error.status, error.param, error.type], [status, param, "invalid_request_error"]);
      assert.ok(error.requestID);
    });
  }
}

test("a picture is refused: this model takes text", async () => {
  const part = { type: "image_url", image_url: { url: "data:image/png;base64,AA==" } };
  const messages = [{ role: "user", content: [part] }];
  await assert.rejects(client.chat.completions.create(ask({ messages })), {
    status: 400,
    param: "messages[0].content[0].type",
    message: /takes text/,
  });
});

test("a wrong key", async () => {
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "sk-wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("a model that is not there", async () => {
  await assert.rejects(client.models.retrieve("gpt-nothing"), OpenAI.NotFoundError);
});
