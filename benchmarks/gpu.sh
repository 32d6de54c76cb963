#!/bin/sh
# The tests and benchmarks on a machine with a GPU and a CUDA build of PyTorch but no network.
#
#   benchmarks/gpu.sh pack FOLDER [3.12]       where there is a network: fill FOLDER with what gpu.txt names, as wheels
#                                              for Linux on x86-64 and that Python
#   benchmarks/gpu.sh run FOLDER [OPTIONS]     on the GPU: install them aside, run the GPU tests, then gpu.py OPTIONS
#
# For the peer's neighbour lists on the GPU put nvalchemi-toolkit-ops and warp-lang (150 MB) into FOLDER, too; without
# them it makes its lists on the host, and its network's own time tells the rest.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
}
[ $# -ge 2 ] || usage
task=$1
folder=$2
python=$(command -v python3)

case $task in
pack)
    mkdir -p "$folder"
    platforms=$(for n in 39 35 34 31 28 27 24 17; do printf -- '--platform manylinux_2_%s_x86_64 ' "$n"; done)
    pip="$python -m pip --disable-pip-version-check"
    grep -v '^#' "$here/gpu.txt" | while read -r package; do
        # shellcheck disable=SC2086
        $pip download -q --no-deps --only-binary=:all: --python-version "${3:-3.12}" --implementation cp $platforms \
            --platform manylinux2014_x86_64 -d "$folder" "$package" 2>"$folder/log" ||
            $pip wheel -q --no-deps -w "$folder" "$package" 2>"$folder/log" || echo "$package cannot be had: see $folder/log"
    done
    du -sh "$folder"
    ;;
run)
    shift 2
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$folder"/*.whl
    export PYTHONPATH="$here/../src:$site" OMP_NUM_THREADS=1
    (
        cd "$here/.."
        "$python" -m pytest -q -m gpu -W default -p no:cacheprovider tests/test_compiled.py tests/network/test_pairs.py tests/network/test_gpu.py \
            tests/network/test_accelerator.py tests/energies/test_batched.py tests/diffusion/test_accelerator.py tests/diffusion/test_kernels_gpu.py \
            tests/training/test_accelerator.py tests/training/test_graphs.py
    ) || echo "GPU tests fail"
    "$python" "$here/gpu.py" "$@"
    ;;
*) usage ;;
esac
