PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: venv demo test lint bench clean

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[sevennet,test]"
	touch $@

.venv/.interpreter: .venv/.installed
	$(BIN)/python -m pip install -c constraints.txt -e ".[interpreter]"
	touch $@

.venv/.linters: .venv/.installed
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/adlayer demo -o demo

test: .venv/.interpreter
	$(BIN)/pytest

lint: .venv/.linters
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	benchmarks/peers.sh
	export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1; status=0; for part in speed structure relaxation optimizer inference sevennet scaling demo_parts profile_sampling figure; do \
		$(BIN)/python benchmarks/$$part.py || status=1; \
	done; exit $$status

clean:
	rm -rf .venv build dist demo
