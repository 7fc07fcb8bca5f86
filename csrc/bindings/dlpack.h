// The structures of DLPack 0.8, and of 1.3 what is read of its C exchange (dmlc/dlpack, include/dlpack/dlpack.h),
// declared again so that the build needs no header.
#pragma once

#include <cstdint>

extern "C" {

struct DLDevice {
    int32_t device_type;
    int32_t device_id;
};

struct DLDataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(struct DLManagedTensor* self);
};

struct DLPackExchangeAPI {
    struct {
        uint32_t major, minor;
    } version;
    void* previous;
    void (*others[3])();  // to allocate, export and import tensors that own their memory
    // Fills what is borrowed from the tensor, no longer valid than the tensor is; not 0 with an exception set. May be
    // null.
    int (*dltensor_from_py_object_no_sync)(void* object, struct DLTensor* tensor);
};

}  // extern "C"
