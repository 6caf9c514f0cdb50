// The SDKs for Node against a server: openai, and cohere-ai's clients of both versions of its API.

import { CohereClient, CohereClientV2 } from "cohere-ai";
import OpenAI from "openai";

import * as driving from "./driving.mjs";
import { base, DIMENSIONS, DOCUMENTS, FAILING, LONG, MODEL, QUERY, RERANKER, rightKey } from "./driving.mjs";
import { TEXTS, TOKEN_IDS, TOP_N, UNKNOWN, WRONG_KEY } from "./driving.mjs";

const ask = (input, { model = MODEL, key = rightKey, ...more } = {}) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: key }).embeddings.create({ model, input, ...more });

const rows = (answer) => answer.data.map((one) => one.embedding);

const openai = async (...asked) => {
  const answer = await ask(...asked);
  return driving.vectors(rows(answer), answer.usage.prompt_tokens);
};

await driving.drive("openai-node", driving.version("openai"), {
  embedding: () => openai(TEXTS[0], { encoding_format: "float" }),
  batch: () => openai(TEXTS, { encoding_format: "float" }),
  base64: () => openai(TEXTS), // the SDK asks for it unless told otherwise, and decodes
  dimensions: () => openai(TEXTS, { dimensions: DIMENSIONS }),
  "token-ids": () => openai([TOKEN_IDS]),
  roles: async () => {
    const query = await ask(QUERY, { model: `${MODEL}:query`, encoding_format: "float" });
    const documents = await ask(DOCUMENTS, { model: `${MODEL}:document`, encoding_format: "float" });
    return driving.vectors([...rows(query), ...rows(documents)]);
  },
  rerank: "the SDK has no rerank",
  errors: () => openai(TEXTS[0], { model: UNKNOWN }),
  retries: () => openai(TEXTS[0], { model: FAILING }),
  "wrong-key": () => openai(TEXTS[0], { key: WRONG_KEY }),
  "long-input": () => openai(LONG),
});

const floats = (text) => {
  const bytes = Uint8Array.from(Buffer.from(text, "base64"));
  return new Float32Array(bytes.buffer);
};

const billed = (answer) => answer.meta?.billedUnits?.inputTokens;

// What both of cohere-ai's clients do, given what they differ in: how texts are asked for, and how rows are read.
const cohere = (Client, embed, rows) => {
  const client = (key = rightKey) => new Client({ environment: base, token: key });
  const embedded = async (texts, { key, ...more } = {}) => {
    const answer = await embed(client(key), { model: MODEL, texts, inputType: "search_document", ...more });
    return driving.vectors(rows(answer), billed(answer));
  };
  return {
    embedding: () => embedded([TEXTS[0]]),
    batch: () => embedded(TEXTS),
    base64: async () => {
      const asked = { model: MODEL, texts: TEXTS, inputType: "search_document", embeddingTypes: ["base64"] };
      const answer = await client().embed(asked);
      return driving.vectors(answer.embeddings.base64.map(floats), billed(answer));
    },
    "token-ids": "the SDK takes texts only",
    roles: async () => {
      const query = await embed(client(), { model: MODEL, texts: [QUERY], inputType: "search_query" });
      const documents = await embed(client(), { model: MODEL, texts: DOCUMENTS, inputType: "search_document" });
      return driving.vectors([...rows(query), ...rows(documents)]);
    },
    rerank: async () => {
      const asked = { model: RERANKER, query: QUERY, documents: DOCUMENTS, topN: TOP_N };
      const { results } = await client().rerank(asked);
      return driving.ranking(results.map((one) => [one.index, one.relevanceScore]));
    },
    errors: () => embedded([TEXTS[0]], { model: UNKNOWN }),
    retries: () => embedded([TEXTS[0]], { model: FAILING }),
    "wrong-key": () => embedded([TEXTS[0]], { key: WRONG_KEY }),
    "long-input": () => embedded([LONG]),
    dimensions: () => embedded(TEXTS, { outputDimension: DIMENSIONS }),
  };
};

await driving.drive("cohere-node-v1", driving.version("cohere-ai"), {
  ...cohere(CohereClient, (client, asked) => client.embed(asked), (answer) => answer.embeddings),
  dimensions: "the API's first version has none",
});

await driving.drive("cohere-node-v2", driving.version("cohere-ai"), {
  ...cohere(
    CohereClientV2,
    (client, asked) => client.embed({ ...asked, embeddingTypes: ["float"] }),
    (answer) => answer.embeddings.float,
  ),
});
