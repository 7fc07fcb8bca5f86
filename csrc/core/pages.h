// Large blocks that are written for the first time: the system can hand out their memory in large pages.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyalign {

// Asks for large pages where the block holds any; without them every 4 KiB cost a fault. Only a hint.
inline void expect_many_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t large = uintptr_t{2} << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + large - 1) / large * large;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / large * large;
    if (begin >= end) return;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
#endif
#else
    static_cast<void>(data), static_cast<void>(bytes);
#endif
}

}  // namespace pyalign
