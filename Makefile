# Everything a fresh machine needs is Python 3.11 or newer, make and a package index.
WINDOWS := $(filter Windows_NT,$(OS))
PYTHON ?= $(if $(WINDOWS),python,python3)
BIN := .venv/$(if $(WINDOWS),Scripts,bin)
INSTALLED := .venv/.installed
# The apps need a part of that: enough until more is installed.
RUNNABLE := $(or $(wildcard $(INSTALLED)),.venv/.runnable)
WITH_SITE := .venv/.with_site
TIMEOUT := $(if $(WINDOWS),,$(shell command -v timeout))
# With uv if it is found, else with pip: `make UV=` takes pip.
INSTALL := $(BIN)/python deploy/install.py
# Notebooks, results and settings are UTF-8, whatever the machine's own encoding.
export PYTHONUTF8 := 1

.PHONY: help compare compare-full compare-cluster compare-swaps sabotage simulate test test-more bench-engines bench-backend bench-pages images lab monolith microservices cluster react outputs site clean

help:  ## list what make can do
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

compare: $(INSTALLED)  ## judge the claims on this machine in eight minutes, write results/report.html
	$(BIN)/chatbot-compare

compare-full: $(INSTALLED)  ## judge all claims, in 45 minutes; write README.md and docs/claims.md, too
	$(BIN)/chatbot-compare --full --publish .

compare-cluster: $(INSTALLED)  ## judge the claims about replicas on Ray Serve, write docs/cluster.md, too
	$(INSTALL) dev,ray
	$(BIN)/chatbot-compare --cluster --publish .

compare-swaps: $(INSTALLED)  ## judge the claims about swapped parts (needs Node), write docs/swaps.md, too
	$(BIN)/chatbot-fetch
	$(BIN)/chatbot-compare --swaps --publish .

sabotage: $(INSTALLED)  ## break the code on purpose, see which claims notice, write results/sabotage.json
	$(BIN)/chatbot-sabotage

simulate: $(INSTALLED)  ## measure what a simulation was not fitted on, write results/simulation.json
	$(BIN)/chatbot-simulate

# Processes compute at once; torch's threads would otherwise wait by keeping a core busy.
test: export OMP_WAIT_POLICY = PASSIVE
test: $(INSTALLED)  ## everything that CI runs
	$(BIN)/python tests/check_sync.py
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/compose-lint check --quiet deploy/compose.yaml
	$(BIN)/python tests/browser.py
	$(BIN)/chatbot-fetch
	CHATBOT_ENGINE=llamacpp $(BIN)/chatbot-fetch
	$(if $(TIMEOUT),timeout 1200) $(BIN)/nbdev_test --skip_file_re '^07_' --n_workers 4
	$(BIN)/pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=15

test-more: $(INSTALLED)  ## what needs a package index or other programs, write results/test-more.json
	-$(INSTALL) dev,bench,containers,ray,site
	$(BIN)/python tests/more.py

bench-engines: $(INSTALLED)  ## compare our backend with other servers, write results/engines.* and docs/engines.md
	$(INSTALL) dev,bench
	$(BIN)/chatbot-bench-engines --publish .

bench-backend: $(INSTALLED)  ## measure the backend under load, write results/backend.json
	$(BIN)/chatbot-fetch
	$(BIN)/chatbot-bench-backend

bench-pages: $(INSTALLED)  ## measure many pages at once, write results/pages.json
	$(BIN)/chatbot-bench-pages

images: $(INSTALLED)  ## build the container images with docker or podman, start each once, write results/images.json
	$(BIN)/chatbot-images $(IMAGES_OPTIONS)

# With defaults of its own: live pages stay attached when they are scrolled out of view.
lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/.jupyter$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH))
# On GitHub Codespaces, the browser's host name is not that which JupyterLab sees.
LAB_ORIGIN := https://$(CODESPACE_NAME)-8888.$(or $(GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN),app.github.dev)
lab: $(INSTALLED)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir='$(CURDIR)' $(if $(filter 0,$(shell id -u)),--allow-root) $(if $(CODESPACE_NAME),--no-browser --ServerApp.allow_origin='$(LAB_ORIGIN)') $(LAB_OPTIONS) nbs/index.ipynb

monolith: $(RUNNABLE)  ## run the monolith until Ctrl-C
	$(BIN)/chatbot-fetch
	$(BIN)/chatbot-launch monolith

microservices: $(RUNNABLE)  ## run backend and front end until Ctrl-C
	$(BIN)/chatbot-fetch
	$(BIN)/chatbot-launch microservices

cluster: $(INSTALLED)  ## run replicas of the backend on Ray Serve until Ctrl-C
	$(INSTALL) dev,ray
	$(BIN)/chatbot-fetch
	$(BIN)/chatbot-cluster

# Its types come from the backend in this checkout, so a change of the contract ends here in an error.
REACT ?= swaps/react
react: $(INSTALLED)  ## build the page in React, for the backend at VITE_BACKEND_URL, into swaps/react/dist
	@command -v npm > /dev/null || { echo 'make react needs npm, which comes with Node. Install Node 20.19 or newer, then try again.'; exit 1; }
	cd $(REACT) && npm ci
	$(BIN)/python -c 'import json, chatbot_arch.backend as b; print(json.dumps(b.app.openapi()))' | node $(REACT)/contract.mjs
	cd $(REACT) && npm run build

outputs: $(INSTALLED)  ## run all notebooks and keep their outputs, export, clean
	find nbs -name '*.ipynb' -not -path '*/.*' -exec $(BIN)/jupyter execute --inplace --timeout=900 {} +
	cd nbs && ../$(BIN)/nbdev_export && ../$(BIN)/nbdev_clean

site: $(WITH_SITE)  ## write the notebooks, the report and the docs as web pages to site/
	rm -rf build/site site
	$(BIN)/sphinx-build -c docs/site -d build/site/read --quiet --fail-on-warning --keep-going -j auto . build/site/pages
	mv build/site/pages site

clean:  ## remove the virtual environment and what tools left; keep the fetched model
	rm -rf swaps/*/node_modules swaps/react/dist
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info build/site site nbs/.last_checked
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(INSTALLED): PARTS = dev
.venv/.runnable: PARTS = apps
$(INSTALLED) .venv/.runnable: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) deploy/install.py $(PARTS)
	@touch $@

$(WITH_SITE): $(INSTALLED)
	$(INSTALL) dev,site
	@touch $@
