// Working memory that a thread keeps for its next call: the pages of a fresh block cost more than the work done in
// them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace pyalign {

// A block of at least `bytes`, aligned to 64, not cleared. Must be freed by the thread that made it.
class Scratch {
  public:
    explicit Scratch(size_t bytes) {
        std::vector<Block>& kept = blocks();
        const auto fits =
            std::find_if(kept.begin(), kept.end(), [&](const Block& block) { return block.size >= bytes + kAlign; });
        if (fits != kept.end()) {
            block_ = std::move(*fits);
            kept.erase(fits);
        } else {
            block_ = {std::unique_ptr<unsigned char[]>(new unsigned char[bytes + kAlign]), bytes + kAlign};
        }
        void* start = block_.data.get();
        size_t space = block_.size;
        data_ = std::align(kAlign, bytes, start, space);
    }
    ~Scratch() {
        std::vector<Block>& kept = blocks();
        if (block_.size > kLargestKept) return;
        kept.push_back(std::move(block_));
        if (kept.size() > kMostKept) kept.erase(kept.begin());
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }

  private:
    struct Block {
        std::unique_ptr<unsigned char[]> data;
        size_t size = 0;
    };
    static constexpr size_t kAlign = 64, kLargestKept = size_t{8} << 20, kMostKept = 4;

    static std::vector<Block>& blocks() {
        thread_local std::vector<Block> kept;
        return kept;
    }

    Block block_;
    void* data_;
};

}  // namespace pyalign
