// The inner loops of the permuted sum, compiled once per instruction set. `item` is the size of an element in bytes.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/kernel_table.h"

namespace pyalign {

// Entry i of a row lies at element table[i / run] + i % run of its source.
struct RowTable {
    const int64_t* table;
    int64_t runs;
    int64_t run;
};

// Filed rows that are summed: where their records lie, and which record each entry of the sum takes.
struct FiledTerm {
    const char* records;
    const int64_t* table;
    double weight;
};

struct LerpTable {
    // Bring the entries of a row together; up to 32 bytes behind them are written too. Bytes at `end` and behind it are
    // not read.
    void (*collect)(int64_t item, const char* from, const char* end, const RowTable& row, char* to);
    // The way back: entry i of `from` goes to where the row has entry i.
    void (*spread)(int64_t item, const char* from, const RowTable& row, char* to);

    // How many rows `file` and `collect_filed` take at once; 0 where `collect` is faster.
    int64_t (*rows_at_once)(int64_t item);
    // Turn rows around: record j holds entry j of every row. `records` has room for 32 entries more. Meanwhile as many
    // bytes of the rows `ahead` are asked for, if there are any.
    void (*file)(int64_t item, const char* const* rows, const char* const* ahead, int64_t count, char* records);
    // Row r of `to` begins at r * pitch bytes and receives the entries table[0 .. count) of filed row r; count is a
    // multiple of 16.
    void (*collect_filed)(int64_t item, const char* records, const int64_t* table, int64_t count, char* to,
                          int64_t pitch);

    // The weighted sum of filed rows, in float32: row r of `sums` begins at r * pitch bytes. Entries of the sum take
    // the records table[0 .. count), count a multiple of 16; sums that were not begun before are not read.
    void (*add_filed)(DType dtype, const FiledTerm* terms, int64_t n_terms, int64_t count, char* sums, int64_t pitch,
                      bool begins);

    // out[i] = sums[i] + sum over terms of weights[t] * terms[t][i]; float64 sums in float64, the others in float32.
    // There need not be sums. `past_caches` writes to memory without reading it first; `fence` ends such writing.
    void (*blend)(DType dtype, char* out, const char* sums, const char* const* terms, const double* weights,
                  int64_t n_terms, int64_t count, bool past_caches);
    void (*fence)();
    // Add to sums[t] the products of `with` and terms[t], in float64.
    void (*dot)(DType dtype, const char* with, const char* const* terms, int64_t n_terms, int64_t count, double* sums);
    // Ask for bytes that will be read soon; `in_order`: for the beginnings of pages that will be read one after
    // another.
    void (*prefetch)(const char* from, int64_t bytes, bool in_order);
};

PYALIGN_DECLARE(LerpTable, lerp_table)

}  // namespace pyalign
