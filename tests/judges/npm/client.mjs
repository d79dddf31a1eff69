// The package, pointed at the server that ../test_openai_npm.py has started.
import OpenAI from "openai";

export const KEY = process.env.UPWELL_TEST_KEY;
export const MODEL = process.env.UPWELL_TEST_MODEL;

export const client = new OpenAI({ baseURL: process.env.UPWELL_TEST_URL, apiKey: KEY, maxRetries: 0 });
export const question = [{ role: "user", content: "What is the capital of France?" }];

// A body with what all tests want: short answers, the same each time.
export const ask = (fields = {}) => ({ model: MODEL, messages: question, max_tokens: 16, temperature: 0, ...fields });
