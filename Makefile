# The way in for people. Each target is one script of scripts/, which says what it does and takes.
# Downloads, builds and the private server live in one cache folder outside this checkout:
# NER_RETRIEVER_CACHE, else /var/cache/ner_retriever (root), else ~/.cache/ner_retriever.

.PHONY: help demo test test-15 soak start stop restart psql engine-path engine-cuda eval report minilm train bench install uninstall build \
	fmt lint clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'Settings: PG_CONFIG=/path/to/pg_config (a server of your own), MODEL=none, CUDA=1, DESTDIR=, ARGS='

demo: start ## build, start the private server, ask it which texts mention a dinosaur
	@scripts/server.sh exec -- demo/demo.sh

test: ## run all tests, the last line counts them
	@scripts/test.sh

test-15: ## run the tests against a server on PostgreSQL 15, which scripts/postgres15.sh installs
	@scripts/test.sh 15

soak: ## run made-up histories of managed indexes; make soak ARGS='--hours 2' (--help for more)
	@scripts/soak.sh $(ARGS)

start: ## build, install and start the private server
	@scripts/install.sh install
	@scripts/server.sh start

stop: ## stop the private server
	@scripts/server.sh stop

restart: ## stop and start the private server
	@scripts/server.sh restart

psql: ## psql in the private server; make psql ARGS='-Atc "select 1"'
	@scripts/server.sh status >/dev/null 2>&1 || $(MAKE) --no-print-directory start >&2
	@scripts/server.sh psql -- $(ARGS)

engine-path: ## build the engine if needed and print its path
	@scripts/engine.sh path

engine-cuda: ## build the engine for NVIDIA GPUs (needs no GPU) and print its path; CUDA_HOME=, CUDA_ARCH=
	@scripts/engine_cuda.sh path

eval: ## score the default head; make eval ARGS='--corpus FILE --types NAMES.json --spans gold --json'
	@scripts/engine.sh eval $(ARGS)

report: ## write report.html with figures; make report ARGS='--corpus FILE --types NAMES.json'
	@scripts/report.sh write $(ARGS)

minilm: ## fetch all-MiniLM-L6-v2 (84 MB), the dense baseline of make report
	@scripts/report.sh minilm

train: ## train a head; make train ARGS=--help; a head's head.json names the command that made it
	@scripts/engine.sh train $(ARGS)

bench: ## measure the engine on this CPU beside torch and llama.cpp, an hour; make bench ARGS='--texts FILE'
	@bench/cpu/run.sh $(ARGS)

build: ## build extension and engine for the server of PG_CONFIG
	@scripts/install.sh build

install: ## build and install; make install PG_CONFIG=/path/to/pg_config for a server of your own, CUDA=1 with the GPU engine
	@scripts/install.sh install

uninstall: ## remove exactly what install put there
	@scripts/install.sh uninstall

fmt: ## format the code
	cargo fmt --all

lint: ## check formatting and run clippy
	@scripts/lint.sh

clean: ## remove private servers and build output, keep downloads
	@scripts/clean.sh

distclean: ## clean, and remove the downloads too
	@scripts/clean.sh all
