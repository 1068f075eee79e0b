#!/usr/bin/env bash
# Four spot machines train; one gets notice, drains and is gone; another one comes. Here as daemons on one machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../daemons.sh

spot() { # NAME OPTIONS...: the notice is a file here; a cloud's metadata service is asked with --spot-command
    start "$1" --spot-file "$homes/notice-for-$1" --spot-interval 1 --spot-notice 15 --drain-timeout 10 "${@:2}"
}

spot a --model tiny --stages 2 --steps 60
a=$(address a)
spot b --bootstrap "$a"
spot c --bootstrap "$a"
spot d --bootstrap "$a"
until_step a 5

echo "b gets notice"
touch "$homes/notice-for-b"
spot e --bootstrap "$a" # the fleet's replacement
ended b
echo "b has drained: its sum is with another replica"
until_step e 2
echo "e serves stage $(status e stage)"
swarmctl --home "$homes/a" peers
ended a c d e
result a
