# What the examples share: daemons on this machine, each counted as a machine of its own. Sourced by run.sh.
# Needs swarmd, swarmctl and python3 on the PATH; `make examples` puts those of .venv there.

homes=$(mktemp -d /tmp/swarmd-XXXXXX) # short, as a socket's path is
declare -A process

end_all() {
    for name in "${!process[@]}"; do kill -9 "${process[$name]}" 2> /dev/null || true; done
}
trap end_all EXIT

# start NAME OPTIONS...: a daemon with the home $homes/NAME, in the background
start() {
    local name=$1
    shift
    SWARMD_MACHINE=$name swarmd start --home "$homes/$name" --device cpu --threads 1 "$@" \
        > "$homes/$name.out" 2>&1 &
    process[$name]=$!
}

# status NAME KEY: a value of `swarmctl status --json`, empty while the daemon doesn't answer
status() {
    swarmctl --home "$homes/$1" status --json 2> /dev/null \
        | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$2" 2> /dev/null || true
}

# fail NAME WITH: shows what a daemon said, and ends
fail() {
    echo "$1 ended with $2:" >&2
    cat "$homes/$1.out" >&2
    exit 1
}

# alive NAME: the daemon still runs
alive() {
    kill -0 "${process[$1]}" 2> /dev/null || fail "$1" "an error"
}

# address NAME: where others can dial it, once it listens
address() {
    local found=
    until [[ $found == */p2p/* ]]; do
        alive "$1"
        sleep 0.2
        found=$(status "$1" addresses | tr -d "[]()',\"" | cut -d' ' -f1)
    done
    echo "$found"
}

# until_step NAME STEP: waits until the daemon has come to a step
until_step() {
    local step=
    until [[ -n $step && $step -ge $2 ]]; do
        alive "$1"
        sleep 0.5
        step=$(status "$1" step)
    done
}

# ended NAME...: waits until each daemon has ended by itself, with 0
ended() {
    local code name
    for name in "$@"; do
        code=0
        wait "${process[$name]}" || code=$?
        unset "process[$name]"
        [[ $code == 0 ]] || fail "$name" "$code"
    done
}

# result NAME: the first and the last line of a ledger, shortly; fails if anything was lost or counted twice
result() {
    python3 - "$homes/$1/ledger.jsonl" << 'END'
import json, pathlib, sys
lines = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
first, last = lines[0], lines[-1]
print(f"loss {first['loss']:.3f} at step {first['step']}, {last['loss']:.3f} at step {last['step']}; "
      f"{sum(line['lost'] for line in lines)} lost, {sum(line['duplicated'] for line in lines)} counted twice; "
      f"logs, ledgers and checkpoints are in {pathlib.Path(sys.argv[1]).parents[1]}")
sys.exit(any(line["lost"] or line["duplicated"] for line in lines) or not last["loss"] < first["loss"])
END
}
