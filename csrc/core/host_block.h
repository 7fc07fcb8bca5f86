// The host's stand-in for a block of GPU threads (core/block.h), for tests: threads one after another, matrix
// instructions by their definition. Sums are cut off, not rounded, as tensor cores do at worst.
#pragma once

#include "core/block.h"
#include "core/narrow.h"

namespace pyalign {

// What shared memory consists of, and what `load_matrices` reads at an address.
struct alignas(16) Row {
    char bytes[16];
};

template <int kThreads>
class HostBlock {
  public:
    template <typename T>
    class Each {
      public:
        T& operator[](int t) { return values_[static_cast<size_t>(t)]; }

      private:
        std::vector<T> values_ = std::vector<T>(kThreads);
    };

    HostBlock(char* shared, bool backwards) : shared_(shared), backwards_(backwards) {}
    char* shared() const { return shared_; }
    void sync() const {}

    template <typename Body>
    void each(const Body& body) const {
        for (int t = 0; t < kThreads; ++t) body(backwards_ ? kThreads - 1 - t : t);
    }

    template <bool kTransposed, typename Address, typename Out>
    void load_matrices(const Address& address, const Out& out) const {
        for (int warp = 0; warp < kThreads; warp += 32) {
            for (int l = 0; l < 32; ++l) aligned<Row>(address(warp + l));
            for (int l = 0; l < 32; ++l) {
                for (int q = 0; q < 4; ++q) {
                    uint16_t pair[2];
                    for (int e = 0; e < 2; ++e) {
                        const int line = l / 4, pos = 2 * (l % 4) + e;
                        const int row = kTransposed ? pos : line, column = kTransposed ? line : pos;
                        memcpy(&pair[e], static_cast<const char*>(address(warp + q * 8 + row)) + 2 * column, 2);
                    }
                    out(warp + l)[q] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
                }
            }
        }
    }

    template <Narrow kKind, typename C, typename A, typename B>
    void multiply_add(const C& of_c, const A& of_a, const B& of_b) const {
        for (int warp = 0; warp < kThreads; warp += 32) {
            float a[16][16], b[16][8];
            bool any_a = false, any_b = false;
            for (int l = 0; l < 32; ++l) {
                for (int q = 0; q < 4; ++q) {
                    for (int e = 0; e < 2; ++e) {
                        const uint16_t bits = static_cast<uint16_t>(of_a(warp + l)[q] >> (16 * e));
                        a[l / 4 + 8 * (q & 1)][2 * (l % 4) + e + 8 * (q >> 1)] = widen(kKind, bits);
                        any_a |= (bits & 0x7fff) != 0;
                    }
                }
                for (int q = 0; q < 2; ++q) {
                    for (int e = 0; e < 2; ++e) {
                        const uint16_t bits = static_cast<uint16_t>(of_b(warp + l)[q] >> (16 * e));
                        b[2 * (l % 4) + e + 8 * q][l / 4] = widen(kKind, bits);
                        any_b |= (bits & 0x7fff) != 0;
                    }
                }
            }
            if (!any_a || !any_b) continue;  // nothing is added
            for (int l = 0; l < 32; ++l) {
                for (int e = 0; e < 4; ++e) {
                    const int i = l / 4 + 8 * (e >> 1), j = 2 * (l % 4) + (e & 1);
                    float* c = of_c(warp + l);
                    double sum = c[e];
                    for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[i][k]) * static_cast<double>(b[k][j]);
                    c[e] = cut_off(sum);
                }
            }
        }
    }

    template <typename C, typename A, typename B>
    void multiply_add_double(const C& of_c, const A& of_a, const B& of_b) const {
        for (int warp = 0; warp < kThreads; warp += 32) {
            for (int l = 0; l < 32; ++l) {
                for (int e = 0; e < 2; ++e) {
                    const int i = l / 4, j = 2 * (l % 4) + e;
                    for (int k = 0; k < 4; ++k) {
                        of_c(warp + l)[e] += of_a(warp + 4 * i + k) * of_b(warp + 4 * j + k);
                    }
                }
            }
        }
    }

  private:
    static float cut_off(double sum) {
        const float nearest = static_cast<float>(sum);
        return std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
    }

    char* shared_;
    bool backwards_;
};

// Runs a kernel body over a grid, block after block.
template <typename Body>
void run_on_host(const Body& body, int64_t grid_x, int64_t grid_y, int64_t grid_z, size_t shared, bool backwards) {
    // Shared memory begins as anything on the device: here it is no number.
    std::vector<Row> memory(shared / sizeof(Row) + 1);
    for (int64_t z = 0; z < grid_z; ++z) {
        for (int64_t y = 0; y < grid_y; ++y) {
            for (int64_t x = 0; x < grid_x; ++x) {
                memset(memory.data(), 0xff, memory.size() * sizeof(Row));
                HostBlock<Body::kThreads> block(reinterpret_cast<char*>(memory.data()), backwards);
                body(block, static_cast<int>(x), static_cast<int>(y), static_cast<int>(z));
            }
        }
    }
}

}  // namespace pyalign
