// LangChain's integrations for Node against a server: @langchain/openai and @langchain/cohere.

import { CohereEmbeddings, CohereRerank } from "@langchain/cohere";
import { OpenAIEmbeddings } from "@langchain/openai";
import { CohereClient } from "cohere-ai";

import * as driving from "./driving.mjs";
import { base, DIMENSIONS, DOCUMENTS, FAILING, LONG, MODEL, QUERY, RERANKER, rightKey } from "./driving.mjs";
import { TEXTS, TOP_N, UNKNOWN, WRONG_KEY } from "./driving.mjs";

const openai = ({ model = MODEL, key = rightKey, ...more } = {}) =>
  new OpenAIEmbeddings({ model, apiKey: key, configuration: { baseURL: `${base}/v1` }, ...more });

// What both do: a text is embedded as a query, a list of them as documents.
const query = async (embeddings, text) => driving.vectors([await embeddings.embedQuery(text)]);
const documents = async (embeddings, texts) => driving.vectors(await embeddings.embedDocuments(texts));

await driving.drive("langchain-js-openai", driving.version("@langchain/openai"), {
  embedding: () => query(openai({ encodingFormat: "float" }), TEXTS[0]),
  batch: () => documents(openai({ encodingFormat: "float" }), TEXTS),
  base64: () => documents(openai(), TEXTS), // the SDK under it asks for it unless told otherwise, and decodes
  dimensions: () => documents(openai({ dimensions: DIMENSIONS }), TEXTS),
  "token-ids": "it sends texts only",
  roles: async () => {
    const asked = await openai({ model: `${MODEL}:query` }).embedQuery(QUERY);
    const told = await openai({ model: `${MODEL}:document` }).embedDocuments(DOCUMENTS);
    return driving.vectors([asked, ...told]);
  },
  rerank: "the package has no rerank",
  errors: () => query(openai({ model: UNKNOWN }), TEXTS[0]),
  retries: () => query(openai({ model: FAILING }), TEXTS[0]),
  "wrong-key": () => query(openai({ key: WRONG_KEY }), TEXTS[0]),
  "long-input": () => query(openai(), LONG),
});

// The address is taken from a ready-made client only.
const client = (key = rightKey) => new CohereClient({ environment: base, token: key });
const cohere = ({ model = MODEL, key, ...more } = {}) => new CohereEmbeddings({ model, client: client(key), ...more });

await driving.drive("langchain-js-cohere", driving.version("@langchain/cohere"), {
  embedding: () => query(cohere(), TEXTS[0]),
  batch: () => documents(cohere(), TEXTS),
  base64: "it reads floats only",
  dimensions: "it has no such option",
  "token-ids": "it sends texts only",
  roles: async () => driving.vectors([await cohere().embedQuery(QUERY), ...(await cohere().embedDocuments(DOCUMENTS))]),
  rerank: async () => {
    const ranked = await new CohereRerank({ model: RERANKER, client: client(), topN: TOP_N }).rerank(DOCUMENTS, QUERY);
    return driving.ranking(ranked.map((one) => [one.index, one.relevanceScore]));
  },
  errors: () => query(cohere({ model: UNKNOWN }), TEXTS[0]),
  retries: () => query(cohere({ model: FAILING }), TEXTS[0]),
  "wrong-key": () => query(cohere({ key: WRONG_KEY }), TEXTS[0]),
  "long-input": () => query(cohere(), LONG),
});
