#!/usr/bin/env bash
# Three machines train a run to its end, are all switched off, and go on another day: here as three daemons.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../daemons.sh

start a --model tiny --steps 10
a=$(address a)
start b --bootstrap "$a"
start c --bootstrap "$a"
until_step c 3
swarmctl --home "$homes/c" peers
ended a b c
grep "the final state" "$homes/c/swarmd.log"
result c

echo "--- another day: 20 steps in all"
start a --resume --steps 20 # founds the run again from what is on the three disks
start b                     # the others find it, and follow
start c
ended a b c
result c
