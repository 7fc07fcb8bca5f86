// Teams of GPU threads: one block, one cluster of blocks (compute capability 9.0), or the whole grid.
#pragma once

#include <cooperative_groups.h>

#include "linear_assignment/team.h"

namespace pyalign {

template <typename T>
struct Lanes {
    T value;
    Lanes() = default;
    __device__ __forceinline__ explicit Lanes(T all) : value(all) {}
    __device__ __forceinline__ T& operator[](int) { return value; }
    __device__ __forceinline__ const T& operator[](int) const { return value; }
};

// The 32 threads of a warp.
class WarpGroup {
  public:
    template <typename F>
    __device__ __forceinline__ void lanes(const F& f) const {
        f(static_cast<int>(threadIdx.x % kLanes));
    }
    template <typename F>
    __device__ __forceinline__ void one(const F& f) const {
        if (threadIdx.x % kLanes == 0) f();
    }
    __device__ __forceinline__ void sync() const { __syncwarp(); }

    // Two reductions of 32-bit integers, for which there is an instruction.
    __device__ __forceinline__ double least(const Lanes<double>& x) const {
        const uint64_t key = ordered(x.value);
        const uint32_t high = static_cast<uint32_t>(key >> 32), low = static_cast<uint32_t>(key);
        const uint32_t most = __reduce_min_sync(kAll, high);
        const uint32_t rest = __reduce_min_sync(kAll, high == most ? low : 0xffffffffu);
        return from_ordered(static_cast<uint64_t>(most) << 32 | rest);
    }
    __device__ __forceinline__ bool any(const Lanes<bool>& x) const { return __any_sync(kAll, x.value) != 0; }
    __device__ __forceinline__ uint32_t ballot(const Lanes<bool>& x) const { return __ballot_sync(kAll, x.value); }
    __device__ __forceinline__ double sum(Lanes<double> x) const {
        for (int step = kLanes / 2; step > 0; step /= 2) x.value += __shfl_down_sync(kAll, x.value, step);
        return __shfl_sync(kAll, x.value, 0);
    }
    // The k-th smallest (from 1): the lane that has exactly k - 1 others before it.
    __device__ __forceinline__ double smallest(int k, const Lanes<double>& x) const {
        const int lane = static_cast<int>(threadIdx.x % kLanes);
        int before = 0;
        for (int other = 0; other < kLanes; ++other) {
            const double theirs = __shfl_sync(kAll, x.value, other);
            before += theirs < x.value || (theirs == x.value && other < lane);
        }
        const uint32_t mask = __ballot_sync(kAll, before == k - 1);
        return __shfl_sync(kAll, x.value, __ffs(static_cast<int>(mask)) - 1);
    }
    __device__ __forceinline__ static int bits_in(uint32_t mask) { return __popc(mask); }

  private:
    static constexpr uint32_t kAll = 0xffffffffu;
};

struct BlockBarrier {
    __device__ __forceinline__ static int rank() { return 0; }
    __device__ __forceinline__ static int blocks() { return 1; }
    __device__ __forceinline__ static void sync() { __syncthreads(); }
};

struct GridBarrier {
    __device__ __forceinline__ static int rank() { return static_cast<int>(blockIdx.x); }
    __device__ __forceinline__ static int blocks() { return static_cast<int>(gridDim.x); }
    __device__ __forceinline__ static void sync() { cooperative_groups::this_grid().sync(); }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
struct ClusterBarrier {
    __device__ __forceinline__ static int rank() {
        return static_cast<int>(cooperative_groups::this_cluster().block_rank());
    }
    __device__ __forceinline__ static int blocks() {
        return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
    }
    __device__ __forceinline__ static void sync() { cooperative_groups::this_cluster().sync(); }
};
#endif

template <typename Barrier>
class CudaTeam {
  public:
    template <typename F>
    __device__ __forceinline__ void each(int64_t count, const F& f) const {
        const int64_t step = static_cast<int64_t>(Barrier::blocks()) * blockDim.x;
        for (int64_t k = static_cast<int64_t>(Barrier::rank()) * blockDim.x + threadIdx.x; k < count; k += step) {
            f(static_cast<int32_t>(k));
        }
    }
    // One after another over the blocks, so that few groups are spread over all of them.
    template <typename F>
    __device__ __forceinline__ void groups(int64_t count, const F& f) const {
        const int64_t warps = blockDim.x / kLanes, step = warps * Barrier::blocks();
        const int64_t begin = static_cast<int64_t>(threadIdx.x / kLanes) * Barrier::blocks() + Barrier::rank();
        for (int64_t k = begin; k < count; k += step) f(WarpGroup(), static_cast<int32_t>(k));
    }
    template <typename F>
    __device__ __forceinline__ void first(const F& f) const {
        if (threadIdx.x == 0 && Barrier::rank() == 0) f();
    }
    __device__ __forceinline__ void sync() const { Barrier::sync(); }

    __device__ __forceinline__ static uint64_t atomic_min(uint64_t* at, uint64_t value) {
        return atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
    }
    __device__ __forceinline__ static void atomic_max(uint64_t* at, uint64_t value) {
        atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
    }
    __device__ __forceinline__ static void atomic_min(int32_t* at, int32_t value) { atomicMin(at, value); }
    __device__ __forceinline__ static int32_t atomic_add(int32_t* at, int32_t value) { return atomicAdd(at, value); }
    __device__ __forceinline__ static int32_t atomic_exchange(int32_t* at, int32_t value) {
        return atomicExch(at, value);
    }
    // A value that others change or look at meanwhile.
    template <typename T>
    __device__ __forceinline__ static T now(const T* at) {
        return *static_cast<const volatile T*>(at);
    }
    template <typename T>
    __device__ __forceinline__ static void put(T* at, T value) {
        *static_cast<volatile T*>(at) = value;
    }
};

}  // namespace pyalign
