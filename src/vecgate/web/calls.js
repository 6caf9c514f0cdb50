// The same call as other programs make it: exact, with this server's address and model, and never with the key itself.

const VARIABLE = "VECGATE_API_KEY";

const json = (value) => JSON.stringify(value, null, 2);
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const literal = (value) => JSON.stringify(value, null, 4); // of texts and lists of them Python reads the same
const python = (value) => literal(value).replaceAll("\n", "\n    "); // as an argument on a line of its own

function curl(call, path, body) {
  const bearer = call.keyed ? `  -H "Authorization: Bearer $${VARIABLE}" \\\n` : "";
  return `curl ${call.base}/${path} \\\n  -H 'Content-Type: application/json' \\\n${bearer}  -d ${quoted(json(body))}`;
}

// The lines of a Python program: its imports, with os where the key is read, then the rest.
function program(call, imports, rest) {
  const os = call.keyed ? "import os\n\n" : "";
  return `${os}${imports}\n\n${rest}`;
}

const secret = (call) => (call.keyed ? `os.environ["${VARIABLE}"]` : '"unused"');

const listed = (pairs) =>
  pairs
    .filter(Boolean)
    .map((pair) => `    ${pair},\n`)
    .join("");

// n8n takes nodes pasted on its canvas. The key is a credential's: since n8n 2 no node reads the environment unless told to.
function n8n(call, path, body) {
  const credential = call.keyed ? { authentication: "predefinedCredentialType", nodeCredentialType: "openAiApi" } : {};
  const parameters = { method: "POST", url: `${call.base}/${path}`, ...credential, sendBody: true, specifyBody: "json" };
  const node = {
    name: "vecgate",
    type: "n8n-nodes-base.httpRequest",
    typeVersion: 4.2,
    position: [0, 0],
    parameters: { ...parameters, jsonBody: JSON.stringify(body), options: {} },
  };
  return json({ nodes: [node], connections: {} });
}

const pasted = (call) =>
  call.keyed ? "Paste it on n8n's canvas, and choose there an OpenAI credential with the key." : "Paste it on n8n's canvas.";

// call: {base, keyed, model, role, dimensions (null: all), texts} -> [[name, how it is used, code]].
export function embedCalls(call) {
  const model = call.role ? `${call.model}:${call.role}` : call.model;
  const body = { model, input: call.texts, ...(call.dimensions ? { dimensions: call.dimensions } : {}) };
  const cut = call.dimensions ? `dimensions=${call.dimensions}` : null;
  const texts = python(call.texts);
  const openai = listed([`model=${json(model)}`, `input=${texts}`, cut]);
  const langchain = listed([
    `base_url="${call.base}/v1"`,
    `api_key=${secret(call)}`,
    `model=${json(model)}`,
    cut,
    "check_embedding_ctx_length=False",
  ]);
  const llama = listed([`model_name=${json(model)}`, `api_base="${call.base}/v1"`, `api_key=${secret(call)}`, cut]);
  return [
    ["curl", "", curl(call, "v1/embeddings", body)],
    [
      "OpenAI SDK",
      "pip install openai",
      program(
        call,
        "from openai import OpenAI",
        `client = OpenAI(base_url="${call.base}/v1", api_key=${secret(call)})\n` +
          `answer = client.embeddings.create(\n${openai})\nvectors = [row.embedding for row in answer.data]`,
      ),
    ],
    [
      "LangChain",
      "pip install langchain-openai",
      program(
        call,
        "from langchain_openai import OpenAIEmbeddings",
        `embeddings = OpenAIEmbeddings(\n${langchain})\nvectors = embeddings.embed_documents(${literal(call.texts)})`,
      ),
    ],
    [
      "LlamaIndex",
      "pip install llama-index-embeddings-openai-like",
      program(
        call,
        "from llama_index.embeddings.openai_like import OpenAILikeEmbedding",
        `embeddings = OpenAILikeEmbedding(\n${llama})\nvectors = embeddings.get_text_embedding_batch(${literal(call.texts)})`,
      ),
    ],
    ["n8n", `${pasted(call)} Its Embeddings OpenAI node takes the same base URL, with /v1.`, n8n(call, "v1/embeddings", body)],
  ];
}

// call: {base, keyed, model, query, documents, method}
export function rerankCalls(call) {
  const native = { query: call.query, passages: call.documents, method: call.method };
  const cohere = { model: call.model, query: call.query, documents: call.documents };
  const top = `top_n=${call.documents.length}`;
  const documents = literal(call.documents);
  const langchain = listed([`base_url="${call.base}"`, `cohere_api_key=${secret(call)}`, `model=${json(call.model)}`, top]);
  const llama = listed([`base_url="${call.base}"`, `api_key=${secret(call)}`, `model=${json(call.model)}`, top]);
  return [
    ["curl", "", curl(call, "api/v1/rerank", native)],
    [
      "OpenAI SDK",
      "pip install openai. It has no rerank of its own, so this is its plain post.",
      program(
        call,
        "from openai import OpenAI",
        `client = OpenAI(base_url="${call.base}/v1", api_key=${secret(call)})\n` +
          `answer = client.post(\n    "/rerank",\n    cast_to=object,\n    body=${python(cohere)},\n)\n` +
          `order = [one["index"] for one in answer["results"]]`,
      ),
    ],
    [
      "LangChain",
      "pip install langchain-cohere",
      program(
        call,
        "from langchain_cohere import CohereRerank",
        `rerank = CohereRerank(\n${langchain})\n` +
          `order = [one["index"] for one in rerank.rerank(${documents}, ${json(call.query)})]`,
      ),
    ],
    [
      "LlamaIndex",
      "pip install llama-index-postprocessor-cohere-rerank",
      program(
        call,
        "from llama_index.core.schema import NodeWithScore, TextNode\n" +
          "from llama_index.postprocessor.cohere_rerank import CohereRerank",
        `rerank = CohereRerank(\n${llama})\ntexts = ${documents}\n` +
          "nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]\n" +
          `ranked = rerank.postprocess_nodes(nodes, query_str=${json(call.query)})`,
      ),
    ],
    ["n8n", `${pasted(call)} Its Cohere nodes have a fixed host.`, n8n(call, "v2/rerank", cohere)],
  ];
}
