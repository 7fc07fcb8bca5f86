// What one problem needs beside its costs: O(n) numbers, kept by each thread for the next problem.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "linear_assignment/linear_assignment_kernels.h"

namespace pyalign {

// Memory that is not cleared: most candidates are never written, and pages that are never written are never given.
template <typename T>
class Scratch {
  public:
    T* get(int64_t size) {
        if (size > capacity_) {
            held_ = std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]);
            capacity_ = size;
        }
        return held_.get();
    }
    int64_t bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }
    void release() { held_.reset(), capacity_ = 0; }

  private:
    std::unique_ptr<T[]> held_;
    int64_t capacity_ = 0;
};

// The n x kMostCandidates candidates, and per row how many there are, what bounds the others, and when they were
// chosen.
struct CandidateLists {
    int32_t* columns;
    double* costs;
    int32_t* size;
    double* floor;
    int64_t* version;
};

// A column (or, as -1 - row, what a row has beside its candidates) and how far from the start of the path it is.
struct Label {
    double distance;
    int32_t what;
    // The heap of the standard library gives the greatest first.
    bool operator<(const Label& other) const {
        return distance > other.distance || (distance == other.distance && what > other.what);
    }
};

class Workspace {
  public:
    // Points into this thread's memory; arrays over columns are padded for the kernels.
    void prepare(int32_t n, int32_t m, bool listed) {
        const int64_t padded = (static_cast<int64_t>(m) + 7) / 8 * 8, rows = n;
        double* d = doubles_.get(3 * padded + 5 * rows);
        v = d, distance = d + padded, found_at = distance + padded, u = found_at + padded, reach = u + rows;
        done_at = reach + rows, done_v = done_at + rows, lists.floor = done_v + rows;
        int32_t* k = integers_.get(6 * padded + 4 * rows);
        row_of = k, from = k + padded, found = from + padded, done = found + padded, touched = done + padded;
        queue = touched + padded, column_of = queue + padded, free = column_of + rows, root = free + rows;
        lists.size = root + rows;
        lists.version = versions_.get(rows + padded), seen = lists.version + rows;
        lists.columns = listed ? columns_.get(rows * kMostCandidates) : nullptr;
        lists.costs = listed ? costs_.get(rows * kMostCandidates) : nullptr;
    }

    // Gives back what a large problem needed.
    void trim() {
        if (costs_.bytes() + doubles_.bytes() + integers_.bytes() < (int64_t{4} << 20)) return;
        doubles_.release(), integers_.release(), versions_.release(), columns_.release(), costs_.release();
    }

    double *u, *v, *distance, *found_at, *reach, *done_at, *done_v;
    int32_t *row_of, *column_of, *from, *free, *root, *queue, *done, *found, *touched;
    int64_t* seen;
    std::vector<Label> labels;  // a heap
    std::vector<int32_t> ready;
    CandidateLists lists;

  private:
    Scratch<double> doubles_, costs_;
    Scratch<int32_t> integers_, columns_;
    Scratch<int64_t> versions_;
};

}  // namespace pyalign
