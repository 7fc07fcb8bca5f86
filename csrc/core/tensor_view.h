// What a tensor is to the compiled core: a pointer, a dtype, a shape and strides in elements. No Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"

namespace pyalign {

const char* name_of(DType dtype);

struct TensorView {
    void* data = nullptr;
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::vector<int64_t> strides;

    int64_t dim() const { return static_cast<int64_t>(shape.size()); }

    int64_t size() const {
        int64_t product = 1;
        for (int64_t extent : shape) product *= extent;
        return product;
    }

    template <typename T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

}  // namespace pyalign
