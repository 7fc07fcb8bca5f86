// A block of GPU threads as an algorithm sees it, so that one text of a kernel runs on the device and, thread after
// thread, on the host in tests. A kernel body is a sequence of steps: `each` runs a piece of code for every thread,
// `sync` stands between pieces that exchange data through shared memory, and what a thread keeps between two pieces
// lies in an `Each`. A race within a piece shows on the host: its threads run in several orders, with equal results.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#if defined(__CUDACC__)
#define PYALIGN_BOTH __host__ __device__ __forceinline__
#else
#define PYALIGN_BOTH inline
#endif
#if defined(__CUDA_ARCH__)
#define PYALIGN_UNROLLED _Pragma("unroll")
#else
#define PYALIGN_UNROLLED
#endif

namespace pyalign {

// Which 16-bit format a matrix product reads.
enum class Narrow { f16, bf16 };

#if defined(__CUDACC__)
template <int kThreads>
class DeviceBlock {
  public:
    template <typename T>
    class Each {
      public:
        __device__ __forceinline__ T& operator[](int) { return value_; }

      private:
        T value_;
    };

    __device__ __forceinline__ explicit DeviceBlock(char* shared) : shared_(shared) {}
    __device__ __forceinline__ char* shared() const { return shared_; }
    __device__ __forceinline__ void sync() const { __syncthreads(); }

    template <typename Body>
    __device__ __forceinline__ void each(const Body& body) const {
        body(static_cast<int>(threadIdx.x));
    }

    // Four 8 x 8 matrices of 16-bit entries: thread l of a warp gives the address of row l % 8 of matrix l / 8, and
    // gets of each matrix the entries (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1), or, transposed, those with row and
    // column exchanged.
    template <bool kTransposed, typename Address, typename Out>
    __device__ __forceinline__ void load_matrices(const Address& address, const Out& out) const {
#if defined(__CUDA_ARCH__)
        const int t = static_cast<int>(threadIdx.x);
        uint32_t* r = out(t);
        const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(address(t)));
        if (kTransposed) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                         : "r"(from));
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                         : "r"(from));
        }
#endif
    }

    // c (16 x 8, float) += a (16 x 16) b (16 x 8). Thread l holds of c the rows l / 4 and l / 4 + 8, columns 2 (l % 4)
    // and one more; of a and b the 8 x 8 quarters in the order of `load_matrices`, rows before columns.
    template <Narrow kKind, typename C, typename A, typename B>
    __device__ __forceinline__ void multiply_add(const C& of_c, const A& of_a, const B& of_b) const {
#if defined(__CUDA_ARCH__)
        const int t = static_cast<int>(threadIdx.x);
        float* c = of_c(t);
        const uint32_t *a = of_a(t), *b = of_b(t);
        if (kKind == Narrow::bf16) {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        } else {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
#endif
    }

    // The same of doubles: c (8 x 8) += a (8 x 4) b (4 x 8). Thread l holds a(l / 4, l % 4), b(l % 4, l / 4), and of c
    // row l / 4, columns 2 (l % 4) and one more.
    template <typename C, typename A, typename B>
    __device__ __forceinline__ void multiply_add_double(const C& of_c, const A& of_a, const B& of_b) const {
#if defined(__CUDA_ARCH__)
        const int t = static_cast<int>(threadIdx.x);
        double* c = of_c(t);
        asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+d"(c[0]), "+d"(c[1])
                     : "d"(of_a(t)), "d"(of_b(t)));
#endif
    }

  private:
    char* shared_;
};
#endif

// Several words in one load or store. An address that is no multiple of their size is an error on the device, so in
// tests it is one on the host, which would take it.
template <typename T>
PYALIGN_BOTH T* aligned(const void* at) {
#if !defined(__CUDA_ARCH__)
    if (reinterpret_cast<std::uintptr_t>(at) % alignof(T) != 0) throw std::logic_error("several words, misaligned");
#endif
    return static_cast<T*>(const_cast<void*>(at));
}

PYALIGN_BOTH float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

PYALIGN_BOTH uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

}  // namespace pyalign
