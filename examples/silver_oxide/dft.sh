#!/bin/bash
# Makes examples/silver_oxide/.gpaw, an environment of its own with GPAW for dft.py: GPAW is built from PyPI's source
# without MPI, its PAW setups come as gpaw-data. On Debian: apt-get install g++ libxc-dev libopenblas-dev
# Run it again at will: what is there with these versions stays. GPAW is GPL-3.0 and is run as it is; adlayer, which
# dft.py does not need, is not in this environment.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
versions="gpaw==26.7.0 gpaw-data==1.2.1 ase==3.29.0 numpy==2.4.6 scipy==1.17.1"
log=.gpaw/install.log

fail() {
    echo "dft.sh: $1" >&2
    exit 1
}

if [ -f .gpaw/.installed ] && [ "$(cat .gpaw/.installed)" = "$versions" ]; then
    exit 0
fi
[ -n "$python" ] || fail "there is no python3; install Python 3.11 or set PYTHON"
command -v g++ >/dev/null || fail "there is no g++; install it (Debian: apt-get install g++)"
for header in xc.h cblas.h; do
    echo "#include <$header>" | g++ -E -x c++ - >/dev/null 2>&1 ||
        fail "$header is missing; install libxc and OpenBLAS (Debian: apt-get install libxc-dev libopenblas-dev)"
done
[ -x .gpaw/bin/python ] || "$python" -m venv .gpaw || fail "the environment examples/silver_oxide/.gpaw cannot be made"
cat >.gpaw/siteconfig.py <<'EOF'
mpi = False
scalapack = False
fftw = False
libraries = ["openblas", "xc"]
EOF
# CC: GPAW's sources are C++ in files named .c, which gcc would take for C.
# shellcheck disable=SC2086
GPAW_CONFIG=$PWD/.gpaw/siteconfig.py CC=g++ CXX=g++ .gpaw/bin/python -m pip --disable-pip-version-check install \
    --no-binary gpaw $versions >"$log" 2>&1 || fail "GPAW does not install (see examples/silver_oxide/$log)"
.gpaw/bin/gpaw info >>"$log" 2>&1 || fail "GPAW does not start (see examples/silver_oxide/$log)"
echo "$versions" >.gpaw/.installed
echo "installed: $versions"
