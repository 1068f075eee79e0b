#!/usr/bin/env bash
# Plans a run of one's own settings, then trains it with four daemons on this machine: ./run.sh [FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
model=${1:-my-run.toml}

swarmctl plan --model "$model" --peers '4xT4@100Mbps' --quick
swarmd demo --model "$model" --peers 4
