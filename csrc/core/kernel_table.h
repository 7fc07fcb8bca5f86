// How a kernels file, compiled once per SIMD path, is declared and chosen. Includes nothing, so that those files stay
// clean.
#pragma once

// Each kernels file is compiled once per path into its own namespace and gives its table of functions there.
#if defined(PYALIGN_X86_VARIANTS)
#define PYALIGN_SELECT(table) \
    (simd() == Simd::avx512 ? avx512::table() : simd() == Simd::avx2 ? avx2::table() : portable::table())
#define PYALIGN_DECLARE(type, table) \
    namespace portable {             \
    const type& table();             \
    }                                \
    namespace avx2 {                 \
    const type& table();             \
    }                                \
    namespace avx512 {               \
    const type& table();             \
    }
#else
#define PYALIGN_SELECT(table) (portable::table())
#define PYALIGN_DECLARE(type, table) \
    namespace portable {             \
    const type& table();             \
    }
#endif
