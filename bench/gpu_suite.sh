#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds for it, runs the tests of the CUDA kernels on it and under compute-sanitizer, and the benchmarks.
#
#   bench/gpu_suite.sh [folder]     what it finds goes to the folder, by default out/gpu
#
# Needs the driver, g++ and a package registry: nvcc and compute-sanitizer are installed from there, into the folder. PYTHON chooses the
# interpreter. The first thing that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:-out/gpu}"
out="$(cd "${1:-out/gpu}" && pwd)"

nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv | tee "$out/gpu.csv"

# The toolkit has an environment of its own: torch may want another version of the same packages.
"${PYTHON:-python3}" -m venv "$out/toolkit"
"$out/toolkit/bin/python" -m pip install --quiet -r cmake/cuda_wheels.txt 'nvidia-cuda-sanitizer-api==13.0.*'
toolkit="$(echo "$out"/toolkit/lib/python3*/site-packages/nvidia/cu13)"

"${PYTHON:-python3}" -m venv "$out/venv"
python="$out/venv/bin/python"
"$python" -m pip install --quiet -c constraints-dev.txt scikit-build-core pybind11 ninja cmake
CUDACXX="$toolkit/bin/nvcc" CUDAFLAGS=-lineinfo SKBUILD_CMAKE_DEFINE="LUMOS_CUDA=ON;CMAKE_CUDA_ARCHITECTURES=native" \
  "$python" -m pip install --quiet -c constraints-dev.txt --no-build-isolation -e '.[test]'
"$python" -c 'from lumos_engine.testing import backends; assert backends.has_gpu(), "torch sees no GPU"'
"$out/venv/bin/lumos" doctor | tee "$out/doctor.txt"

tests=("$python" -m pytest -p no:cacheprovider -k cuda python_tests/ops python_tests/properties)
"${tests[@]}" --junit-xml "$out/tests.xml"
for tool in memcheck racecheck synccheck initcheck; do
  # Without torch's cache of memory, which hides where an allocation ends. The kernels are those of namespace lumos.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$toolkit/bin/compute-sanitizer" --tool "$tool" --error-exitcode 99 \
    --kernel-name kernel_substring=lumos --log-file "$out/$tool.txt" "${tests[@]}" --hypothesis-profile quick
done

"$python" bench/cuda_kernels.py --json "$out/cuda_kernels.json"
"$python" bench/qk_norm_mm_rope.py --device cuda --repeats 50 --json "$out/qk_norm_mm_rope.json"
CUDACXX="$toolkit/bin/nvcc" "$python" bench/ptxas_resources.py --json "$out/ptxas_resources.json"
echo "gpu_suite: all passed; results in $out"
