# `just` lists these; each is also one plain command.

_default:
    @just --list

# The whole loop on the bundled base and sample trade
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# All tests
test:
    cargo test --workspace

# What must pass before a change is merged
ci:
    .ci/run

# Format the sources in place
fmt:
    cargo fmt --all

# House rules: imports, unsafe, family names
tidy:
    cargo run -p xtask -- tidy

# Licences and known vulnerabilities (needs cargo-deny)
deny:
    cargo deny check

# Rewrite the golden files from Transformers and PEFT (needs scripts/requirements.txt)
golden PYTHON="python3":
    {{PYTHON}} scripts/make_golden_llama.py

# Baseline on BANKING77 (needs scripts/requirements.txt and the data set)
banking77-baseline DATA PYTHON="python3":
    {{PYTHON}} scripts/banking77_baseline.py {{DATA}}
