#!/usr/bin/env bash
# `make try-install`: the ways to install of the README, with plain pip, uv and pipx, each in an environment of its own.
# No compiler is on the PATH, and the directory is an empty one. After each, two daemons train twenty steps. Prints what
# works, and the seconds that it took, training included.
set -euo pipefail
python=$("${1:-python3}" -c 'import sys; print(sys.executable)')
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git clone --quiet "$root" "$work/checkout"
git -C "$work/checkout" tag tried
lock=$work/checkout/locks/cpu.txt
mkdir "$work/bin" "$work/empty"
for tool in /usr/bin/*; do
    case ${tool##*/} in *gcc* | *g++* | *clang* | cc | c++ | c89* | c99* | cpp* | tcc | python*) ;; *) ln -s "$tool" "$work/bin/" ;; esac
done
ln -s "$python" "$work/bin/python3"
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$HOME/.cache/pip} UV_CACHE_DIR=${UV_CACHE_DIR:-$HOME/.cache/uv}
export HOME=$work PATH=$work/bin
cd "$work/empty"

done_with() { # what
    echo "$1: $SECONDS s"
    SECONDS=0
}

trains() { # the directory of a swarmd
    "$1/swarmd" demo --peers 2 --stages 2 --steps 20 --home "$work/demo" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
    rm -rf "$work/demo"
}

SECONDS=0
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --no-deps --require-hashes -r "file://$lock"
done_with "pip: installed locks/cpu.txt"
for place in "$work/checkout" "file://$work/checkout" "git+file://$work/checkout@tried"; do
    "$work/env/bin/python" -m pip install --quiet --no-deps --no-build-isolation --force-reinstall "$place"
    trains "$work/env/bin"
    done_with "pip: $place trains"
done
rm -rf "$work/env"

python3 -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet uv pipx
SECONDS=0
export PIPX_DEFAULT_BACKEND=uv UV_FIND_LINKS=${PIP_FIND_LINKS:-} # pip knows no overrides
"$work/tools/bin/pipx" install --quiet --pip-args="--overrides $lock" "swarmd[bnb,data] @ git+file://$work/checkout@tried"
trains "$("$work/tools/bin/pipx" environment --value PIPX_LOCAL_VENVS)/swarmd/bin"
done_with "pipx: trains"
"$work/tools/bin/pipx" uninstall swarmd >"$work/said"

"$work/tools/bin/uv" tool install --quiet --python "$python" --overrides "$lock" \
    "swarmd[bnb,data] @ git+file://$work/checkout@tried"
trains "$("$work/tools/bin/uv" tool dir)/swarmd/bin"
done_with "uv: trains"
