"""What `--help` says besides the flags: each command's examples, which are the part that is read."""

from __future__ import annotations

ABOUT = "An OpenAI-compatible server for embeddings and reranking with local models."
EXAMPLES = {
    "": """\
examples:
  vecgate serve                               serve the default model on http://127.0.0.1:9000
  vecgate embed "What is RAG?"                one vector, without a server
  vecgate embed docs.jsonl -o docs.npy        a file of any length; Ctrl-C and run again to go on
  vecgate rerank "what barks?" "a cat" "a dog"
  vecgate models                              what is on this machine

`vecgate COMMAND --help` has the flags and more examples.""",
    "serve": """\
examples:
  vecgate serve
  vecgate serve --model BAAI/bge-small-en-v1.5 --port 9001
  vecgate serve --reranker cross-encoder/ms-marco-MiniLM-L6-v2           beside the default model
  vecgate serve --model none --reranker cross-encoder/ms-marco-MiniLM-L6-v2   a reranker alone""",
    "embed": """\
TEXT is a text; one that ends in .jsonl, .ndjson or .txt is a file, - is standard input. In a .jsonl file each line is an
object with a text and maybe an id; any other input is one text a line.

Each vector comes out as {"id": ..., "embedding": [...]}, as an item of one list (json) or on its own line (jsonl), in the
order of the input; the id is the input's own, else its number from 0. An .npy file holds the rows alone, and the ids of a
.jsonl input stand beside it in OUT.ids.jsonl.

A file is read and written piece by piece, in the same memory whatever its length. A run that is broken off leaves what it
has in OUT, and OUT.state.json, by which the same command goes on.

examples:
  vecgate embed "What is RAG?" "What is a reranker?"
  vecgate embed docs.jsonl -o docs.npy --text-field body --id-field key
  vecgate embed docs.jsonl -o docs.jsonl.out --format jsonl --role document
  cut -f 2 table.tsv | vecgate embed - -o vectors.npy
  vecgate embed docs.jsonl -o docs.npy --url http://127.0.0.1:9000   by a server, which may be busy""",
    "rerank": """\
DOC is a text; one that ends in .jsonl, .ndjson or .txt is a file, - is standard input, one document a line. The score is
from 0 to 1: the reranker's (--reranker), else (1 + cosine) / 2 of the embedding model.

examples:
  vecgate rerank "what barks?" "a cat" "a dog" "a tree"
  vecgate rerank "what barks?" animals.txt --top-n 3 --reranker cross-encoder/ms-marco-MiniLM-L6-v2
  grep -h . notes/*.txt | vecgate rerank "tax return" - --top-n 5 --json
  vecgate rerank "what barks?" animals.txt --url http://127.0.0.1:9000 --method cross-encoder""",
    "models": """\
examples:
  vecgate models                              what is here, its size, and which backend serves it
  vecgate models fetch BAAI/bge-small-en-v1.5@main
  vecgate models fetch cl100k                 OpenAI's token table, for clients that send its token ids
  vecgate models remove BAAI/bge-small-en-v1.5""",
    "verify": """\
Each model is loaded as serve would load it, and its rows are compared: alone and in batches, in other orders, among calls at
once, with sentence-transformers (pip install 'vecgate[verify]') or else the other backend, and with rows known of its
weights. What could not be checked is listed. The exit status is 1 where a check failed. docs/verify.md says what each means.

examples:
  vecgate verify                              what serve would serve
  vecgate verify --model minilm --model BAAI/bge-small-en-v1.5 --json
  vecgate verify --model ./my-model --record my-model.json       rows to compare with later, or elsewhere
  vecgate verify --model ./my-model --golden my-model.json
  vecgate verify --model mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ --against Qwen/Qwen3-Embedding-0.6B""",
    "bench": """\
Any server with OpenAI's embeddings or Cohere's rerank can be measured. Two are measured in turns, window by window, and
compared round by round. Every answer is checked: rows, order, length, finite numbers, the same row for the same text. The
exit status is 1 where a request failed or an answer was wrong. docs/performance.md says what each figure means.

examples:
  vecgate bench http://127.0.0.1:9000
  vecgate bench http://127.0.0.1:9000 http://127.0.0.1:9001 --mix mixed --concurrency 64 --rounds 5
  vecgate bench http://127.0.0.1:9000 --mix queries --rate 50,100       requests that come when they come
  vecgate bench http://127.0.0.1:9000 --raw --model minilm             beside the model without HTTP, and the ceilings
  vecgate bench http://127.0.0.1:9000 --mix none --bulk --bulk-calls 32,256,2048 --html bulk.html
  vecgate bench http://127.0.0.1:9000 --mix none --sweep all --html sweeps.html --json sweeps.json""",
    "doctor": """\
Looks at Python and its packages, MLX and Metal, CUDA and MPS, the models and the memory for them, the hub, the cache, the limit
of open files, the port, the keys. Loads no model. The exit status is 1 where something keeps vecgate from serving.

examples:
  vecgate doctor
  vecgate doctor --model BAAI/bge-m3 --port 9001
  vecgate doctor --json""",
    "connect": """\
Sets Open WebUI's embedding engine, and where the gateway has a reranker its external one with hybrid search, through its
interface for administrators; shows each setting before and after, and reads them back. docs/clients/open-webui.md has more.

examples:
  vecgate connect open-webui --url http://127.0.0.1:3000 --token sk-...
  cat token | vecgate connect open-webui --url http://127.0.0.1:3000 --token - --dry-run
  vecgate connect open-webui --url http://127.0.0.1:3000 --token sk-... --seen-as http://host.docker.internal:9000""",
    "deploy": """\
Prints a file that is meant to be read and changed: what it needs, and what of it was not tried, stands at its beginning.

examples:
  vecgate deploy                              what there is
  vecgate deploy container > Containerfile
  vecgate deploy kubernetes -o deployment/    under its usual name; never over a file that is there""",
    "service": """\
`install` starts `vecgate serve` now, at every login, and again where it failed: as an agent of launchd on macOS, as a unit of
your own systemd on Linux. Flags are those of serve; other variables belong into ~/.config/vecgate/env, which stays when the
service goes. `status` has the exit status 0 when the server is ready. docs/service.md has more.

examples:
  vecgate service install --dry-run
  vecgate service install --port 9001 --model BAAI/bge-small-en-v1.5
  vecgate service status
  vecgate service logs --follow
  vecgate service uninstall""",
    "completion": """\
examples:
  vecgate completion bash > ~/.local/share/bash-completion/completions/vecgate
  vecgate completion zsh > "${fpath[1]}/_vecgate"
  vecgate completion fish > ~/.config/fish/completions/vecgate.fish""",
}
