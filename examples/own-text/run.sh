#!/usr/bin/env bash
# Three daemons train on a directory of text: ./run.sh [TEXT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../daemons.sh
text=${1:-../../docs}

start founder --model run.toml --data "$text" --stage 0
founder=$(address founder)
start copy --bootstrap "$founder" --data "$text" --stage 0 # has the text, too, and says where
start blind --bootstrap "$founder"                          # has none, so it serves the other stage
ended founder copy blind
result blind
