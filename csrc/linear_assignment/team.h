// Who solves one problem on a GPU: a team of threads in groups of 32 lanes. The algorithm is written for any team:
//
//   team.each(count, f)    f(k) for every k below count, by any thread
//   team.groups(count, f)  f(group, k), by the 32 lanes of a group together
//   team.first(f)          by one thread of the team
//   team.sync()            what was written before is seen by all behind it
//
// Inside a group, what differs from lane to lane is held in Lanes<T>, and group.lanes(f) runs f(lane) for all of them.
// The host's team is one thread that plays all lanes, with minima and sums in the same order: the same answer to the
// last bit, so that the algorithm is tested where there is no GPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PYALIGN_PART __device__ __forceinline__
#define PYALIGN_BOTH __host__ __device__ inline
#define PYALIGN_MEMBER __host__ __device__
#define PYALIGN_UNROLL _Pragma("unroll 8")
#else
#define PYALIGN_PART inline
#define PYALIGN_BOTH inline
#define PYALIGN_MEMBER
#define PYALIGN_UNROLL
#endif

#if !defined(__CUDACC__)
#include <algorithm>
#include <cstring>
#endif

namespace pyalign {

constexpr int kLanes = 32;

// Numbers as unsigned integers of the same order, so that integer atomics compare them.
PYALIGN_PART uint64_t bits_of(double x) {
#if defined(__CUDACC__)
    return static_cast<uint64_t>(__double_as_longlong(x));
#else
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

PYALIGN_PART double from_bits(uint64_t bits) {
#if defined(__CUDACC__)
    return __longlong_as_double(static_cast<long long>(bits));
#else
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

PYALIGN_PART uint64_t ordered(double x) {
    const uint64_t bits = bits_of(x);
    return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

PYALIGN_PART double from_ordered(uint64_t key) {
    return from_bits(key >> 63 ? key & ~(uint64_t{1} << 63) : ~key);
}

PYALIGN_PART double lesser(double a, double b) {
    return b < a ? b : a;
}

PYALIGN_PART double greater(double a, double b) {
    return a < b ? b : a;
}

#if !defined(__CUDACC__)

template <typename T>
struct Lanes {
    T at[kLanes];
    Lanes() = default;
    explicit Lanes(T all) { std::fill_n(at, kLanes, all); }
    T& operator[](int lane) { return at[lane]; }
};

class HostGroup {
  public:
    template <typename F>
    void lanes(const F& f) const {
        for (int lane = 0; lane < kLanes; ++lane) f(lane);
    }
    template <typename F>
    void one(const F& f) const {
        f();
    }
    void sync() const {}

    double least(const Lanes<double>& x) const { return *std::min_element(x.at, x.at + kLanes); }
    int32_t least(const Lanes<int32_t>& x) const { return *std::min_element(x.at, x.at + kLanes); }
    bool any(const Lanes<bool>& x) const { return std::find(x.at, x.at + kLanes, true) != x.at + kLanes; }
    uint32_t ballot(const Lanes<bool>& x) const {
        uint32_t mask = 0;
        for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(x.at[lane]) << lane;
        return mask;
    }
    double sum(Lanes<double> x) const {
        for (int step = kLanes / 2; step > 0; step /= 2) {
            for (int lane = 0; lane < step; ++lane) x.at[lane] += x.at[lane + step];
        }
        return x.at[0];
    }
    // The k-th smallest (from 1).
    double smallest(int k, Lanes<double> x) const {
        std::nth_element(x.at, x.at + k - 1, x.at + kLanes);
        return x.at[k - 1];
    }
    static int bits_in(uint32_t mask) {
        int count = 0;
        for (; mask; mask &= mask - 1) ++count;
        return count;
    }
};

class HostTeam {
  public:
    // With a seed, work is done in another order in every step: what a step computes must not depend on it.
    explicit HostTeam(uint32_t seed = 0) : state_(seed) {}

    template <typename F>
    void each(int64_t count, const F& f) {
        const uint32_t draw = next();
        const int64_t start = count > 0 && state_ ? draw / 2 % count : 0;
        for (int64_t k = 0; k < count; ++k) {
            const int64_t at = (start + k) % count;
            f(static_cast<int32_t>(state_ && draw % 2 ? count - 1 - at : at));
        }
    }
    template <typename F>
    void groups(int64_t count, const F& f) {
        each(count, [&](int32_t k) { f(HostGroup(), k); });
    }
    template <typename F>
    void first(const F& f) const {
        f();
    }
    void sync() const {}

    static uint64_t atomic_min(uint64_t* at, uint64_t value) {
        const uint64_t before = *at;
        *at = std::min(before, value);
        return before;
    }
    static void atomic_max(uint64_t* at, uint64_t value) { *at = std::max(*at, value); }
    static void atomic_min(int32_t* at, int32_t value) { *at = std::min(*at, value); }
    static int32_t atomic_add(int32_t* at, int32_t value) {
        const int32_t before = *at;
        *at += value;
        return before;
    }
    static int32_t atomic_exchange(int32_t* at, int32_t value) {
        const int32_t before = *at;
        *at = value;
        return before;
    }
    template <typename T>
    static T now(const T* at) {
        return *at;
    }
    template <typename T>
    static void put(T* at, T value) {
        *at = value;
    }

  private:
    uint32_t next() {
        if (state_) state_ ^= state_ << 13, state_ ^= state_ >> 17, state_ ^= state_ << 5;
        return state_;
    }
    uint32_t state_;
};

#endif

}  // namespace pyalign
