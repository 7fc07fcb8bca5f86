// The one place where a Python tensor becomes a checked TensorView: by DLPack, so torch is neither included nor linked.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"

namespace pyalign {

namespace py = pybind11;

// Where a tensor must be: on the CPU, or on one CUDA device.
struct Place {
    int type = 1, device = 0;  // DLPack's numbers
    static Place cuda(int device) { return {2, device}; }
};

// Holds the exported tensor for as long as the view is used.
class Borrowed {
  public:
    // Raises TypeError or ValueError, naming what was given and expected, unless `object` is a tensor at that place of
    // an allowed dtype whose entries lie at multiples of their size.
    Borrowed(py::handle object, const std::string& name, std::initializer_list<DType> allowed, Place place = {});

    const TensorView& view() const { return view_; }
    const std::string& name() const { return name_; }

    Borrowed& with_shape(const std::vector<int64_t>& expected);
    Borrowed& with_dim(int64_t expected);
    Borrowed& contiguous();
    // No two entries at one address: required of everything that is written.
    Borrowed& distinct();

  private:
    std::string name_;
    TensorView view_;
    std::shared_ptr<void> owner_;
};

// Memory that a call uses, from its first byte to behind its last.
struct Stretch {
    std::string_view name;
    const char *begin, *end;
    bool written;
};

Stretch stretch_of(const Borrowed& tensor, bool written);

// Raises ValueError where memory that is written is used for something else too: what is read is checked once, before
// the work, and must stay as it was.
void expect_apart(std::vector<Stretch> stretches);

std::string show(const std::vector<int64_t>& shape);

// Lets Ctrl-C end compiled work: create it, run the work without the GIL, then call `rethrow`.
class PythonInterrupt {
  public:
    PythonInterrupt();
    Interrupt& interrupt() { return interrupt_; }
    void rethrow() const;

  private:
    std::shared_ptr<std::optional<py::error_already_set>> failure_;
    Interrupt interrupt_;
};

int checked_threads(int threads);

void bind_cross_moments(py::module_& m);
void bind_linear_assignment(py::module_& m);
void bind_permuted_lerp(py::module_& m);

}  // namespace pyalign
