// The most floating-point operations per second that the processor does: prints GFLOP/s of all threads as
// `amx_bf16 avx512_fp32 avx2_fp32`, 0 for what it lacks. Run by machine_limit.py.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// Twelve independent sums, so that none waits for another.
__attribute__((target("avx512f"))) double avx512_flops(int64_t steps) {
  __m512 sums[12] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (auto& sum : sums) asm volatile("" : "+v"(sum));  // twelve numbers of which the compiler knows nothing
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm512_fmadd_ps(a, sum, b);
    asm volatile("" : "+v"(a));
  }
  for (auto& sum : sums) asm volatile("" : "+v"(sum));
  return 12.0 * 16 * 2 * steps;
}

__attribute__((target("avx2,fma"))) double avx2_flops(int64_t steps) {
  __m256 sums[12] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (auto& sum : sums) asm volatile("" : "+x"(sum));  // twelve numbers of which the compiler knows nothing
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm256_fmadd_ps(a, sum, b);
    asm volatile("" : "+x"(a));
  }
  for (auto& sum : sums) asm volatile("" : "+x"(sum));
  return 12.0 * 8 * 2 * steps;
}

// Products of 32 x 32 x 32 whose tiles are loaded from the first-level cache.
__attribute__((target("amx-tile,amx-bf16"))) double amx_flops(int64_t steps) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  alignas(64) static const uint16_t tiles[8][512] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const int part = step & 1;  // two different places
    _tile_loadd(4, tiles[4 * part], 64);
    _tile_loadd(6, tiles[4 * part + 1], 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles[4 * part + 2], 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, tiles[4 * part + 3], 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 16 * 16 * 32 * 2 * steps;
}

bool amx_granted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

double gflops(double (*run)(int64_t), int num_threads) {
  double best = 0;
  for (int repeat = 0; repeat < 40; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    std::vector<double> flops(num_threads);
    for (int i = 0; i < num_threads; ++i) threads.emplace_back([&, i] { flops[i] = run(300000); });
    for (auto& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    double total = 0;
    for (double each : flops) total += each;
    best = std::max(best, total / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  __builtin_cpu_init();
  const bool amx = __builtin_cpu_supports("amx-bf16") && amx_granted();
  std::printf("%f %f %f\n", amx ? gflops(amx_flops, num_threads) : 0,
              __builtin_cpu_supports("avx512f") ? gflops(avx512_flops, num_threads) : 0,
              __builtin_cpu_supports("avx2") ? gflops(avx2_flops, num_threads) : 0);
}
