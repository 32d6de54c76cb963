#!/bin/sh
# Installs the peers that the benchmarks compare with into benchmarks/.peers, an environment of their own:
# AGeDi 1.4.0 (GPL-3.0, run as it is, through its public interface) on SchNetPack 2.2.0, from PyPI.
#
# - Same interpreter and same torch as in .venv, or the comparison is void. Both packages ask for Python 3.12 but run on
#   3.11, for which ours is pinned; pip is told so for these two alone.
# - A CUDA build of torch (gigabytes) is never taken where ours has none.
# Where it cannot be done, one line says why and the exit status is 0: the benchmarks then run without ratios.
set -u
cd "$(dirname "$0")"
ours=../.venv/bin/python
log=.peers/install.log

skip() {
    echo "peers skipped: $1"
    exit 0
}

[ -x "$ours" ] || skip "there is no .venv; run make venv first"
if [ -f .peers/.installed ] && [ .peers/.installed -nt peers.txt ]; then
    exit 0
fi
rm -rf .peers
"$ours" -m venv .peers || skip "the environment benchmarks/.peers cannot be made"
pip=".peers/bin/python -m pip --disable-pip-version-check"

torch=$("$ours" -c 'import torch; print(torch.__version__.split("+")[0], torch.version.cuda or "none")')
[ "${torch% *}" = "$(sed -n 's/^torch==//p' peers.txt)" ] || skip "torch ${torch% *} of .venv is not the one in peers.txt"
$pip install --dry-run -q --report .peers/torch.json "torch==${torch% *}" >"$log" 2>&1 ||
    skip "torch ${torch% *} cannot be had from the package index (see benchmarks/.peers/install.log)"
if [ "${torch#* }" = none ] && grep -q '"name": *"nvidia-' .peers/torch.json; then
    skip "pip would take a CUDA build of torch where .venv has a CPU build; tell it where the CPU builds are (PIP_FIND_LINKS)"
fi
$pip install -r peers.txt >"$log" 2>&1 || skip "their dependencies do not install (see benchmarks/.peers/install.log)"
$pip install --no-deps --ignore-requires-python agedi==1.4.0 schnetpack==2.2.0 >>"$log" 2>&1 ||
    skip "AGeDi 1.4.0 and SchNetPack 2.2.0 do not install (see benchmarks/.peers/install.log)"
.peers/bin/python -c 'import agedi, schnetpack' >>"$log" 2>&1 || skip "they do not import (see benchmarks/.peers/install.log)"
touch .peers/.installed
echo "peers installed: AGeDi 1.4.0, SchNetPack 2.2.0, torch ${torch% *}"
